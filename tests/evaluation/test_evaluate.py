"""From a folder of predictions to _scores.json: which rows count, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfray import storage
from tfray.config import EvaluateJob
from tfray.errors import InputError
from tfray.evaluation.evaluate import evaluate
from tfray.evaluation.tables import format_scores

OUTPUT_SCHEMA = {"prediction": pa.string(), "score": pa.float64(), "error": pa.string()}


def write_part(path: Path, columns: dict[str, list]) -> None:
    rows = len(columns["prediction"])
    columns = {"score": [-0.5] * rows, "error": [None] * rows, **columns}
    arrays = {name: pa.array(values, OUTPUT_SCHEMA.get(name)) for name, values in columns.items()}
    pq.write_table(pa.table(arrays), path)


def write_predictions(
    folder: Path, *parts: dict[str, list], task: str = "translation", text: dict | None = None
) -> Path:
    folder.mkdir()
    for number, columns in enumerate(parts):
        write_part(folder / f"part-{number:05d}.parquet", columns)
    (folder / "_manifest.json").write_text(json.dumps({"task": task, "text": text or {}, "made_from": {}}))
    (folder / "_SUCCESS").touch()
    return folder


def run(folder: Path, **settings: object) -> dict:
    return evaluate(EvaluateJob(predictions=str(folder), **settings))


def test_the_scores_that_come_back_are_the_ones_in_scores_json(tmp_path: Path) -> None:
    folder = write_predictions(tmp_path / "out", {"prediction": ["a b"], "target": ["a b"]})
    scores = run(folder)
    assert json.loads((folder / "_scores.json").read_text()) == scores
    assert scores["task"] == "translation"
    assert scores["rows"] == 1


def test_scores_of_predictions_in_a_place_that_cannot_be_written_are_had_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_predictions(tmp_path / "out", {"prediction": ["a b"], "target": ["a b"]})

    def refuse(path: str, value: object) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(storage, "publish_json", refuse)
    assert run(folder)["rows"] == 1
    assert "_scores.json' cannot be written: [Errno 13] Permission denied" in caplog.text


def test_cutting_the_predictions_into_files_changes_no_score(tmp_path: Path) -> None:
    predictions, targets = ["a b c d", "e f g h", "i j k l"], ["a b c d", "e f g x", "i j k l"]
    one = {"prediction": predictions, "target": targets}
    many = [{"prediction": [p], "target": [t]} for p, t in zip(predictions, targets, strict=True)]
    whole = run(write_predictions(tmp_path / "one", one))
    assert run(write_predictions(tmp_path / "many", *many)) == whole


def test_the_task_is_the_manifests_unless_the_job_says_another(tmp_path: Path) -> None:
    part = {"prediction": ["pos"], "label": ["pos"]}
    folder = write_predictions(tmp_path / "out", part, task="classification")
    assert run(folder)["accuracy"] == 1
    assert "bleu" in run(folder, task="translation")


def test_references_come_from_target_then_label_then_the_named_column(tmp_path: Path) -> None:
    part = {"prediction": ["a"], "target": ["a"], "label": ["b"], "gold": ["c"]}
    folder = write_predictions(tmp_path / "out", part, task="classification")
    assert run(folder)["accuracy"] == 1
    assert run(folder, reference_column="gold")["accuracy"] == 0
    label_only = {"prediction": ["b"], "label": ["b"]}
    other = write_predictions(tmp_path / "other", label_only, task="classification")
    assert run(other)["accuracy"] == 1


@pytest.mark.parametrize("values", [[0, 1, None, 7], ["0", "1", None, "7"]])
def test_label_names_translate_numbers_and_texts_and_the_rest_is_left_out(tmp_path: Path, values: list) -> None:
    part = {"prediction": ["neg", "neg", "neg", "neg"], "label": values}
    folder = write_predictions(tmp_path / "out", part, task="classification")
    scores = run(folder, label_names={"0": "neg", "1": "pos"})
    assert scores["rows"] == 2
    assert scores["rows_without_reference"] == 2
    assert scores["confusion"] == {"labels": ["neg", "pos"], "counts": [[1, 0], [1, 0]]}


@pytest.mark.parametrize("names", [{}, {"caf\u00e9": "caf\u00e9", "tea ": "tea"}])
def test_references_are_normalized_as_labels_are_in_training(tmp_path: Path, names: dict[str, str]) -> None:
    part = {"prediction": ["caf\u00e9", "tea"], "label": [" cafe\u0301 ", "tea"]}
    assert run(write_predictions(tmp_path / "out", part, task="classification"), label_names=names)["accuracy"] == 1


def test_a_row_with_an_error_counts_as_wrong(tmp_path: Path) -> None:
    part = {"prediction": ["1", None], "label": [1, 1], "error": [None, "empty source"]}
    scores = run(write_predictions(tmp_path / "out", part, task="classification"))
    assert scores["accuracy"] == 0.5
    assert scores["rows_with_error"] == 1
    assert scores["per_label"]["1"]["support"] == 2


@pytest.mark.parametrize("task", ["classification", "translation"])
def test_a_row_with_a_blank_reference_is_one_without_a_reference(tmp_path: Path, task: str) -> None:
    part = {"prediction": ["a", "", "b", "c"], "target": ["a", "", " \t\u3000", None]}
    scores = run(write_predictions(tmp_path / "out", part, task=task))
    assert (scores["rows"], scores["rows_without_reference"]) == (1, 3)
    lines = tmp_path / "references.txt"
    lines.write_text("a\n\n \nc\n")
    scores = run(tmp_path / "out", reference_file=str(lines))
    assert (scores["rows"], scores["rows_without_reference"]) == (2, 2)


@pytest.mark.parametrize(("labels", "names"), [(["pos", ""], {}), (["1", "0"], {"1": "pos", "0": ""})])
def test_a_row_with_an_error_is_never_right(tmp_path: Path, labels: list[str], names: dict[str, str]) -> None:
    part = {"prediction": ["pos", None], "label": labels, "error": [None, "too long"]}
    scores = run(write_predictions(tmp_path / "out", part, task="classification"), label_names=names)
    assert (scores["rows"], scores["rows_without_reference"], scores["rows_with_error"]) == (1, 1, 0)
    assert scores["confusion"] == {"labels": ["pos"], "counts": [[1]]}


def test_lines_of_a_file_are_the_references_of_the_rows_in_order(tmp_path: Path) -> None:
    parts = [{"prediction": ["a", "b"]}, {"prediction": ["c"]}]
    folder = write_predictions(tmp_path / "out", *parts, task="classification")
    lines = tmp_path / "references.txt"
    lines.write_bytes(b"a\r\nb\nc\n")
    assert run(folder, reference_file=str(lines))["accuracy"] == 1
    lines.write_text("a\nb\nc")
    assert run(folder, reference_file=str(lines))["accuracy"] == 1


def test_a_line_separator_inside_a_sentence_does_not_end_the_line(tmp_path: Path) -> None:
    folder = write_predictions(tmp_path / "out", {"prediction": ["a\u2028b", "c"]})
    lines = tmp_path / "references.txt"
    lines.write_text("a\u2028b\nc\n", encoding="utf-8")
    assert run(folder, reference_file=str(lines))["rows"] == 2


def test_too_few_reference_lines_are_refused_with_both_counts(tmp_path: Path) -> None:
    folder = write_predictions(tmp_path / "out", {"prediction": ["a", "b", "c"]})
    lines = tmp_path / "references.txt"
    lines.write_text("a\nb\n")
    with pytest.raises(InputError, match="2 lines for 3 predictions"):
        run(folder, reference_file=str(lines))


def test_unusable_reference_files_are_refused(tmp_path: Path) -> None:
    folder = write_predictions(tmp_path / "out", {"prediction": ["a"], "target": ["a"]})
    with pytest.raises(InputError, match="does not exist"):
        run(folder, reference_file=str(tmp_path / "nowhere.txt"))
    compressed = tmp_path / "references.txt.gz"
    compressed.write_bytes(b"\x1f\x8b\x08\xff\xff")
    with pytest.raises(InputError, match="not UTF-8 text"):
        run(folder, reference_file=str(compressed))
    with pytest.raises(InputError, match="exclude each other"):
        run(folder, reference_file=str(compressed), reference_column="target")


def test_an_unfinished_prediction_is_refused_with_the_way_to_go_on(tmp_path: Path) -> None:
    folder = write_predictions(tmp_path / "out", {"prediction": ["a"], "target": ["a"]})
    (folder / "_SUCCESS").unlink()
    with pytest.raises(InputError, match="start the same `tfray predict` command again"):
        run(folder)
    assert not (folder / "_scores.json").exists()


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        run(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no _manifest"):
        run(tmp_path)


def test_the_folder_of_another_job_is_refused_as_what_it_is(tmp_path: Path) -> None:
    folder = write_predictions(tmp_path / "tokens")
    with pytest.raises(InputError, match="is a folder that `tfray predict` did not write"):
        run(folder)


def test_a_missing_reference_column_is_refused_with_the_columns_that_are(tmp_path: Path) -> None:
    part = {"id": [1], "source": ["x"], "prediction": ["a"]}
    folder = write_predictions(tmp_path / "out", part)
    with pytest.raises(InputError, match=r"target or label .* columns are: id, source; set"):
        run(folder)
    with pytest.raises(InputError, match="reference_column=gold "):
        run(folder, reference_column="gold")


@pytest.mark.parametrize(("prefix", "columns"), [("", "source"), ("our_", "score, source")])
def test_columns_that_predict_has_added_are_offered_as_no_references(tmp_path: Path, prefix: str, columns: str) -> None:
    folder = write_predictions(tmp_path / "out", {"prediction": ["a"]})
    names = ["prediction", "predictions", "scores", "n_segments", "truncated", "hit_max_length", "error", "file", "row"]
    own = {prefix + name: [None] for name in (*names, "n_source_tokens", "n_target_tokens")}
    pq.write_table(pa.table({"score": [1.0], "source": ["x"], **own}), folder / "part-00000.parquet")
    made_from = {"task": "generate", "inference": {"prefix": prefix}}
    (folder / "_manifest.json").write_text(json.dumps({"task": "translation", "made_from": made_from}))
    with pytest.raises(InputError, match=f"its input columns are: {columns}; set"):
        run(folder)


def test_nothing_to_score_is_refused_and_an_unknown_task_too(tmp_path: Path) -> None:
    part = {"prediction": ["neg"], "label": ["7"]}
    folder = write_predictions(tmp_path / "out", part, task="classification")
    with pytest.raises(InputError, match="nothing to score: it has 1 rows"):
        run(folder, label_names={"0": "neg"})
    other = write_predictions(tmp_path / "other", part, task="embedding")
    with pytest.raises(InputError, match="task=translation or task=classification"):
        run(other)


def test_the_table_of_translations_shows_scores_and_signatures(tmp_path: Path) -> None:
    scores = run(write_predictions(tmp_path / "out", {"prediction": ["a b"], "target": ["a b"]}))
    table = format_scores(scores)
    assert scores["bleu_signature"] in table
    assert scores["chrf_signature"] in table
    assert "1 rows scored, 0 of them with an error" in table


def test_the_tables_of_labels_show_the_confusion_and_name_the_empty_prediction(
    tmp_path: Path,
) -> None:
    part = {"prediction": ["pos", None], "label": ["pos", "neg"], "error": [None, "too long"]}
    table = format_scores(run(write_predictions(tmp_path / "out", part, task="classification")))
    assert "accuracy" in table
    assert "0.5000" in table
    assert "reference \\ prediction" in table
    assert "(none)" in table


def test_a_confusion_too_wide_for_a_terminal_is_left_to_the_file(tmp_path: Path) -> None:
    labels = [f"label {number}" for number in range(30)]
    part = {"prediction": labels, "label": labels}
    table = format_scores(run(write_predictions(tmp_path / "out", part, task="classification")))
    assert "The confusion matrix of 30 labels is in _scores.json." in table


def test_capitals_do_not_count_where_the_model_writes_lower_case(tmp_path: Path) -> None:
    part = {"prediction": ["ein mann sitzt auf einer bank"], "target": ["Ein Mann sitzt auf einer Bank"]}
    assert run(write_predictions(tmp_path / "cased", part))["bleu"] < 40
    scores = run(write_predictions(tmp_path / "out", part, text={"lowercase": True}))
    assert (scores["bleu"], scores["chrf"], scores["exact_match"]) == (pytest.approx(100), pytest.approx(100), 1)
    assert "case:lc" in scores["bleu_signature"] and "case:lc" in scores["chrf_signature"]


def test_lower_case_is_that_of_training(tmp_path: Path) -> None:
    part = {"prediction": ["istanbul bir i", "οδοσ"], "target": ["İstanbul bir İ", "ΟΔΟΣ"]}
    folder = write_predictions(tmp_path / "out", part, text={"lowercase": True})
    assert run(folder)["exact_match"] == 1
    assert run(folder, task="classification")["accuracy"] == 1


def test_labels_that_differ_in_case_are_two_where_texts_are_in_lower_case(tmp_path: Path) -> None:
    part = {"prediction": ["Yes", "yes"], "target": ["yes", "Yes"]}
    folder = write_predictions(tmp_path / "out", part, task="classification", text={"lowercase": True})
    assert run(folder)["accuracy"] == 0
    assert run(folder, task="translation")["exact_match"] == 0


def test_predictions_with_a_prefix_are_found_and_a_task_without_any_is_refused(tmp_path: Path) -> None:
    folder = write_predictions(tmp_path / "out", {"prediction": ["a"], "target": ["a"]})
    part, path = pq.read_table(folder / "part-00000.parquet"), folder / "part-00000.parquet"
    made_from = {"task": "generate", "inference": {"prefix": "our_"}}
    pq.write_table(part.rename_columns({"prediction": "our_prediction", "error": "our_error"}), path)
    (folder / "_manifest.json").write_text(json.dumps({"task": "translation", "made_from": made_from}))
    assert run(folder)["exact_match"] == 1
    pq.write_table(part.drop_columns(["prediction"]), path)
    (folder / "_manifest.json").write_text(json.dumps({"task": "translation", "made_from": {"task": "score"}}))
    with pytest.raises(InputError, match=r"its task is 'score' \(no column prediction\)"):
        run(folder)


def test_references_are_normalized_by_the_settings_of_the_training(tmp_path: Path) -> None:
    part = {"prediction": ["5", "1"], "label": ["\uff15", "1"]}
    folder = write_predictions(tmp_path / "out", part, task="classification", text={"unicode": "nfkc"})
    assert run(folder)["accuracy"] == 1
    assert run(folder, label_names={"5": "5", "\uff11": "1"})["accuracy"] == 1
