"""The train job before Ray: what it refuses, and how many steps it counts on."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tfray.batches import pool as pool_module
from tfray.batches.count import count_epoch, log_mixture
from tfray.batches.feed import PoolLanes
from tfray.batches.order import Cursor
from tfray.batches.plan import plan_pools
from tfray.batches.pool import mix_shards
from tfray.config import BatchesConfig, TrainingConfig, TrainJob
from tfray.errors import InputError
from tfray.tokens.shards import TokenFolder
from tfray.training import train as train_file
from tfray.training.ends import count_steps
from tfray.training.train import made_from, train
from tfray.units.ledger import open_ledger
from tfray.units.lock import Lock


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, write_tokens) -> TokenFolder:
    random = np.random.default_rng(2)

    def ids() -> list[int]:
        return random.integers(3, 300, random.integers(1, 20)).tolist()

    shards = [(corpus, [(ids(), ids()) for _ in range(30)]) for corpus in "aab"]
    folder = str(tmp_path_factory.mktemp("tokens"))
    return write_tokens(folder, shards, vocab_size=300, fingerprint="f")


@pytest.fixture
def job(tokens: TokenFolder, tmp_path: Path) -> TrainJob:
    batches = BatchesConfig(max_tokens=100, pool_examples=50, lanes=2)
    training = TrainingConfig(epochs=3)
    return TrainJob(tokens_folder=tokens.folder, out=str(tmp_path / "out"), batches=batches, training=training)


def test_a_weight_of_an_unknown_corpus_is_refused_before_anything_is_made(
    tokens: TokenFolder, job: TrainJob, monkeypatch: pytest.MonkeyPatch
):
    folder = replace(tokens, manifest=tokens.manifest | {"vocab_size": 300})
    monkeypatch.setattr(train_file, "open_tokens", lambda _: folder)
    with pytest.raises(InputError, match=r"batches\.weights\.c=2 .* there are: a, b"):
        train(replace(job, batches=BatchesConfig(weights={"c": 2.0})))
    assert not Path(job.out).exists()


def test_a_place_on_which_another_command_works_is_refused(
    tokens: TokenFolder, job: TrainJob, monkeypatch: pytest.MonkeyPatch
):
    folder = replace(tokens, manifest=tokens.manifest | {"vocab_size": 300})
    monkeypatch.setattr(train_file, "open_tokens", lambda _: folder)
    with Lock(job.out), pytest.raises(InputError, match=f"is worked on by process {os.getpid()}"):
        train(job)
    assert not [*Path(job.out).iterdir()], "nothing was made, and the lock is released"


def test_what_was_trained_before_is_only_overwritten_once_nothing_stands_in_the_way(
    tokens: TokenFolder, job: TrainJob, monkeypatch: pytest.MonkeyPatch
):
    """Here the tokens' shards have no fingerprints that fit, as those of a damaged folder have not."""
    folder = replace(tokens, manifest=tokens.manifest | {"vocab_size": 300})
    monkeypatch.setattr(train_file, "open_tokens", lambda _: folder)
    monkeypatch.setattr(TokenFolder, "max_length", 128)
    Path(tokens.folder, "tokenizer.json").write_text("{}")
    ledger = open_ledger(job.out, made_from(job, tokens), overwrite=False)
    weights = Path(job.out, "best", "model.safetensors")
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    ledger.finish({})
    before = sorted((path, path.read_bytes()) for path in Path(job.out).rglob("*") if path.is_file())
    for change in ({"overwrite": True}, {"allow_change": ["training.epochs"]}):
        other = replace(job, training=TrainingConfig(epochs=9), **change)
        with pytest.raises(InputError, match="tokenize"):
            train(other)
        after = sorted((path, path.read_bytes()) for path in Path(job.out).rglob("*") if path.is_file())
        assert after == before


def steps_of(job: TrainJob, tokens: TokenFolder) -> int:
    return count_steps(job.training, count_epoch(tokens, job.batches))


