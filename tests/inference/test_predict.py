"""The predict job as a whole, without Ray: every row once and in its place, whatever stands in it."""

from __future__ import annotations

import errno
import json
import os
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.inference.conftest import WORDS, Run, make_job, make_model
from tfray import storage
from tfray.checkpoint.folder import open_model_folder
from tfray.corpus import jsonl
from tfray.errors import CheckpointMismatch, InputError, StorageFailure, TooManyErrors
from tfray.generation import engine
from tfray.generation.rows import Hypothesis, Output
from tfray.inference import predict as job_module
from tfray.inference import write as write_module
from tfray.inference.answer import AnswerUnit
from tfray.inference.planning import plan_rows
from tfray.inference.summary import format_result
from tfray.inference.write import join_parts
from tfray.storage import places, reading

TEXT = st.lists(st.sampled_from([*WORDS.split(), "café", "狗。", "Mr. X. One!", "</s>"]), max_size=12).map(" ".join)
MESS = [
    b"",
    b"{cut",
    b'{"source": "\xff"}',
    b'{"source": 7}',
    b'{"id": 3}',
    b'{"source": " "}',
    b'{"source": "\\ud800"}',
    b'{"source": "\\u0000"}',
    b'{"source": null}',
    b'["a"]',
    b'{"source": "' + b"ten " * 100 + b'"}',
    b'{"source": "' + b"One two. " * 30 + b'"}',
    b'{"source": "' + b"x" * 1200 + b'"}',
    b"\xef\xbb\xbf" + b'{"source": "one"}',
    '{"source": "שלום \u2028 ประเทศไทย 😀"}'.encode(),
]
TABLE = pa.table({"source": [WORDS[: row % 40 + 1] for row in range(30)], "id": pa.array(range(30), pa.int16())})


def write_lines(path: Path, lines: list[bytes]) -> Path:
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def write(path: Path, table: pa.Table = TABLE, **options: Any) -> Path:
    pq.write_table(table, path, **options)
    return path


@settings(max_examples=15)
@given(
    texts=st.lists(TEXT, min_size=1, max_size=30),
    mess=st.lists(st.sampled_from(MESS), max_size=12),
    seed=st.integers(0, 99),
    unit_rows=st.integers(1, 20),
)
def test_every_row_keeps_its_place_and_gets_a_prediction_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, run: Run, model_folder: str, texts: list, mess: list, seed: int,
    unit_rows: int,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("job")
    lines = [*(json.dumps({"source": text}).encode() for text in texts), *mess]
    random.Random(seed).shuffle(lines)
    half = len(lines) // 2
    files = [write_lines(folder / f"{n}.jsonl", part) for n, part in enumerate((lines[:half], lines[half:])) if part]
    job = make_job(model_folder, files, folder / "out", provenance=True, max_characters=1000)
    try:
        table = run(job, seed, unit_rows)
    except InputError as error:
        assert "holds a JSON object" in str(error)  # a file without a single usable line
        return
    places = list(zip(table["file"].to_pylist(), table["row"].to_pylist(), strict=True))
    counts = [path.read_bytes().count(b"\n") for path in files]
    assert places == [(str(path), row) for path, count in zip(files, counts, strict=True) for row in range(count)]
    for row in table.to_pylist():
        assert (row["prediction"] is None) == (row["score"] is None) == (row["n_segments"] is None)
        assert row["prediction"] is not None or ": " in row["error"]
    summary = json.loads((folder / "out" / "_summary.json").read_text())
    kinds = Counter(error.partition(":")[0] for error in table["error"].to_pylist() if error)
    assert summary["errors"] == dict(kinds) and summary["rows"] == len(lines)


