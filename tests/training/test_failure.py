"""A step that is not finite: the guilty lane is found, named, and dumped so that it can be computed again."""

from __future__ import annotations

import math
import multiprocessing
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist

from tfray import storage
from tfray.batches.feed import FeedStep, PoolLanes, read_feed
from tfray.batches.order import Cursor
from tfray.batches.origin import find_origins
from tfray.batches.plan import plan_pools
from tfray.batches.pool import mix_shards
from tfray.config import BatchesConfig, TrainingConfig, TrainJob, WorkerRange
from tfray.model.architecture import Architecture
from tfray.model.transformer import Transformer
from tfray.tokens.shards import TokenFolder
from tfray.training import failure
from tfray.training.failure import (
    FAILURE,
    LaneBatch,
    NonFiniteStep,
    compute,
    reproduce,
    stop_training,
    training_config,
)
from tfray.training.replicated import Replicated

POISON = 77
"""A token of one example alone."""
LANES = 3
SEEDS = [5, 6, 7]
ARCHITECTURE = Architecture(
    d_model=16, num_heads=2, d_ff=24, encoder_layers=1, decoder_layers=1, vocab_size=80, max_length=40, dropout=0.2
)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, write_tokens: Callable[..., TokenFolder]) -> TokenFolder:
    random = np.random.default_rng(1)

    def ids() -> list[int]:
        return random.integers(3, POISON, random.integers(2, 9)).tolist()

    shards = [("a", [(ids(), ids()) for _ in range(30)]) for _ in range(2)]
    shards[1][1][17] = ([POISON, 4, 5], [6, 7])
    return write_tokens(str(tmp_path_factory.mktemp("tokens")), shards, vocab_size=80)


@pytest.fixture
def job(tokens: TokenFolder, tmp_path: Path) -> TrainJob:
    batches = BatchesConfig(max_tokens=40, lanes=LANES, pool_examples=100)
    training = TrainingConfig(workers=WorkerRange(min=1, max=3), r_drop=0.0, ema_decay=0.9)
    return TrainJob(tokens_folder=tokens.folder, out=str(tmp_path), batches=batches, training=training)


def poisoned_state(job: TrainJob, dtype: torch.dtype = torch.float32, poison: float = math.nan) -> Replicated:
    """Return a state with an embedding that is not a number for one token alone."""
    torch.manual_seed(0)
    transformer = Transformer(ARCHITECTURE)
    with torch.no_grad():
        transformer.embedding.tokens.weight[POISON] = poison
    state = Replicated(transformer, job.training, dtype)
    state.model.train()
    return state


def poisoned_step(tokens: TokenFolder, config: BatchesConfig) -> tuple[FeedStep, int]:
    """Return the step with the token, and its lane."""
    pools = plan_pools(mix_shards(tokens, config), config, 0)
    lanes = PoolLanes(tokens, config, Cursor()).lanes(0, pools[0], is_last=True)
    rows = [pa.Table.from_batches([lane]) for lane in lanes]
    for step in read_feed(iter(rows), list(range(LANES)), Cursor()):
        for lane, batch in enumerate(step.micro_batches):
            if (batch.source_ids == POISON).any():
                return step, lane
    raise AssertionError


def own_lanes(step: FeedStep) -> list[LaneBatch]:
    return [LaneBatch(*lane) for lane in zip(range(LANES), SEEDS, step.micro_batches, strict=True)]