@pytest.mark.parametrize("weights", [{}, {"a": 0.5, "b": 3.0}])
def test_steps_are_those_of_the_first_epoch_times_the_epochs(
    tokens: TokenFolder, job: TrainJob, weights: dict[str, float]
):
    config = replace(job.batches, weights=weights)
    stage, pools = PoolLanes(tokens, config, Cursor()), plan_pools(mix_shards(tokens, config), config, 0)
    lanes = [next(stage.lanes(0, pool, is_last=False)) for pool in pools]
    first_epoch = sum(len(lane["rows"][0]) for lane in lanes)
    assert steps_of(replace(job, batches=config), tokens) == 3 * first_epoch
    assert steps_of(replace(job, training=TrainingConfig(epochs=3, max_steps=2)), tokens) == 2
    by_tokens = TrainingConfig(epochs=3, token_budget=2 * count_epoch(tokens, config).target_tokens)
    assert steps_of(replace(job, batches=config, training=by_tokens), tokens) == 2 * first_epoch


def test_steps_with_bpe_dropout_are_counted_by_how_much_longer_it_makes_pairs(
    tokens: TokenFolder, job: TrainJob, monkeypatch: pytest.MonkeyPatch
):
    class Doubling:
        def resegment(self, values: np.ndarray, offsets: np.ndarray, rate: float, seed: list[int]):
            return np.repeat(values, 2), 2 * offsets

    monkeypatch.setattr(pool_module, "BpeDropout", lambda tokenizer: Doubling())
    monkeypatch.setattr(TokenFolder, "tokenizer", None)
    longer = replace(tokens, manifest=tokens.manifest | {"made_from": {"tokens": {"max_length": 99}}})
    steps = steps_of(replace(job, batches=replace(job.batches, bpe_dropout=0.5)), longer)
    assert 1.6 < steps / steps_of(job, tokens) < 2.4


def test_the_mixture_is_logged_where_there_is_one(tokens: TokenFolder, job: TrainJob, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        log_mixture(mix_shards(tokens, job.batches))
        assert not caplog.messages
        log_mixture(mix_shards(tokens, BatchesConfig(weights={"b": 2.5})))
    assert caplog.messages == ["an epoch sees a: 60 pairs x 1; b: 30 pairs x 2.5"]


@pytest.mark.parametrize(("warmup", "is_warned"), [(0, False), (50, False), (51, True)])
def test_people_are_told_where_the_warm_up_is_longer_than_the_training(
    tokens: TokenFolder,
    job: TrainJob,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    warmup: int,
    is_warned: bool,
):
    folder = replace(tokens, manifest=tokens.manifest | {"vocab_size": 300})
    monkeypatch.setattr(train_file, "open_tokens", lambda _: folder)
    monkeypatch.setattr("tfray.training.dry_run.report_dry_run", lambda *_: "report")
    training = TrainingConfig(epochs=99, max_steps=50, warmup_steps=warmup)
    assert train(replace(job, training=training, dry_run=True)) == "report"
    told = f"training.warmup_steps={warmup}, and there are about 50 steps: the learning rate never reaches"
    assert (told in caplog.text) == is_warned


@pytest.mark.parametrize("change", [{"weights": {"a": 2.0}}, {"temperature": 5.0}, {"bpe_dropout": 0.1}])
def test_another_mixture_is_another_training(tokens: TokenFolder, job: TrainJob, change: dict):
    assert made_from(job, tokens) != made_from(replace(job, batches=replace(job.batches, **change)), tokens)


def test_another_weight_of_a_corpus_is_another_training_unless_the_job_has_its_own(tokens: TokenFolder, job: TrainJob):
    names = [*tokens.weights]
    other = replace(tokens, manifest=tokens.manifest | {"weights": {name: 8.0 for name in names}})
    assert other.fingerprint == tokens.fingerprint, "the shards are the same"
    assert made_from(job, other).keys() - made_from(job, tokens).keys() == {f"corpus.parts.{n}.weight" for n in names}
    own = replace(job, batches=replace(job.batches, weights=dict.fromkeys(names, 2.0)))
    assert made_from(own, other) == made_from(own, tokens)