def test_the_kinds_of_errors_name_what_is_wrong(run: Run, model_folder: str, tmp_path: Path) -> None:
    good = [b'{"source": "one two"}'] * 3
    path = write_lines(tmp_path / "a.jsonl", [*good, *MESS])
    table = run(make_job(model_folder, path, tmp_path / "out", max_characters=1000))
    kinds = [error and error.partition(":")[0] for error in table["error"].to_pylist()][3:]
    assert kinds == [
        *("blank_line", "bad_json", "bad_utf8", "not_text", "missing_source", "empty_source", "bad_utf8"),
        *("empty_source", "missing_source", "bad_json", "too_long", None, "too_long", "bad_json", "too_long"),
    ]
    report = format_result(str(tmp_path / "out"))
    assert "missing_source" in report and "row 3" in report


def test_input_columns_pass_through_with_their_types(run: Run, model_folder: str, tmp_path: Path) -> None:
    table = pa.table(
        {
            "source": pa.array(["one", "two", None, "one"]).dictionary_encode(),
            "large": pa.array(["a", "b", "c", None], pa.large_string()),
            "nested": pa.array([[{"a": 1, "b": ["x"]}], None, [], [{"a": None, "b": None}]]),
            "map": pa.array([[("k", 1)], [], None, [("a", 2)]], pa.map_(pa.string(), pa.int8())),
            "decimal": pa.array([1, None, 2, 3], pa.decimal128(9, 2)),
            "time": pa.array([1, 2, 3, None], pa.timestamp("us", tz="Europe/Berlin")),
            "bytes": pa.array([b"\xff", b"", None, b"x"]),
            "vector": pa.array([[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.0]], pa.list_(pa.float32(), 2)),
            "none": pa.nulls(4),
        }
    )
    write(tmp_path / "a.parquet", table)
    given = pq.read_table(tmp_path / "a.parquet")
    predicted = run(make_job(model_folder, tmp_path / "a.parquet", tmp_path / "out"), unit_rows=2)
    kept = [name for name in given.column_names if name != "none"]
    assert predicted.select(kept).schema == given.select(kept).schema
    assert predicted.select(kept).to_pylist() == given.select(kept).to_pylist()
    assert predicted["none"].null_count == 4


