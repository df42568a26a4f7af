"""The jobs end to end through a real Ray on this machine, as a user starts them."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

pytestmark = pytest.mark.ray
SMALL = [
    "--model.preset=tiny",
    "--model.d_model=64",
    "--model.num_heads=2",
    "--model.d_ff=128",
    "--tokens.vocab_size=320",
    "--batches.max_tokens=1024",
    "--training.warmup_steps=20",
    "--training.validate_every=20",
    "--training.checkpoint_every=10",
    "--training.log_every=10",
    "--generation.beam_size=2",
]
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def write_digits(path: Path, rows: int, seed: int) -> None:
    """Write pairs of digits in words and in figures, with a column that must pass through."""
    generator = random.Random(seed)
    numbers = [[generator.randrange(10) for _ in range(generator.randrange(1, 7))] for _ in range(rows)]
    table = pa.table(
        {
            "source": [" ".join(DIGITS[n] for n in number) for number in numbers],
            "target": ["".join(map(str, number)) for number in numbers],
            "position": pa.array(range(rows), pa.int16()),
        }
    )
    pq.write_table(table, path, row_group_size=100)


def write_reviews(path: Path, rows: int, seed: int) -> None:
    """Write texts with a label that one word decides."""
    generator = random.Random(seed)
    labels = [generator.randrange(2) for _ in range(rows)]
    words = {0: ["dreadful", "dull"], 1: ["lovely", "bright"]}
    texts = [f"a {generator.choice(words[label])} film of {generator.randrange(99)} minutes" for label in labels]
    pq.write_table(pa.table({"text": texts, "label": labels}), path)


def tfray(*arguments: object, timeout: int = 240) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    command = [sys.executable, "-m", "tfray.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def start(*arguments: object, log: Path) -> subprocess.Popen[bytes]:
    """Start the command in a process group of its own."""
    command = [sys.executable, "-m", "tfray.cli", *map(str, arguments)]
    with log.open("wb") as output:
        return subprocess.Popen(
            command, stdout=output, stderr=output, start_new_session=True, preexec_fn=hear_interrupts
        )


def hear_interrupts() -> None:
    """Undo what a shell does to commands in the background: they are deaf to Ctrl-C, and so are their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(condition, process: subprocess.Popen[bytes], log: Path, seconds: float = 200) -> None:
    """Wait until a condition holds, while a process runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train, valid and test files of digits."""
    folder = tmp_path_factory.mktemp("digits")
    for name, rows, seed in (("train", 3000, 1), ("valid", 100, 2), ("test", 400, 3)):
        write_digits(folder / f"{name}.parquet", rows, seed)
    return folder


@pytest.fixture(scope="module")
def run_arguments(digits: Path) -> list[object]:
    """The arguments of the whole job on the digits."""
    return [
        "run",
        *("--corpus.train", digits / "train.parquet", "--corpus.valid", digits / "valid.parquet"),
        *("--test", digits / "test.parquet", "--training.epochs", 20, "--training.learning_rate", 3e-3),
        *("--batches.lanes", 2, "--training.workers", 2, "--out", digits / "run", *SMALL),
    ]


@pytest.fixture(scope="module")
def whole_run(run_arguments: list[object]) -> subprocess.CompletedProcess[str]:
    """The whole job, once for this module."""
    return tfray(*run_arguments)


