"""Validation: all pairs for the loss, some for decoding, the same whoever decodes, and training does not notice."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tfray import storage
from tfray.batches.batch import collate
from tfray.batches.pool import Pairs, read_shards
from tfray.config import GenerationConfig, TokensConfig, TrainingConfig
from tfray.generation.generate import generate
from tfray.model.architecture import Architecture
from tfray.model.transformer import Transformer
from tfray.tokens.shards import TokenFolder
from tfray.tokens.special import BOS_ID, EOS_ID, PAD_ID
from tfray.tokens.tokenizer import TOKENIZER, Tokenizer, train_tokenizer
from tfray.training import validation as validation_file
from tfray.training.replicated import Replicated
from tfray.training.step import train_step
from tfray.training.validation import (
    POLLED,
    Decoder,
    Finding,
    Validation,
    Weights,
    choose_pairs,
    gather,
    read_validation,
    validation_loss,
)

CPU = torch.device("cpu")
WORDS = "one two three four five six seven eight nine ten".split()
CONFIG = TrainingConfig(precision="fp32", learning_rate=3e-3, ema_decay=0.5)


def some_pairs(count: int) -> list[tuple[list[int], list[int]]]:
    random = np.random.default_rng(2)
    return [tuple(random.integers(3, 900, random.integers(1, 9)).tolist() for _ in "st") for _ in range(count)]  # type: ignore[misc]


def architecture_for(tokenizer: Tokenizer, dropout: float = 0.1) -> Architecture:
    return Architecture(
        d_model=32,
        num_heads=2,
        d_ff=48,
        encoder_layers=1,
        decoder_layers=1,
        vocab_size=tokenizer.vocab_size,
        max_length=32,
        dropout=dropout,
    )


def random_weights(architecture: Architecture) -> Weights:
    """Return weights that make lively targets: large embeddings."""
    torch.manual_seed(5)
    model = Transformer(architecture)
    with torch.no_grad():
        model.embedding.tokens.weight.mul_(8)
        model.embedding.tokens.weight[PAD_ID] = 0
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def write_words(
    folder: Path, write_tokens: Any, labels: list[str] | None = None, weights_say: bool = False, pairs: int = 23
) -> TokenFolder:
    """Write validation pairs of words; with `weights_say`, the targets are what random_weights predict."""
    tokenizer = train_tokenizer([" ".join(WORDS)] * 3, TokensConfig(vocab_size=330), labels or [])
    random = np.random.default_rng(3)
    texts = [" ".join(random.choice(WORDS, random.integers(1, 7))) for _ in range(2 * pairs)]
    sources, targets = tokenizer.encode_batch(texts[:pairs]), tokenizer.encode_batch(texts[pairs:])
    if labels:
        targets = [[tokenizer.label_ids[labels[row % len(labels)]]] for row in range(pairs)]
    if weights_say:
        architecture = architecture_for(tokenizer)
        model = Transformer(architecture)
        model.load_state_dict(random_weights(architecture))
        search = GenerationConfig(beam_size=1, precision="fp32")
        found = generate(model.eval(), [[*source, EOS_ID] for source in sources], search)
        targets = [output.best.ids for output in found]
    shards = [("valid", list(zip(sources, targets, strict=True))[start : start + 10]) for start in range(0, pairs, 10)]
    storage.publish_text(str(folder / TOKENIZER), tokenizer.json)
    task = "classification" if labels else "translation"
    return write_tokens(str(folder), shards, split="valid", vocab_size=tokenizer.vocab_size, task=task)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, write_tokens: Any) -> TokenFolder:
    return write_words(tmp_path_factory.mktemp("words"), write_tokens)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_share_out_every_validation_pair_once(tmp_path: Path, write_tokens, workers: int):
    pairs = some_pairs(50)
    tokens = write_tokens(str(tmp_path), [("valid", pairs[:20]), ("valid", pairs[20:])], split="valid")
    found = []
    for rank in range(workers):
        for batch in read_validation(tokens, 60, rank, workers):
            rows = zip(batch.source_ids.tolist(), batch.label_ids.tolist(), strict=True)
            found += [tuple([t for t in ids if t not in (PAD_ID, BOS_ID, EOS_ID)] for ids in row) for row in rows]
    assert sorted(row for row in found if row[1]) == sorted(pairs)


@pytest.mark.parametrize("pairs", [1, 50])
def test_workers_have_equally_many_micro_batches_and_those_that_fill_up_count_nothing(
    tmp_path: Path, write_tokens, pairs: int
):
    shard = ("valid", [([5] * (1 + row % 9), [6]) for row in range(pairs)])
    tokens = write_tokens(str(tmp_path), [shard, shard], "valid")
    alone = list(read_validation(tokens, 60, 0, 1))
    shares = [list(read_validation(tokens, 60, rank, 4)) for rank in range(4)]
    assert {len(share) for share in shares} == {2 * -(-len(alone) // 8)}
    assert len(alone) % 8, "one of them has to fill up"
    target_tokens = [batch.target_tokens for share in shares for batch in share]
    assert sum(target_tokens) == sum(batch.target_tokens for batch in alone)
    assert target_tokens.count(0) == sum(map(len, shares)) - len(alone)


def test_without_validation_shards_there_are_no_batches(tmp_path: Path, write_tokens):
    tokens = write_tokens(str(tmp_path), [("a", [([5], [6])])])
    assert list(read_validation(tokens, 60, 0, 1)) == []


def test_one_shard_is_held_at_a_time(tmp_path: Path, write_tokens, monkeypatch: pytest.MonkeyPatch):
    tokens = write_tokens(str(tmp_path), [("a", some_pairs(20))] * 3, split="valid")
    read: list[str] = []

    def read_one(paths: list[str]) -> Pairs:
        (path,) = paths
        read.append(path)
        return read_shards(paths)

    monkeypatch.setattr(validation_file, "read_shards", read_one)
    batches = read_validation(tokens, 60, 0, 1)
    next(batches)
    assert read == tokens.paths("valid")[:1]
    list(batches)
    assert read == tokens.paths("valid")


@given(st.integers(1, 60))
def test_decoded_pairs_are_spread_evenly_over_all_shards(
    tmp_path_factory: pytest.TempPathFactory, write_tokens, limit: int
):
    pairs = some_pairs(50)
    folder = str(tmp_path_factory.mktemp("valid"))
    tokens = write_tokens(folder, [("a", pairs[:3]), ("a", pairs[3:35]), ("b", pairs[35:])], split="valid")
    sources, targets = choose_pairs(tokens, limit)
    found = [(source[:-1], target) for source, target in zip(sources, targets, strict=True)]
    places = [pairs.index(pair) for pair in found]
    assert len(places) == min(limit, 50)
    gaps = np.diff([*places, 50])
    assert places[0] == 0 and gaps.max() - gaps.min() <= 1


def test_a_model_that_says_the_references_gets_full_marks(tmp_path: Path, write_tokens):
    tokens = write_words(tmp_path, write_tokens, weights_say=True)
    architecture = architecture_for(tokens.tokenizer)
    decoder = Decoder(tokens, architecture, CONFIG, CPU)
    assert any(decoder.references)
    weights = random_weights(architecture)
    assert decoder.decode(weights) == decoder.references
    assert decoder.scores(decoder.references)["chrf"] == pytest.approx(100.0)
    other = {name: weight.flip(0) for name, weight in weights.items()}
    assert decoder.scores(decoder.decode(other))["chrf"] < 90


def test_accuracy_is_the_share_of_labels_that_are_the_most_probable(tmp_path: Path, write_tokens):
    labels = ["bad", "good", "so so"]
    tokens = write_words(tmp_path, write_tokens, labels)
    architecture = architecture_for(tokens.tokenizer, dropout=0.0)
    weights = random_weights(architecture)
    decoder = Decoder(tokens, architecture, CONFIG, CPU)
    model = Transformer(architecture).eval()
    model.load_state_dict(weights)
    hits = 0
    for row, source in enumerate(decoder.sources):
        logits = model(torch.tensor([source]), torch.tensor([[BOS_ID]]))[0, 0].detach()
        best = max(decoder.tokenizer.label_ids.items(), key=lambda label: float(logits[label[1]]))[0]
        hits += best == labels[row % 3]
    assert decoder.references == [labels[row % 3] for row in range(len(decoder.sources))]
    assert decoder.scores(decoder.decode(weights)) == {"accuracy": hits / len(decoder.sources)}


@pytest.mark.parametrize("workers", [1, 2, 5, 30])
def test_shares_of_any_number_of_workers_make_up_the_predictions_of_one(words: TokenFolder, workers: int, monkeypatch):
    architecture = architecture_for(words.tokenizer)
    decoder, weights = Decoder(words, architecture, CONFIG, CPU), random_weights(architecture)
    shares = [decoder.decode(weights, rank, workers) for rank in range(workers)]

    def all_gather_object(found: list, mine: list) -> None:
        found[:] = shares

    monkeypatch.setattr("tfray.training.workers.world_size", lambda: workers)
    monkeypatch.setattr(dist, "all_gather_object", all_gather_object)
    assert gather(shares[0]) == decoder.decode(weights)


def train(tokens: TokenFolder, precision: torch.dtype, validation: str, steps: int = 6) -> tuple[list, Tensor, Tensor]:
    """Return losses, weights and the state of the random numbers after training on the validation pairs."""
    torch.manual_seed(7)
    architecture = architecture_for(tokens.tokenizer)
    state = Replicated(Transformer(architecture), CONFIG, precision)
    state.model.train()
    source, target = read_shards(tokens.paths("valid"))
    batches = [collate(source.take(rows), target.take(rows)) for rows in (np.arange(8), np.arange(8, 20))]
    beside = Beside() if validation == "beside" else None
    config = TrainingConfig(precision="fp32", valid_rows=0 if validation == "loss alone" else 10)
    validate = Validation(tokens, architecture, config, 200, CPU, 0, beside is not None, beside)
    metrics = []
    for step in range(steps):
        metrics.append(train_step(state, batches, [11 + step, 99 + step], 1e-3, CONFIG))
        if validation != "none":
            validate.validate(state, step)
            validate.poll()
    return metrics, state.master.clone(), torch.get_rng_state()


class Beside:
    """A validator that answers at the end, when it is asked for the second time."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, Weights]] = []
        self.polls = 0

    @property
    def awaited(self) -> int | None:
        return self.asked[-1][0] if self.asked else None

    def offer(self, step: int, weights: Weights) -> None:
        self.asked.append((step, weights))

    def poll(self, seconds: float) -> list[Finding]:
        self.polls += bool(seconds)
        if self.polls < 2:
            return []
        found = [Finding(step, {"bleu": float(step)}, weights, 0.5) for step, weights in self.asked]
        self.asked = []
        return found


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("validation", ["loss alone", "here", "beside"])
def test_training_is_bit_equal_with_and_without_validation(words: TokenFolder, precision: torch.dtype, validation: str):
    metrics, weights, random = train(words, precision, "none")
    other, other_weights, other_random = train(words, precision, validation)
    assert other == metrics
    assert torch.equal(weights, other_weights) and torch.equal(random, other_random)


