"""Rows that kill their process under a real Ray: found, marked, and nobody else pays."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cluster import Nodes
from tests.inference.conftest import WORDS, make_model, read_output
from tests.inference.test_kills import start
from tfray.inference.attempts import GUILTY

pytestmark = pytest.mark.ray

ENCODING, ANSWERING = 5, 42  # rows
# Every Python process on the cluster reads this at its start.
POISON = f"""
import os, signal, sys

def die():
    os.kill(os.getpid(), signal.SIGKILL)

if any(name.endswith("default_worker.py") for name in sys.orig_argv):
    from tfray.inference import encode, steps

    real_encode, real_unit = encode.EncodeUnit.encode, steps.answer_unit

    def poisoned_encode(self, texts):
        return die() if any("poison" in text for text in texts) else real_encode(self, texts)

    def poisoned_unit(*arguments):
        unit = real_unit(*arguments)
        generate = unit.generate

        def poisoned(encoded, rows):
            return die() if {ANSWERING} - encoded.unit.first_row in rows else generate(encoded, rows)

        unit.ways["generate"] = poisoned
        return unit

    encode.EncodeUnit.encode, steps.answer_unit = poisoned_encode, poisoned_unit
"""


@pytest.mark.timeout(590)
def test_rows_that_kill_their_process_are_marked_and_all_others_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{WORDS[: row % 40 + 3]} {'poison' if row == ENCODING else ''}" for row in range(64)]
    pq.write_table(pa.table({"source": texts}), tmp_path / "a.parquet", row_group_size=16)
    model = make_model(tmp_path / "model", max_length=64)
    (tmp_path / "poison").mkdir()
    (tmp_path / "poison" / "sitecustomize.py").write_text(POISON)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'poison'}:{Path(__file__).parents[2]}")
    out, log = tmp_path / "out", tmp_path / "log"
    nodes = Nodes(2)
    try:
        process = start(model, str(tmp_path / "a.parquet"), str(out), log, nodes.address, "--inference.unit_rows", "16")
        try:
            assert process.wait(500) == 0, log.read_text()
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(log.read_text()) from None
    finally:
        nodes.stop()
    rows = read_output(out).to_pylist()
    assert [row["source"] for row in rows] == texts
    assert {number: row["error"] for number, row in enumerate(rows) if row["error"]} == {
        ENCODING: GUILTY,
        ANSWERING: GUILTY,
    }
    assert all(row["prediction"] is not None for number, row in enumerate(rows) if number not in (ENCODING, ANSWERING))