def test_raw_text_becomes_a_trained_model_and_scored_parquet(
    whole_run: subprocess.CompletedProcess[str], digits: Path
) -> None:
    assert whole_run.returncode == 0, whole_run.stderr
    predicted = pq.read_table(digits / "run" / "predictions")
    given = pq.read_table(digits / "test.parquet")
    assert predicted.select(given.column_names).equals(given), "input columns, types and order are kept"
    assert predicted["error"].null_count == 400 and predicted["error"].type == pa.string()
    scores = json.loads((digits / "run" / "predictions" / "_scores.json").read_text())
    assert scores["exact_match"] > 0.5, "the model has learned to spell digits"
    assert "BLEU" in whole_run.stdout
    assert (digits / "run" / "training" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_what_made_an_output_is_stored_beside_it(whole_run: subprocess.CompletedProcess[str], digits: Path) -> None:
    assert whole_run.returncode == 0
    for stage in ("tokens", "training", "predictions"):
        stored = yaml.safe_load((digits / "run" / stage / "_config.yaml").read_text())
        assert stored["out"].endswith(stage)
    trained = yaml.safe_load((digits / "run" / "training" / "_config.yaml").read_text())
    assert trained["training"]["learning_rate"] == 3e-3


def test_a_user_is_told_what_matters_and_nothing_of_rays_inside(
    whole_run: subprocess.CompletedProcess[str],
) -> None:
    assert "target tokens/s" in whole_run.stderr and "left" in whole_run.stderr
    for noise in ("Warning", "WARNING", "Traceback", "core_worker", "deprecat"):
        assert noise not in whole_run.stderr, whole_run.stderr


def test_a_second_run_does_nothing_again(
    whole_run: subprocess.CompletedProcess[str], run_arguments: list[object], digits: Path
) -> None:
    weights = digits / "run" / "training" / "best" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    again = tfray(*run_arguments)
    assert again.returncode == 0
    assert again.stdout == whole_run.stdout
    assert again.stderr.count("finished and unchanged") == 3
    assert weights.stat().st_mtime_ns == before


def test_the_mean_of_checkpoints_that_is_wanted_afterwards_is_written_without_a_step(
    whole_run: subprocess.CompletedProcess[str], run_arguments: list[object], digits: Path
) -> None:
    for finished in (2, 3):
        wanted = tfray(*run_arguments, "--training.average_checkpoints", 2)
        assert wanted.returncode == 0 and wanted.stderr.count("finished and unchanged") == finished, wanted.stderr
        assert "source +" not in wanted.stderr, "no step is taken"
        assert (digits / "run" / "training" / "average" / "model.safetensors").exists()


def test_a_changed_setting_is_refused_by_its_name(
    whole_run: subprocess.CompletedProcess[str], run_arguments: list[object]
) -> None:
    changed = tfray(*run_arguments, "--model.dropout", 0.2)
    assert changed.returncode == 2
    assert "model.dropout was 0.1, is now 0.2" in changed.stderr


def training_workers(process: subprocess.Popen[bytes]) -> list[int]:
    """Return the process ids of the training workers that a command of ours has started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            is_worker = (entry / "cmdline").read_bytes().startswith(b"ray::RayTrainWorker")
            if is_worker and os.getsid(int(entry.name)) == process.pid:  # `start` makes a session of its own
                found.append(int(entry.name))
        except OSError:
            continue  # it has ended
    return found


def test_a_killed_worker_and_a_killed_command_cost_only_the_steps_since_the_last_checkpoint(
    whole_run: subprocess.CompletedProcess[str], digits: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "training", tmp_path / "log"
    arguments = [
        *("train", "--tokens_folder", digits / "run" / "tokens", "--out", out),
        *("--training.epochs", 20, "--training.learning_rate", 3e-3, "--batches.lanes", 2, "--training.workers", 2),
        *(flag for flag in SMALL if flag.startswith(("--model", "--batches", "--training"))),
    ]

    def events(name: str) -> list[dict]:
        lines = (out / "log.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == name]

    process = start(*arguments, log=log)
    wait_for(lambda: any(out.glob("checkpoints/*/state.json")), process, log)
    os.kill(training_workers(process)[0], signal.SIGKILL)
    wait_for(lambda: len(events("start")) == 2, process, log)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    ended = tfray(*arguments)
    assert ended.returncode == 0, ended.stderr
    starts = [event["step"] for event in events("start")]
    assert len(starts) == 3 and starts[0] == 0 and all(step > 0 and step % 10 == 0 for step in starts[1:])
    found, smooth = (
        json.loads((folder / "_manifest.json").read_text()) for folder in (out, digits / "run" / "training")
    )
    assert found["steps"] == smooth["steps"]
    assert found["best_score"] == pytest.approx(smooth["best_score"], rel=0.05)


def test_ctrl_c_ends_training_with_a_word_about_how_to_go_on(
    whole_run: subprocess.CompletedProcess[str], digits: Path, tmp_path: Path
) -> None:
    place = ["--tokens_folder", digits / "run" / "tokens", "--out", tmp_path / "out"]
    arguments = ["train", *place, *SMALL[:4], "--training.epochs", 1000]  # it is still at work when the second comes
    process = start(*arguments, "--training.log_every", 10, log=tmp_path / "log")
    wait_for(lambda: "source +" in (tmp_path / "log").read_text(), process, tmp_path / "log")
    second = tfray(*arguments)
    assert second.returncode == 2 and f"is worked on by process {process.pid}" in second.stderr
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert not (tmp_path / "out" / "_lock.json").exists()
    assert "the same command goes on" in (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_kill_after_the_last_step_costs_no_step(
    whole_run: subprocess.CompletedProcess[str], run_arguments: list[object], digits: Path
) -> None:
    training = digits / "run" / "training"
    (training / "_SUCCESS").unlink()
    shutil.rmtree(training / "last")
    again = tfray(*run_arguments)
    assert again.returncode == 0, again.stderr
    assert (training / "last" / "model.safetensors").exists() and (training / "_SUCCESS").exists()
    assert "source +" not in again.stderr, "no step is taken again"


def test_prediction_killed_and_started_again_misses_and_doubles_no_row(
    whole_run: subprocess.CompletedProcess[str], digits: Path, tmp_path: Path
) -> None:
    write_digits(tmp_path / "input.parquet", 6000, 4)
    out = tmp_path / "out"
    arguments = ["predict", "--model_folder", digits / "run" / "training" / "best", "--out", out]
    arguments += ["--input", tmp_path / "input.parquet", "--generation.beam_size", 4]
    process = start(*arguments, log=tmp_path / "log")
    wait_for(lambda: len(list(out.glob("part-*"))) >= 3, process, tmp_path / "log")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert not (out / "_SUCCESS").exists()
    again = tfray(*arguments)
    assert again.returncode == 0, again.stderr
    assert pq.read_table(out)["position"].to_pylist() == [row % 2**16 for row in range(6000)]
    kept = [path for path, changed in finished.items() if path.stat().st_mtime_ns == changed]
    assert len(kept) >= 3, "finished units are not done again"


def test_a_running_prediction_is_watched_guarded_and_ended_by_sigterm(
    whole_run: subprocess.CompletedProcess[str], digits: Path, tmp_path: Path
) -> None:
    write_digits(tmp_path / "input.parquet", 20_000, 5)
    out, log = tmp_path / "out", tmp_path / "log"
    arguments = ["predict", "--model_folder", digits / "run" / "training" / "best", "--out", out]
    arguments += ["--input", tmp_path / "input.parquet", "--inference.unit_rows", 200]
    arguments += ["--generation.batch_rows", 2]  # slow
    process = start(*arguments, log=log)
    wait_for(lambda: len(list(out.glob("part-*"))) >= 2, process, log)
    running = tfray("status", out)
    assert f"running (process {process.pid}" in running.stdout and "time left" in running.stdout
    second = tfray(*arguments)
    assert second.returncode == 2 and f"is worked on by process {process.pid}" in second.stderr
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert "the same command goes on" in log.read_text() and "Traceback" not in log.read_text()
    assert "stopped" in tfray("status", out).stdout
    assert not (out / "_SUCCESS").exists() and not (out / "_lock.json").exists()


def test_a_row_that_kills_its_process_is_found_through_rays_own_retries(
    whole_run: subprocess.CompletedProcess[str], digits: Path, tmp_path: Path
) -> None:
    write_digits(tmp_path / "input.parquet", 600, 6)
    table = pq.read_table(tmp_path / "input.parquet")
    sources = table["source"].to_pylist()
    sources[123] = "kill me"
    pq.write_table(table.set_column(0, "source", pa.array(sources)), tmp_path / "input.parquet")
    (tmp_path / "sitecustomize.py").write_text(DEADLY)
    out = tmp_path / "out"
    done = subprocess.run(
        [*(sys.executable, "-m", "tfray.cli", "predict", "--model_folder", digits / "run" / "training" / "best"),
         *("--input", tmp_path / "input.parquet", "--out", out, "--inference.unit_rows", "150")],
        capture_output=True, text=True, timeout=400, check=False,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(out).to_pylist()
    assert [row["source"] for row in rows] == sources
    assert [number for number, row in enumerate(rows) if row["error"]] == [123]
    assert rows[123]["error"].startswith("crashed") and "crashed" in done.stdout


DEADLY = """
import os, sys
if any("default_worker" in argument for argument in sys.orig_argv):
    import tfray.inference.search as search
    find = search.search_targets

    def search_targets(models, tokenizer, sources, config):
        if "kill me" in tokenizer.decode_batch([list(each.source)[:-1] for each in sources]):
            os.kill(os.getpid(), 9)
        return find(models, tokenizer, sources, config)

    search.search_targets = search_targets
"""


def test_classification_finds_labels_with_probabilities(tmp_path: Path) -> None:
    for name, rows, seed in (("train", 2000, 1), ("test", 200, 2)):
        write_reviews(tmp_path / f"{name}.parquet", rows, seed)
    done = tfray(
        *("run", "--corpus.train", tmp_path / "train.parquet", "--test", tmp_path / "test.parquet"),
        *("--corpus.label_names", '{"0": negative, "1": positive}', "--out", tmp_path / "out"),
        *("--training.epochs", 8, *SMALL),
    )
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "out" / "predictions" / "_scores.json").read_text())
    assert scores["accuracy"] > 0.95
    table = pq.read_table(tmp_path / "out" / "predictions")
    assert set(table["prediction"].to_pylist()) == {"negative", "positive"}
    assert all(0.5 <= score <= 1 for score in table["score"].to_pylist())


def test_a_job_over_broken_rows_ends_well_and_counts_them(
    whole_run: subprocess.CompletedProcess[str], digits: Path, tmp_path: Path
) -> None:
    good = [json.dumps({"id": n, "source": DIGITS[n % 10]}) for n in range(100)]
    bad = [
        '{"source": 3}',
        "not json",
        "",
        '{"id": 7}',
        '{"source": null}',
        '{"source": "  "}',
        '{"source": "\\ud800"}',
    ]
    lines = [line.encode() for line in [*good[:50], *bad, *good[50:]]] + [b'{"source": "\xff"}', b'{"source": "cut']
    (tmp_path / "input.jsonl").write_bytes(b"\n".join(lines))
    done = tfray(
        *("predict", "--model_folder", digits / "run" / "training" / "best"),
        *("--input", tmp_path / "input.jsonl", "--out", tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert len(rows) == len(lines)
    assert sum(row["prediction"] is not None for row in rows) == 100
    assert [row["error"] is not None for row in rows] == [False] * 50 + [True] * 7 + [False] * 50 + [True] * 2
    assert "9 " in done.stderr or "missing_source" in done.stderr


@pytest.mark.parametrize("workers", [50])
def test_workers_that_find_no_room_are_refused_within_seconds(
    whole_run: subprocess.CompletedProcess[str], digits: Path, tmp_path: Path, workers: int
) -> None:
    refused = tfray(
        *("train", "--tokens_folder", digits / "run" / "tokens", "--out", tmp_path / "out"),
        *("--training.workers", workers, "--batches.lanes", workers, "--training.use_gpu", "no"),
        timeout=60,
    )
    assert refused.returncode == 2
    assert f"training.workers={workers}" in refused.stderr and "Traceback" not in refused.stderr