def test_what_is_found_is_of_the_averaged_weights(words: TokenFolder):
    architecture = architecture_for(words.tokenizer)
    state = Replicated(Transformer(architecture), CONFIG, torch.float32)
    source, target = read_shards(words.paths("valid"))
    for _ in range(3):
        train_step(state, [collate(source, target)], [1], 1e-2, CONFIG)
    (finding,) = Validation(words, architecture, CONFIG, 200, CPU, 0).validate(state, 3)
    model = Transformer(architecture)
    model.load_state_dict(finding.weights)
    averaged = Replicated(model, CONFIG, torch.float32)
    loss = validation_loss(averaged.model, read_validation(words, 200, 0, 1), CPU)
    assert finding.metrics["loss"] == pytest.approx(loss, rel=1e-6)
    assert not torch.equal(averaged.master, state.master)
    decoder = Decoder(words, architecture, CONFIG, CPU)
    scores = decoder.scores(decoder.decode(finding.weights))
    assert {name: finding.metrics[name] for name in ("bleu", "chrf")} == scores


def test_scores_from_beside_are_of_the_step_and_weights_that_were_asked_about(words: TokenFolder):
    architecture = architecture_for(words.tokenizer)
    state = Replicated(Transformer(architecture), CONFIG, torch.float32)
    validation = Validation(words, architecture, CONFIG, 200, CPU, 0, True, Beside())
    (finding,) = validation.validate(state, 40)
    assert set(finding.metrics) == {"loss", "perplexity"}
    source, target = read_shards(words.paths("valid"))
    train_step(state, [collate(source, target)], [1], 1e-2, CONFIG)
    assert validation.poll() == []
    (late,) = validation.finish()
    assert (late.step, late.metrics) == (40, {"bleu": 40.0})
    assert all(torch.equal(late.weights[name], weight) for name, weight in finding.weights.items())