def test_values_do_not_depend_on_units_order_batch_or_restart(run: Run, model_folder: str, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", row_group_size=9)
    settings = dict(search="sample", samples=2, n_best=2, beam_size=1)
    tables = [
        run(make_job(model_folder, tmp_path / "a.parquet", tmp_path / "1", **settings), 1, 30),
        run(make_job(model_folder, tmp_path / "a.parquet", tmp_path / "2", batch_rows=3, **settings), 2, 4),
    ]
    job = make_job(model_folder, tmp_path / "a.parquet", tmp_path / "3", **settings)
    for seed in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(job, seed, 4, most_units=2)
    tables.append(run(job, 5, 4))
    assert tables[0].equals(tables[1]) and tables[0].equals(tables[2])


def test_rows_of_several_files_have_chances_of_their_own_whatever_stands_beside_them(
    run: Run, model_folder: str, tmp_path: Path
) -> None:
    first, second = (write(tmp_path / name) for name in ("a.parquet", "b.parquet"))
    settings = dict(search="sample", beam_size=1)
    both = run(make_job(model_folder, [first, second], tmp_path / "1", **settings), 1, 7)["prediction"].to_pylist()
    count = len(TABLE)
    assert sum(one != other for one, other in zip(both[:count], both[count:], strict=True)) > count // 2
    alone = run(make_job(model_folder, [second], tmp_path / "2", **settings), 2, 30)["prediction"].to_pylist()
    assert alone == both[count:]
    job = make_job(model_folder, [first, second], tmp_path / "2", **settings, mode="append")
    assert sorted(run(job, 3, 7)["prediction"].to_pylist()) == sorted(both)


def test_the_models_of_a_machine_share_its_memory(
    run: Run, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, plan = set(), engine.plan_groups

    def watched(rows: Any, networks: Any, *rest: Any) -> Any:
        seen.add(networks[0].models_here)
        return plan(rows, networks, *rest)

    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(engine, "plan_groups", watched)
    run(make_job(model_folder, write(tmp_path / "a.parquet"), tmp_path / "out"))
    assert seen == {2}, "as many as the cluster has room for"


def test_the_nth_targets_of_all_sentences_are_joined_the_last_of_those_that_have_fewer() -> None:
    found = [[("a", -1.0), ("b", -2.0), ("c", -3.0)], [("x", -0.5)], [("y", -1.5), ("z", -2.5)]]
    outputs = [Output([Hypothesis([], score, True) for _, score in each]) for each in found]
    texts, scores = join_parts([[text for text, _ in each] for each in found], outputs)
    assert texts == ["a x y", "b x z", "c x z"] and scores == [-3.0, -5.0, -6.0]


def test_a_later_start_opens_no_input_that_is_done(
    run: Run, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [write(tmp_path / f"{number}.parquet") for number in range(4)]
    job = make_job(model_folder, files, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        run(job, 3, 30, most_units=3)
    opened: list[str] = []
    real = storage.open_input
    for module in (storage, reading):
        monkeypatch.setattr(module, "open_input", lambda path: opened.append(path) or real(path))
    assert len(run(job, 4, 30)) == 120
    assert len({path for path in opened if path in map(str, files)}) == 1


def test_labels_come_with_their_probabilities(run: Run, label_model: str, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", pa.table({"source": ["one", "two three", None]}))
    table = run(make_job(label_model, tmp_path / "a.parquet", tmp_path / "out", n_best=2))
    rows = table.to_pylist()
    for row in rows[:2]:
        assert row["prediction"] == row["predictions"][0] and row["score"] == row["scores"][0]
        assert 1 / 3 <= row["scores"][0] and row["scores"][1] <= row["scores"][0]
    assert rows[2]["error"].startswith("missing_source") and rows[2]["predictions"] is None


def test_given_targets_are_scored_by_token_too(run: Run, model_folder: str, tmp_path: Path) -> None:
    found = run(make_job(model_folder, write(tmp_path / "a.parquet"), tmp_path / "found")).to_pylist()
    pairs = pa.table({"source": TABLE["source"], "target": [row["prediction"] for row in found]})
    write(tmp_path / "b.parquet", pairs)
    job = make_job(model_folder, tmp_path / "b.parquet", tmp_path / "out", task="score", token_scores=True)
    scored = run(job).to_pylist()
    for row in (row for row in scored if not row["error"]):
        assert row["score"] == pytest.approx(sum(row["token_scores"]), abs=1e-4)
        assert len(row["token_scores"]) == row["n_target_tokens"]
    missing = pa.table({"source": ["one", None, "two"], "target": [None, "one", " "]})
    write(tmp_path / "c.parquet", missing)
    rows = run(make_job(model_folder, tmp_path / "c.parquet", tmp_path / "none", task="score")).to_pylist()
    assert [row["error"].partition(":")[0] for row in rows] == ["missing_target", "missing_source", "empty_target"]


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_vectors_have_a_fixed_size(run: Run, model_folder: str, tmp_path: Path, kind: str) -> None:
    write(tmp_path / "a.parquet", pa.table({"source": ["one", None, "two"]}))
    job = make_job(model_folder, tmp_path / "a.parquet", tmp_path / "out", task="embed", embedding_type=kind)
    column = run(job)["embedding"]
    assert column.type == pa.list_(pa.float16() if kind == "float16" else pa.float32(), 32)
    assert [value is None for value in column.to_pylist()] == [False, True, False]


def test_a_file_without_rows_gives_no_vectors_and_costs_none(run: Run, model_folder: str, tmp_path: Path) -> None:
    empty, full = write_lines(tmp_path / "a.csv", [b"source"]), write_lines(tmp_path / "b.csv", [b"source", b"one"])
    column = run(make_job(model_folder, [empty, full], tmp_path / "out", task="embed"))["embedding"]
    assert len(column) == 1 and column.type == pa.list_(pa.float32(), 32)


def test_long_sources_are_split_into_sentences_and_joined_in_order(run: Run, model_folder: str, tmp_path: Path) -> None:
    sentences = ["One two three.", "Four five!", "Six?", "Seven eight nine ten one two."]
    write(tmp_path / "a.parquet", pa.table({"source": [*sentences, " ".join(sentences * 3), "ten " * 80]}))
    rows = run(make_job(model_folder, tmp_path / "a.parquet", tmp_path / "out")).to_pylist()
    assert rows[4]["prediction"] == " ".join([row["prediction"] for row in rows[:4]] * 3)
    assert rows[4]["n_segments"] == 12 and rows[0]["n_segments"] == 1
    assert rows[4]["score"] == pytest.approx(3 * sum(row["score"] for row in rows[:4]))
    assert rows[4]["n_target_tokens"] == 3 * sum(row["n_target_tokens"] for row in rows[:4])
    assert rows[5]["error"].startswith("too_long")
    refused = run(make_job(model_folder, tmp_path / "a.parquet", tmp_path / "off", sentences="off")).to_pylist()
    assert refused[4]["error"].startswith("too_long")
    cut = run(
        make_job(model_folder, tmp_path / "a.parquet", tmp_path / "cut", sentences="off", long_sources="truncate")
    ).to_pylist()
    assert [row["truncated"] for row in cut] == [False] * 4 + [True] * 2


def test_a_bad_value_in_another_column_does_not_cost_the_prediction(
    run: Run, model_folder: str, tmp_path: Path
) -> None:
    lines = [b'{"source": "one", "n": 1}'] * 1000 + [b'{"source": "two", "n": "late"}']
    job = make_job(model_folder, write_lines(tmp_path / "a.jsonl", lines), tmp_path / "out", max_length=2)
    last = run(job, unit_rows=2000).to_pylist()[-1]
    assert last["prediction"] is not None and last["n"] is None and last["error"].startswith("bad_type")


def test_text_is_normalized_as_it_was_in_training(run: Run, model_folder: str, tmp_path: Path) -> None:
    sources = ["one two", " one\u3000\ttwo\ufeff\n", "one\x00 two", "\x00 "]
    write(tmp_path / "a.parquet", pa.table({"source": sources}))
    rows = run(make_job(model_folder, tmp_path / "a.parquet", tmp_path / "out")).to_pylist()
    assert [row["source"] for row in rows] == sources  # as they were
    assert len({(row["prediction"], row["score"]) for row in rows[:3]}) == 1
    assert rows[3]["error"] == "empty_source: the source has no visible character"


def test_rows_of_a_damaged_row_group_are_marked_and_the_others_predicted(
    run: Run, model_folder: str, tmp_path: Path
) -> None:
    noise = pa.table({"source": [f"{random.Random(row).random()}" for row in range(40)]})
    path = write(tmp_path / "a.parquet", noise, row_group_size=10, write_page_checksum=True, compression="none")
    column = pq.read_metadata(path).row_group(2).column(0)
    data = bytearray(path.read_bytes())
    at = column.dictionary_page_offset + column.total_compressed_size // 2
    data[at] ^= 0xFF
    path.write_bytes(bytes(data))
    rows = run(make_job(model_folder, path, tmp_path / "out", max_length=3), unit_rows=40).to_pylist()
    assert [bool(row["error"]) for row in rows] == [False] * 20 + [True] * 10 + [False] * 10
    assert rows[25]["error"].startswith("damaged_file")


def test_empty_input_gives_an_empty_data_set_with_all_columns(run: Run, model_folder: str, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", TABLE.slice(0, 0))
    table = run(make_job(model_folder, tmp_path / "a.parquet", tmp_path / "out"))
    assert len(table) == 0 and table.column_names[:3] == ["source", "id", "prediction"]
    assert (tmp_path / "out" / "_SUCCESS").exists()
    (tmp_path / "b.jsonl").write_bytes(b"")
    assert len(run(make_job(model_folder, tmp_path / "b.jsonl", tmp_path / "out2"))) == 0


def test_files_with_different_columns_are_united_or_refused(run: Run, model_folder: str, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", pa.table({"source": ["one"], "n": pa.array([1], pa.int8())}))
    write(tmp_path / "b.parquet", pa.table({"source": ["two"], "n": pa.array([2], pa.int64()), "more": ["x"]}))
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    rows = run(make_job(model_folder, files, tmp_path / "out")).select(["source", "n", "more"]).to_pylist()
    assert rows == [{"source": "one", "n": 1, "more": None}, {"source": "two", "n": 2, "more": "x"}]
    with pytest.raises(InputError, match=r"b\.parquet.*\(more \(string\); n \(int64\); n \(int8\)\).*schemas union"):
        run(make_job(model_folder, files, tmp_path / "same", schemas="same"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"text_": ["x"]}), "source or text.*text_"),
        (pa.table({"source": [1]}), "int64, not text"),
        (pa.table({"source": ["x"], "score": [1]}), "score.*inference.prefix"),
    ],
)
def test_input_that_cannot_be_used_is_refused(
    run: Run, model_folder: str, tmp_path: Path, table: pa.Table, message: str
) -> None:
    write(tmp_path / "a.parquet", table)
    with pytest.raises(InputError, match=message):
        run(make_job(model_folder, tmp_path / "a.parquet", tmp_path / "out"))
    assert not list((tmp_path / "out").glob("[!.]*")), "nothing is begun"


@pytest.mark.parametrize("task", ["generate", "score"])
def test_a_model_of_labels_is_asked_for_no_text(run: Run, label_model: str, tmp_path: Path, task: str) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"source": ["one"], "target": ["two"]}))
    with pytest.raises(InputError, match=rf"task='{task}'.*trained for labels.*classify or embed"):
        run(make_job(label_model, path, tmp_path / "out", task=task))
    assert not (tmp_path / "out").exists(), "nothing is begun"


@pytest.mark.parametrize("task", ["generate", "embed"])
def test_scores_by_token_are_refused_where_there_are_none(
    run: Run, model_folder: str, tmp_path: Path, task: str
) -> None:
    path = write(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=rf"token_scores is for task='score', and the task is '{task}'"):
        run(make_job(model_folder, path, tmp_path / "out", task=task, token_scores=True))


def test_a_prefix_makes_room_for_columns_of_the_same_name(run: Run, model_folder: str, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", pa.table({"source": ["x"], "score": [1], "error": [2]}))
    table = run(make_job(model_folder, tmp_path / "a.parquet", tmp_path / "out", prefix="our_"))
    assert table["score"].to_pylist() == [1] and "our_prediction" in table.column_names


def test_a_note_beside_the_data_is_not_predicted_but_named(run: Run, model_folder: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.parquet")
    (tmp_path / "in" / "README.md").write_text("what this is")
    with pytest.raises(InputError, match=r"README\.md.*glob"):
        run(make_job(model_folder, tmp_path / "in", tmp_path / "out"))
    assert len(run(make_job(model_folder, tmp_path / "in" / "*.parquet", tmp_path / "out"))) == len(TABLE)


def test_a_file_that_is_not_parquet_among_those_that_are_is_named(run: Run, model_folder: str, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_text("not Parquet")
    with pytest.raises(InputError, match=r"b\.parquet"):
        run(make_job(model_folder, tmp_path, tmp_path.parent / f"{tmp_path.name}-out"))


def test_an_output_inside_the_input_is_refused(run: Run, model_folder: str, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    for source in (tmp_path, tmp_path / "**" / "*.parquet"):
        with pytest.raises(InputError, match="read as input"):
            run(make_job(model_folder, source, tmp_path / "deep" / "out"))
    with pytest.raises(InputError, match="read as input"):
        run(make_job(model_folder, tmp_path / "a.parquet", tmp_path))
    with pytest.raises(InputError, match="out='/' and input="):
        run(make_job(model_folder, tmp_path / "a.parquet", "/"))


def test_an_input_that_changed_since_the_run_began_is_named(run: Run, model_folder: str, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    job = make_job(model_folder, tmp_path / "a.parquet", tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        run(job, most_units=1)
    write(tmp_path / "a.parquet", TABLE.slice(1))
    with pytest.raises(InputError, match=r"a\.parquet was .* is now"):
        run(job)


def test_an_input_that_changes_while_the_run_goes_on_is_named(run: Run, model_folder: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet")
    job = make_job(model_folder, path, tmp_path / "out")
    begin = job_module.begin

    def begin_and_change(*arguments: Any) -> Any:
        found = begin(*arguments)
        write(path, TABLE.slice(1))
        return found

    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match=r"a\.parquet.*has changed"):
        patch.setattr(job_module, "begin", begin_and_change)
        run(job)


def test_the_first_error_ends_a_job_that_wants_no_errors(run: Run, model_folder: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"source": ["one", "two", None, "three"]}))
    with pytest.raises(TooManyErrors, match="row 2: missing_source"):
        run(make_job(model_folder, path, tmp_path / "out", fail_fast=True), unit_rows=1)
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_too_many_errors_end_a_job_and_a_higher_rate_lets_it_end_well(
    run: Run, model_folder: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"source": ["one", None, None, "three"]}))
    with pytest.raises(TooManyErrors, match=r"2 of 4 rows \(50.0%\).*max_error_rate=0.4"):
        run(make_job(model_folder, path, tmp_path / "out", max_error_rate=0.4))
    assert len(run(make_job(model_folder, path, tmp_path / "out", max_error_rate=0.5))) == 4


def test_limits_of_errors_hold_for_an_output_that_is_finished_too(run: Run, model_folder: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"source": ["one", None, None, "three"]}))
    run(make_job(model_folder, path, tmp_path / "out"), unit_rows=1)
    with pytest.raises(TooManyErrors, match=r"inference.fail_fast: .*a\.parquet row 1: missing_source"):
        run(make_job(model_folder, path, tmp_path / "out", fail_fast=True))
    with pytest.raises(TooManyErrors, match=r"2 of 4 rows \(50.0%\).*max_error_rate=0.4.*row 1: missing_source"):
        run(make_job(model_folder, path, tmp_path / "out", max_error_rate=0.4))
    assert len(run(make_job(model_folder, path, tmp_path / "out", max_error_rate=0.5))) == 4


@pytest.mark.parametrize(("lines", "share"), [([], "1 of 1 rows (100.0%)"), (["one"], "1 of 2 rows (50.0%)")])
def test_a_file_that_is_cut_short_counts_as_one_row_lost(
    run: Run, model_folder: str, tmp_path: Path, lines: list[str], share: str
) -> None:
    (tmp_path / "a.txt.gz").write_bytes(b"this is no gzip")
    (tmp_path / "b.txt").write_text("".join(f"{line}\n" for line in lines))
    files = [tmp_path / "a.txt.gz", tmp_path / "b.txt"]
    with pytest.raises(TooManyErrors, match=re.escape(share)):
        run(make_job(model_folder, files, tmp_path / "out", max_error_rate=0.4))
    assert len(run(make_job(model_folder, files, tmp_path / "out"))) == len(lines)
    assert share.split("(")[1].removesuffix("%)") in format_result(str(tmp_path / "out"))


def test_a_row_with_two_errors_is_one_row_with_an_error(
    run: Run, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [b'{"source": "one", "n": 1}'] * 1000 + [b'{"source": "two", "n": "late"}']
    job = make_job(model_folder, write_lines(tmp_path / "a.jsonl", lines), tmp_path / "out", max_length=2)
    monkeypatch.setattr(AnswerUnit, "generate", lambda self, encoded, rows: ["failed: all of them"] * len(rows))
    run(job, unit_rows=2000)
    assert sum(storage.read_json(str(tmp_path / "out" / "_summary.json"))["errors"].values()) == 1001


def test_a_full_disk_ends_the_job_with_one_message_and_nothing_recorded(
    run: Run, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(model_folder, write(tmp_path / "a.parquet"), tmp_path / "out")

    def fail(path: str, table: pa.Table) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(StorageFailure, match=r"out=.*No space left.*same command"):
        patch.setattr(write_module, "publish", fail)
        run(job)
    assert not list((tmp_path / "out" / "_units").glob("*")) and len(run(job)) == 30


def test_a_storage_that_fails_while_input_is_read_ends_the_job_and_records_nothing(
    run: Run, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.parquet")
    job = make_job(model_folder, path, tmp_path / "out")
    real = reading.open_input

    def fail(place: str) -> pa.NativeFile:
        if place == str(path):
            raise OSError(errno.EIO, "Input/output error")
        return real(place)

    begin = job_module.begin

    def begin_and_fail(*arguments: Any) -> Any:
        found = begin(*arguments)
        patch.setattr(reading, "open_input", fail)
        return found

    with (
        monkeypatch.context() as patch,
        pytest.raises(StorageFailure, match=r"a\.parquet.*Input/output error.*same command"),
    ):
        patch.setattr(places, "FIRST_PAUSE", 0.0)
        patch.setattr(job_module, "begin", begin_and_fail)
        run(job)
    assert not (tmp_path / "out" / "_units").exists()
    assert [row["error"] for row in run(job).to_pylist()] == [None] * 30


def test_records_that_do_not_appear_end_the_job(
    run: Run, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(model_folder, write(tmp_path / "a.parquet"), tmp_path / "out")
    monkeypatch.setattr(write_module, "record_unit", lambda folder, unit, record: None)
    with pytest.raises(InputError, match="has no record of"):
        run(job)


def test_the_more_work_a_row_is_the_fewer_rows_a_unit_has(model_folder: str, tmp_path: Path) -> None:
    texts = [random.Random(row).randbytes(60).hex() for row in range(200_000)]
    pq.write_table(pa.table({"source": texts}), tmp_path / "a.parquet", row_group_size=100)
    larger = make_model(tmp_path / "larger", width=256)

    def most_rows(model: str, **settings: Any) -> int:
        job = make_job(model, tmp_path / "a.parquet", tmp_path / "out", **settings)
        plan = plan_rows(job, open_model_folder(model), "generate", [str(tmp_path / "a.parquet")])
        assert sum(unit.rows for unit in plan.units) == len(texts)
        return max(unit.rows for unit in plan.units)

    assert most_rows(model_folder) == 3100, "a sixty-fourth, for the work to spread"
    assert 500 <= most_rows(larger, beam_size=128) < most_rows(larger, beam_size=64) < 3100
    assert most_rows(larger, unit_rows=100) == 100


def test_a_json_field_that_comes_too_late_to_be_a_column_is_said_in_its_row(
    run: Run, model_folder: str, tmp_path: Path
) -> None:
    lines = [json.dumps({"source": "one"}).encode() for _ in range(jsonl.SAMPLE_LINES)]
    path = write_lines(tmp_path / "a.jsonl", [*lines, b'{"source": "two", "late": 1}'])
    rows = run(make_job(model_folder, path, tmp_path / "out", max_length=2)).to_pylist()
    assert "late" not in rows[-1] and "'late'" in rows[-1]["error"] and rows[-1]["prediction"] is not None
    assert all(row["error"] is None for row in rows[:-1])


def test_a_dry_run_writes_nothing_and_says_how_much_there_is(run: Run, model_folder: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet")
    report = job_module.predict(make_job(model_folder, path, tmp_path / "out", dry_run=True))
    assert "30" in report and "rows/s" in report and "is new" in report and not (tmp_path / "out").exists()


def test_a_dry_run_counts_no_more_models_than_there_may_be(
    model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    job = make_job(model_folder, write(tmp_path / "a.parquet"), tmp_path / "out", dry_run=True, max_actors=3)
    names, _, values = (re.split(r" {2,}", line.strip()) for line in job_module.predict(job).splitlines()[:3])
    assert dict(zip(names, values, strict=True))["models"] == "3"


def test_a_dry_run_without_a_row_to_try_says_so(model_folder: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.csv", [b"source"])
    report = job_module.predict(make_job(model_folder, path, tmp_path / "out", dry_run=True))
    assert "no row could be read" in report and "is new" in report
    names, _, values = (line.split() for line in report.splitlines()[:3])
    assert (names, values) == (["units", "rows"], ["1", "0"]), "the header is no row"


@pytest.mark.parametrize(
    ("name", "lines", "error"),
    [
        ("a.jsonl", [b'{"source": "one"}', b'{"source": "\xff"}', b"{"], "row 1: bad_utf8: byte 12"),
        ("a.jsonl", [b'{"source": "one", "n": 1}', b'{"source": "two", "n": "\\ud800"}'], "row 1: bad_utf8: n holds"),
        ("a.csv", [b"source", b"one", b"two,three"], "row 1: bad_csv: 2 fields where the header has 1"),
        ("a.txt", [b"one", b"", b"\xff"], "row 1: empty_source: the source"),
    ],
)
def test_a_dry_run_names_the_first_error_as_the_job_does(
    run: Run, model_folder: str, tmp_path: Path, name: str, lines: list[bytes], error: str
) -> None:
    path = write_lines(tmp_path / name, lines)
    report = job_module.predict(make_job(model_folder, path, tmp_path / "out", dry_run=True))
    assert f"the first error: {path} {error}" in report
    run(make_job(model_folder, path, tmp_path / "out"), unit_rows=1000)
    assert f"{path} {error}" in format_result(str(tmp_path / "out"))


def test_a_dry_run_says_what_it_finds_where_the_job_would_write(run: Run, model_folder: str, tmp_path: Path) -> None:
    path, out = write(tmp_path / "a.parquet"), tmp_path / "out"

    def dry(*more: Path, **settings: Any) -> str:
        return job_module.predict(make_job(model_folder, [path, *more], out, dry_run=True, **settings))

    with pytest.raises(KeyboardInterrupt):
        run(make_job(model_folder, [path], out), unit_rows=10, most_units=1)
    before = {place: place.stat().st_mtime_ns for place in out.rglob("*")}
    assert "1 of 3 units are done" in dry()
    with pytest.raises(CheckpointMismatch, match="beam_size"):
        dry(beam_size=3)
    assert "would be replaced" in dry(beam_size=3, mode="overwrite")
    with pytest.raises(InputError, match="holds something"):
        dry(mode="new")
    assert {place: place.stat().st_mtime_ns for place in out.rglob("*")} == before
    run(make_job(model_folder, [path], out), unit_rows=10)
    assert "finished and unchanged" in dry()
    more = write(tmp_path / "b.parquet", TABLE.slice(0, 5))
    assert "1 input files would be added" in dry(more, mode="append")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        job_module.predict(make_job(model_folder, path, tmp_path / "file" / "out", dry_run=True))


def test_the_source_column_is_that_of_the_first_file_also_in_a_later_start(
    run: Run, model_folder: str, tmp_path: Path
) -> None:
    write(tmp_path / "a.parquet", pa.table({"text": ["one", "two"]}))
    write(tmp_path / "b.parquet", pa.table({"text": ["three"], "source": ["not this"]}))
    job = make_job(model_folder, [tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        run(job, unit_rows=1, most_units=1)
    rows = run(job, unit_rows=1).to_pylist()
    assert [row["error"] for row in rows] == [None] * 3
