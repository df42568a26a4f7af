"""The messy files that people send: every row keeps its place, and its error is the one that its fault deserves."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.inference.conftest import Run, make_job

PLACES = [parent / "shared" / "data" / "messy" for parent in Path(__file__).resolve().parents]
MESSY = next((place for place in PLACES if place.is_dir()), None)
ERRORS = {
    "blank_line": "blank_line",
    "empty_source": "empty_source",
    "empty_text": "empty_source",
    "invalid_utf8": "bad_utf8",
    "json_array": "bad_json",
    "line_200kB": "too_long",
    "lone_surrogate": "bad_utf8",
    "missing_source": "missing_source",
    "nan_id": "bad_json",
    "not_json": "bad_json",
    "null_source": "missing_source",
    "null_text": "missing_source",
    "raw_control_chars": "bad_json",
    "source_list": "not_text",
    "source_number": "not_text",
    "source_object": "not_text",
    "truncated_json": "bad_json",
    "truncated_last_line": "bad_json",
    "whitespace_source": "empty_source",
    "wrong_case_fields": "missing_source",
}
"""Of the faults that KINDS.tsv names; a row with any other one is predicted."""


@pytest.mark.skipif(MESSY is None, reason="the messy files are not part of the package, and not beside it")
@pytest.mark.parametrize("name", ["pairs_en_de.jsonl", "pairs_en_de_values.parquet", "sentiment.jsonl"])
def test_every_row_has_the_error_of_its_fault_or_a_prediction(
    run: Run, model_folder: str, tmp_path: Path, name: str
) -> None:
    assert MESSY is not None
    with (MESSY / "KINDS.tsv").open(encoding="utf-8") as file:
        listed = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    first = 1 if name.endswith("jsonl") else 0
    kinds = {int(line["line_or_row"]) - first: line["kind"] for line in listed if line["file"] == name}
    options = {"long_sources": "truncate", "max_length": 4, "beam_size": 1}
    rows = run(make_job(model_folder, MESSY / name, tmp_path / "out", provenance=True, **options), unit_rows=64)
    assert rows["row"].to_pylist() == list(range(len(kinds)))
    for row in rows.to_pylist():
        kind = kinds[row["row"]]
        found = row["error"].partition(":")[0] if row["error"] else None
        assert found == ERRORS.get(kind), f"{kind}, row {row['row']}: {row['error']}"
        assert (row["prediction"] is None) == (kind in ERRORS)