def test_without_validation_data_nothing_is_found_but_the_weights(tmp_path: Path, write_tokens):
    tokens = write_tokens(str(tmp_path), [("a", [([5], [6])])])
    architecture = Architecture(d_model=8, num_heads=2, d_ff=8, encoder_layers=1, decoder_layers=1, vocab_size=1000)
    state = Replicated(Transformer(architecture), CONFIG, torch.float32)
    (finding,) = Validation(tokens, architecture, CONFIG, 60, CPU, 0).validate(state, 5)
    assert finding.metrics == {} and finding.weights


def test_workers_ask_what_was_found_at_the_same_calls_and_not_at_each(words: TokenFolder, monkeypatch):
    architecture = architecture_for(words.tokenizer)
    beside, asked = Beside(), []
    monkeypatch.setattr(beside, "poll", lambda seconds: asked.append(seconds) or [])
    validation = Validation(words, architecture, CONFIG, 60, CPU, 0, True, beside)
    for _ in range(2 * POLLED + 1):
        validation.poll()
    assert asked == [], "nothing is awaited"
    validation.score(Replicated(Transformer(architecture), CONFIG, torch.float32), 7)
    for _ in range(2 * POLLED + 1):
        validation.poll()
    assert asked == [0.0, 0.0]


class Wanted(Exception):
    """Somebody wants the worker to end."""