def hide_poison_from_the_output(state: Replicated) -> None:
    """The embedding is the output layer too: there its NaN would reach every lane."""
    transformer = state.model.transformer
    weight = transformer.output_weight.detach().clone()
    weight[POISON] = 0
    transformer.__class__ = type("Untied", (Transformer,), {"output_weight": property(lambda self: weight)})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_guilty_lane_is_named_with_its_examples_and_dumped(job: TrainJob, tokens: TokenFolder, dtype: str):
    state = poisoned_state(job, getattr(torch, dtype))
    hide_poison_from_the_output(state)
    step, lane = poisoned_step(tokens, job.batches)
    with pytest.raises(NonFiniteStep, match=rf"stopped at step 123 .*that of lane {lane}, with loss nan") as error:
        stop_training(state, own_lanes(step), 123, step.cursor, job, tokens, dtype)
    origins = find_origins(tokens, job.batches, *step.cursor, lane)
    assert ("1.parquet", 17) in [(origin.shard, origin.shard_row) for origin in origins]
    assert f"{origins[0].shard} row {origins[0].shard_row} (file, row {origins[0].row})" in str(error.value)
    report = storage.read_json(f"{job.out}/{FAILURE}/failure.json")
    assert (report["step"], report["lane"], report["seed"]) == (123, lane, SEEDS[lane])
    assert report["examples"] == [origin._asdict() for origin in origins]
    assert math.isnan(reproduce(f"{job.out}/{FAILURE}").loss)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_reproduced_is_what_was_computed_dropout_included(job: TrainJob, tokens: TokenFolder, dtype: str):
    state = poisoned_state(job, getattr(torch, dtype), poison=0.5)
    step, _ = poisoned_step(tokens, job.batches)
    outcomes = [compute(state, lane) for lane in own_lanes(step)]
    largest = max(range(LANES), key=lambda lane: outcomes[lane].gradient_norm)
    with pytest.raises(NonFiniteStep, match=rf"no lane by itself.*lane {largest}, "):
        stop_training(state, own_lanes(step), 0, step.cursor, job, tokens, dtype)
    assert reproduce(f"{job.out}/{FAILURE}") == outcomes[largest]
    other_seed = own_lanes(step)[largest]._replace(seed=99)
    assert compute(state, other_seed) != outcomes[largest]


def test_the_message_says_how_to_compute_it_again_and_that_works(job: TrainJob, tokens: TokenFolder):
    step, _ = poisoned_step(tokens, job.batches)
    with pytest.raises(NonFiniteStep) as error:
        stop_training(poisoned_state(job), own_lanes(step), 0, step.cursor, job, tokens, "float32")
    command = re.search(r"python -c '(.*)' computes it again", str(error.value))
    assert command
    found = subprocess.run([sys.executable, "-c", command[1]], capture_output=True, text=True, check=True)
    assert found.stdout.startswith("Outcome(loss=nan, gradient_norm=nan")


def test_settings_come_back_from_json_as_they_were(job: TrainJob, tokens: TokenFolder):
    step, _ = poisoned_step(tokens, job.batches)
    with pytest.raises(NonFiniteStep):
        stop_training(poisoned_state(job), own_lanes(step), 0, step.cursor, job, tokens, "float32")
    assert training_config(storage.read_json(f"{job.out}/{FAILURE}/failure.json")["training"]) == job.training


def test_a_dump_that_cannot_be_written_is_not_said_to_be_there(
    job: TrainJob, tokens: TokenFolder, monkeypatch: pytest.MonkeyPatch
):
    def be_full(*dump: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(failure, "write_dump", be_full)
    step, _ = poisoned_step(tokens, job.batches)
    with pytest.raises(NonFiniteStep, match=r"could not be written .*No space left") as error:
        stop_training(poisoned_state(job), own_lanes(step), 0, step.cursor, job, tokens, "float32")
    assert "reproduce(" not in str(error.value)


def fail_as_one_of_two(rank: int, job: TrainJob, tokens: TokenFolder, meeting: str, messages: multiprocessing.Queue):
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    step, _ = poisoned_step(tokens, job.batches)
    state = poisoned_state(job)
    hide_poison_from_the_output(state)
    write, failure.write_dump = failure.write_dump, lambda *dump: (time.sleep(1), write(*dump))
    try:
        stop_training(state, own_lanes(step)[rank::2][:1], 4, step.cursor, job, tokens, "float32")
    except NonFiniteStep as error:
        is_dumped = storage.exists(f"{job.out}/{FAILURE}/failure.json")
        messages.put((str(error), is_dumped))
    dist.destroy_process_group()


def test_every_worker_raises_the_same_whosever_lane_it_was(job: TrainJob, tokens: TokenFolder, tmp_path: Path):
    _, lane = poisoned_step(tokens, job.batches)
    assert lane < 2, "the two workers have lanes 0 and 1 here"
    context = multiprocessing.get_context("fork")
    messages = context.Queue()
    arguments = (job, tokens, str(tmp_path / "meeting"), messages)
    workers = [context.Process(target=fail_as_one_of_two, args=(rank, *arguments)) for rank in range(2)]
    for worker in workers:
        worker.start()
    first, second = (messages.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join()
    assert first == second and f"that of lane {lane}, with loss nan" in first[0]
    assert first[1], "the first that raises ends all: what it says is there must be there"
    assert math.isnan(reproduce(f"{job.out}/{FAILURE}").loss)
