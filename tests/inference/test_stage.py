"""A unit of rows becomes a file of predictions, whatever stands in the rows."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tfray.checkpoint.folder import save_model_folder
from tfray.config import GenerationConfig, ModelConfig, TokensConfig
from tfray.corpus.read import declare_schema
from tfray.inference.stage import Assignment, PredictUnit
from tfray.model.architecture import resolve
from tfray.model.transformer import Transformer
from tfray.tokens.tokenizer import train_tokenizer
from tfray.units.ledger import RECORDS, read_records
from tfray.units.plan import find_files, plan_units

WORDS = "one two three four five six seven eight nine ten"


def make_model(folder: Path, labels: list[str]) -> str:
    """Write a model folder with random weights."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = train_tokenizer([WORDS] * 3, TokensConfig(vocab_size=320), labels)
    sizes = ModelConfig(preset="tiny", d_model=32, num_heads=2, d_ff=64)
    model = Transformer(resolve(sizes, tokenizer.vocab_size, 32))
    task = "classification" if labels else "translation"
    save_model_folder(str(folder), model.state_dict(), model.architecture, tokenizer.json, task, {})
    return str(folder)


def predict_file(model_folder: str, path: Path, out: Path, **search: int) -> list[dict]:
    """Return the rows that come of an input file, in order."""
    files = find_files([str(path)])
    schema = declare_schema(files, {"source"})
    generation = GenerationConfig(**{"beam_size": 2, "max_length_extra": 5, **search}, precision="fp32")
    stage = PredictUnit(Assignment(model_folder, str(out), "source", schema, generation, 1000))
    units = plan_units(files, 4, 16)
    for unit in units:
        stage(unit)
    tables = [pq.read_table(out / unit.output_name) for unit in units]
    counted = read_records(str(out / RECORDS), units)
    assert sum(summary["rows"] for summary in counted) == sum(map(len, tables))
    return pa.concat_tables(tables).to_pylist()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp("model"), [])


def test_every_row_keeps_its_place_and_gets_a_prediction_or_an_error(model_folder: str, tmp_path: Path) -> None:
    lines = [json.dumps({"id": number, "source": WORDS[: number + 3]}) for number in range(40)]
    lines[7], lines[20], lines[33] = "not json", '{"id": 20}', json.dumps({"id": 33, "source": "ten " * 200})
    (tmp_path / "input.jsonl").write_text("\n".join(lines))
    rows = predict_file(model_folder, tmp_path / "input.jsonl", tmp_path / "out")
    assert [row["id"] for row in rows] == [None if number == 7 else number for number in range(40)]
    errors = {number: row["error"].partition(":")[0] for number, row in enumerate(rows) if row["error"]}
    assert errors == {7: "bad_json", 20: "missing_source", 33: "too_long"}
    for number, row in enumerate(rows):
        assert (row["prediction"] is None) == (row["score"] is None) == (number in errors)


def test_a_bad_value_in_another_column_does_not_cost_the_prediction(model_folder: str, tmp_path: Path) -> None:
    good = [json.dumps({"source": "one", "n": 1})] * 1000
    (tmp_path / "input.jsonl").write_text("\n".join([*good, '{"source": "two", "n": "late"}']))
    rows = predict_file(model_folder, tmp_path / "input.jsonl", tmp_path / "out", beam_size=1, max_length_extra=1)
    assert rows[-1]["prediction"] is not None
    assert rows[-1]["n"] is None and rows[-1]["error"].startswith("bad_type")


def test_text_is_normalized_as_it_was_in_training(model_folder: str, tmp_path: Path) -> None:
    sources = ["one two", " one\u3000\ttwo\ufeff\n", "one\x00 two", "\x00 "]
    (tmp_path / "input.jsonl").write_text("\n".join(json.dumps({"source": source}) for source in sources))
    rows = predict_file(model_folder, tmp_path / "input.jsonl", tmp_path / "out")
    assert [row["source"] for row in rows] == sources  # as they were
    assert len({(row["prediction"], row["score"]) for row in rows[:3]}) == 1
    assert rows[3]["error"] == "empty_source: the source has no visible character"


def test_predictions_do_not_depend_on_the_batch(model_folder: str, tmp_path: Path) -> None:
    table = pa.table({"source": [WORDS[: length % 40 + 1] for length in range(60)]})
    pq.write_table(table, tmp_path / "input.parquet")
    alone = predict_file(model_folder, tmp_path / "input.parquet", tmp_path / "a", batch_rows=1)
    together = predict_file(model_folder, tmp_path / "input.parquet", tmp_path / "b", batch_rows=16)
    assert [row["prediction"] for row in alone] == [row["prediction"] for row in together]
    assert [row["score"] for row in alone] == pytest.approx([row["score"] for row in together], abs=1e-4)


def test_classification_gives_a_label_and_its_probability(tmp_path: Path) -> None:
    model_folder = make_model(tmp_path / "model", ["bad", "good", "so so"])
    pq.write_table(pa.table({"source": ["one", "two three", None]}), tmp_path / "input.parquet")
    rows = predict_file(model_folder, tmp_path / "input.parquet", tmp_path / "out")
    assert [row["prediction"] in ("bad", "good", "so so") for row in rows] == [True, True, False]
    assert all(1 / 3 <= row["score"] <= 1 for row in rows[:2])
    assert rows[2]["error"].startswith("missing_source")
