"""A real `ray job submit` to a head node that the test starts, and ends by its process id."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{BIN}:{os.environ['PATH']}",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
RAY = str(BIN / "ray")


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback interface that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a head node's job server."""
    # Ray's sockets need a short path.
    folder = Path("/tmp") / f"tfray-{os.getpid()}"
    port, dashboard, client, agent = free_ports(4)
    command = [RAY, "start", "--head", "--block", "--disable-usage-stats", f"--temp-dir={folder}"]
    command += [f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--num-cpus=2"]
    command += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
    log = tmp_path_factory.mktemp("head") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=ENVIRONMENT)
    try:
        address = f"http://127.0.0.1:{dashboard}"
        wait_until_listening(dashboard, process, log)
        yield address
    finally:
        process.terminate()  # `ray start --block` ends all that it started
        process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def wait_until_listening(port: int, process: subprocess.Popen, log: Path, seconds: float = 90) -> None:
    """Wait until the job server answers."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with socket.socket() as connection:
            if connection.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError(log.read_text())


def submit(address: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Submit a job script as the README says, and wait for its end."""
    command = [RAY, "job", "submit", "--address", address, "--working-dir", str(ROOT)]
    command += ["--runtime-env-json", '{"excludes": [".git", "out", ".venv"]}', "--", "python"]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=500, check=False, env=ENVIRONMENT
    )


def test_the_whole_job_runs_on_a_cluster_by_job_submission(head: str, tmp_path: Path) -> None:
    words = ["red", "green", "blue", "black", "white"]
    texts = [" ".join(words[(row * step) % 5] for step in (1, 2, 3)) for row in range(500)]
    table = pa.table({"source": texts, "target": [text.upper() for text in texts]})
    pq.write_table(table, tmp_path / "data.parquet")
    done = submit(
        head,
        *("jobs/run.py", "--corpus.train", tmp_path / "data.parquet", "--test", tmp_path / "data.parquet"),
        *("--out", tmp_path / "out", "--model.preset", "tiny", "--training.epochs", 2, "--generation.beam_size", 1),
        *("--tokens.vocab_size", 300, "--training.log_every", 5),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "target tokens/s" in done.stdout, "progress is readable in the job's log"
    assert "BLEU" in done.stdout
    assert pq.read_table(tmp_path / "out" / "predictions")["source"].to_pylist() == texts


def test_a_job_with_a_missing_file_fails_with_one_clear_message(head: str, tmp_path: Path) -> None:
    done = submit(head, "jobs/tokenize.py", "--corpus.train", tmp_path / "no.parquet", "--out", tmp_path / "out")
    assert done.returncode != 0
    assert "does not exist" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_stopped_job_leaves_whole_units_and_the_next_one_goes_on(head: str, tmp_path: Path) -> None:
    from tests.inference.conftest import WORDS, make_model

    model = make_model(tmp_path / "model", max_length=64)
    texts = [WORDS[: row % 40 + 1] for row in range(20_000)]
    pq.write_table(pa.table({"source": texts}), tmp_path / "data.parquet")
    arguments = ["jobs/predict.py", "--model_folder", model, "--input", tmp_path / "data.parquet"]
    arguments += ["--out", tmp_path / "out", "--inference.unit_rows", 200]
    command = [RAY, "job", "submit", "--no-wait", "--submission-id", "stopped", "--address", head]
    command += ["--working-dir", str(ROOT), "--runtime-env-json", '{"excludes": [".git", "out", ".venv"]}', "--"]
    subprocess.run([*command, "python", *map(str, arguments)], env=ENVIRONMENT, check=True, capture_output=True)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "out").glob("part-*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    stop = subprocess.run(
        [RAY, "job", "stop", "--address", head, "stopped"], env=ENVIRONMENT, check=True, capture_output=True, text=True
    )
    assert "stopped" in stop.stdout
    log = subprocess.run(
        [RAY, "job", "logs", "--address", head, "stopped"], env=ENVIRONMENT, check=True, capture_output=True, text=True
    ).stdout
    assert "the same command goes on" in log and "Traceback" not in log
    assert not (tmp_path / "out" / "_lock.json").exists()
    done = submit(head, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "units were done before" in done.stdout and "target tokens/s" in done.stdout
    assert pq.read_table(tmp_path / "out")["source"].to_pylist() == texts