@pytest.mark.parametrize("looks", range(4))
def test_validation_is_left_in_the_middle_and_training_goes_on_as_if_it_had_not_begun(
    words: TokenFolder, looks: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(validation_file, "DECODED_AT_ONCE", 10)
    architecture = architecture_for(words.tokenizer)
    state = Replicated(Transformer(architecture), CONFIG, torch.float32)
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    left = looks

    def between() -> None:
        nonlocal left
        if left == 0:
            raise Wanted
        left -= 1

    validation = Validation(words, architecture, CONFIG, 10_000, CPU, 0, between=between)
    with pytest.raises(Wanted):
        validation.validate(state, 3)
    assert state.model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.tensors().items())
    left = 1000
    (again,) = validation.validate(state, 3)
    (whole,) = Validation(words, architecture, CONFIG, 10_000, CPU, 0).validate(state, 3)
    assert again.metrics == whole.metrics


def test_the_end_is_not_waited_for_where_somebody_wants_the_worker_to_end(words: TokenFolder):
    architecture = architecture_for(words.tokenizer)
    state = Replicated(Transformer(architecture), CONFIG, torch.float32)

    def between() -> None:
        if is_wanted:
            raise Wanted

    is_wanted = False
    validation = Validation(words, architecture, CONFIG, 60, CPU, 0, True, Beside(), between)
    validation.validate(state, 4)
    is_wanted = True
    with pytest.raises(Wanted):
        list(validation.finish())
    assert validation.awaited == 4, "whoever goes on from here asks again"
    other = Validation(words, architecture, CONFIG, 60, CPU, 0, True, Beside())
    assert other.score(state, 4) == []
    (late,) = other.finish()
    assert (late.step, late.metrics, other.awaited) == (4, {"bleu": 4.0}, None)


def validate_in_group(rank: int, folder: str, manifest: dict, port: str, results: str) -> None:
    """Validate as one of two workers, here and beside, and write down what was found."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    tokens = TokenFolder(folder, manifest)
    architecture = architecture_for(tokens.tokenizer)
    model = Transformer(architecture)
    model.load_state_dict(random_weights(architecture))
    state = Replicated(model, CONFIG, torch.float32)
    here = Validation(tokens, architecture, CONFIG, 60, CPU, rank).validate(state, 3)
    beside = Validation(tokens, architecture, CONFIG, 60, CPU, rank, True, Beside() if rank == 0 else None)
    beside.validate(state, 8)
    found = [*here, *beside.poll(), *beside.finish()]
    torch.save([(one.step, one.metrics, len(one.weights)) for one in found], f"{results}/{rank}")
    dist.destroy_process_group()


def test_two_workers_find_what_one_finds_and_both_know_it(words: TokenFolder, tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    arguments = (words.folder, words.manifest, str(29_500 + os.getpid() % 2000), str(tmp_path))
    processes = [context.Process(target=validate_in_group, args=(rank, *arguments)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    first, second = (torch.load(tmp_path / str(rank)) for rank in (0, 1))
    assert [part[:2] for part in first] == [part[:2] for part in second]
    assert first[1][:2] == (8, {"bleu": 8.0})
    assert [part[2] > 0 for part in first] == [True, True] and [part[2] for part in second] == [0, 0]
    architecture = architecture_for(words.tokenizer)
    model = Transformer(architecture)
    model.load_state_dict(random_weights(architecture))
    (alone,) = Validation(words, architecture, CONFIG, 60, CPU, 0).validate(Replicated(model, CONFIG, torch.float32), 3)
    assert first[0][1] == pytest.approx(alone.metrics, rel=1e-6)
