"""The stage of the tokenize job without Ray: a unit in, a shard out, every row accounted for."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfray.config import CorpusConfig, TokenizeJob, TokensConfig
from tfray.corpus.columns import choose_columns
from tfray.errors import InputError
from tfray.tokens.shards import read_summary
from tfray.tokens.special import EOS_ID
from tfray.tokens.stage import Recipe, SampleUnit, TokenizeUnit
from tfray.tokens.tokenize import add_up, find_splits, make_recipe
from tfray.tokens.tokenizer import Tokenizer, train_tokenizer
from tfray.units.plan import Unit, plan_units

GOOD_PAIR = b'{"source": "a man", "target": "ein Mann"}'
MESSY_PAIRS = [
    GOOD_PAIR,
    b'{"source": "</s> <pad>", "target": "<s>"}',
    b"",
    b"{cut",
    b'{"source": "\xff", "target": "x"}',
    b'{"source": 7, "target": "x"}',
    b'{"source": "x"}',
    b'{"source": " ", "target": "x"}',
    b'{"source": "' + b"word " * 40 + b'", "target": "x"}',
    b'{"source": "x", "target": "' + b"word " * 40 + b'"}',
    b'{"source": "' + b"x" * 600 + b'", "target": "x"}',
]
MESSY_LABELS = [
    b'{"text": "nice", "label": 1}',
    b'{"text": "bad", "label": 0}',
    b'{"text": "bad", "label": "0"}',
    b'{"text": "bad", "label": "awful"}',
    b'{"text": "bad", "label": 7}',
    b'{"text": "bad", "label": null}',
    b'{"text": "bad", "label": [1]}',
    b'{"text": null, "label": 1}',
]


@cache
def tokenizer(labels: tuple[str, ...] = ()) -> Tokenizer:
    return train_tokenizer(["a man", "ein Mann", "word nice bad"] * 5, TokensConfig(vocab_size=300), list(labels))


def prepare(path: Path, lines: list[bytes], **corpus: object) -> tuple[list[Unit], Recipe]:
    """Return the units and the recipe of a corpus of one JSONL file."""
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    job = TokenizeJob(out="", corpus=CorpusConfig(train=[str(path)], max_characters=500, **corpus))
    splits = find_splits(job)
    columns = choose_columns(splits["train"], None, None)
    return plan_units(splits["train"], 1, 3), make_recipe(job, columns, splits)


def tokenize(folder: Path, units: list[Unit], recipe: Recipe, labels: tuple[str, ...] = (), longest: int = 30) -> dict:
    """Return the totals of a corpus' shards, which are left in the folder."""
    stage = TokenizeUnit(str(folder), recipe, tokenizer(labels).json, longest)
    for unit in units:
        assert stage(unit) == {"rows": unit.rows}
    return add_up([read_summary(f"{folder}/{unit.output_name}") for unit in units])


def read_shards(folder: Path, units: list[Unit]) -> pa.Table:
    return pa.concat_tables(pq.read_table(f"{folder}/{unit.output_name}").replace_schema_metadata() for unit in units)


@settings(max_examples=25)
@given(lines=st.lists(st.sampled_from(MESSY_PAIRS), max_size=30))
def test_rows_in_are_pairs_out_plus_rejected_for_any_mess(tmp_path: Path, lines: list[bytes]) -> None:
    lines = [GOOD_PAIR, *lines]
    units, recipe = prepare(tmp_path / "a.jsonl", lines)
    totals = tokenize(tmp_path / "out", units, recipe)
    shards = read_shards(tmp_path / "out", units)
    assert totals["rows"] == len(lines) == totals["pairs"] + sum(totals["rejected"].values())
    assert totals["pairs"] == len(shards) == sum(lines.count(line) for line in MESSY_PAIRS[:2])
    assert totals["source_tokens"] == sum(shards["source_length"].to_pylist())
    assert totals["target_tokens"] == sum(shards["target_length"].to_pylist())
    assert totals["rejected"].get("too_long", 0) == sum(lines.count(line) for line in MESSY_PAIRS[-3:])


@settings(max_examples=25)
@given(lines=st.lists(st.sampled_from(MESSY_LABELS), max_size=30))
def test_labels_become_their_names_and_unknown_ones_are_counted(tmp_path: Path, lines: list[bytes]) -> None:
    lines = [*MESSY_LABELS, *lines]
    units, recipe = prepare(tmp_path / "a.jsonl", lines, label_names={"0": "negative", "1": "positive"})
    labels = ("negative", "positive")
    totals = tokenize(tmp_path / "out", units, recipe, labels)
    assert totals["rows"] == len(lines) == totals["pairs"] + sum(totals["rejected"].values())
    assert totals["rejected"]["unknown_label"] == sum(lines.count(MESSY_LABELS[index]) for index in (3, 4, 6))
    ids = [target for (target,) in read_shards(tmp_path / "out", units)["target_ids"].to_pylist()]
    found = [tokenizer(labels).label_of_id[index] for index in ids]
    assert found.count("positive") == lines.count(MESSY_LABELS[0])
    assert found.count("negative") == lines.count(MESSY_LABELS[1]) + lines.count(MESSY_LABELS[2])


def test_a_label_that_training_never_saw_is_counted_and_named(tmp_path: Path) -> None:
    units, recipe = prepare(tmp_path / "a.jsonl", [b'{"text": "x", "label": "new"}', b'{"text": "x", "label": "old"}'])
    totals = tokenize(tmp_path / "out", units, recipe, labels=("old",))
    assert totals["rejected"] == {"unknown_label": 1}
    assert "'new'" in totals["examples"]["unknown_label"][0]


@pytest.mark.parametrize("longest", [3, 5, 17, 30])
def test_no_pair_is_longer_than_max_length_with_its_end(tmp_path: Path, longest: int) -> None:
    lines = [
        json.dumps({"source": "x" + " x" * n, "target": "y" + " y" * m}).encode() for n in range(8) for m in range(8)
    ]
    units, recipe = prepare(tmp_path / "a.jsonl", lines)
    totals = tokenize(tmp_path / "out", units, recipe, longest=longest)
    shards = read_shards(tmp_path / "out", units)
    lengths = [*shards["source_length"].to_pylist(), *shards["target_length"].to_pylist()]
    assert all(length <= longest for length in lengths)
    assert totals["pairs"] + totals["rejected"].get("too_long", 0) == len(lines)
    assert max(lengths) == min(longest, 17)  # a letter and a space are two tokens of this tokenizer


def test_ids_spell_the_text_and_rows_say_where_it_stood(tmp_path: Path) -> None:
    lines = [b"", GOOD_PAIR, b"{", '{"source": "e\u0301", "target": "y\u2028"}'.encode()]
    units, recipe = prepare(tmp_path / "a.jsonl", lines)
    tokenize(tmp_path / "out", units, recipe)
    shards = read_shards(tmp_path / "out", units)
    assert [unit.start for unit in units] == [0]
    assert shards["row"].to_pylist() == [1, 3]
    sources = shards["source_ids"].to_pylist()
    assert all(ids[-1] == EOS_ID for ids in sources)
    assert tokenizer().decode_batch(sources) == ["a man", "é"]
    assert tokenizer().decode_batch(shards["target_ids"].to_pylist()) == ["ein Mann", "y\u2028"]


def test_an_example_of_each_reason_says_where_the_row_stands(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("source,target\na,b\nonly one\nc,\n")
    job = TokenizeJob(out="", corpus=CorpusConfig(train=[str(tmp_path / "a.csv")]))
    splits = find_splits(job)
    units = plan_units(splits["train"], 1, 3)
    totals = tokenize(tmp_path / "out", units, make_recipe(job, choose_columns(splits["train"], None, None), splits))
    assert totals["rejected"] == {"bad_csv": 1, "empty_target": 1}
    assert f"{tmp_path}/a.csv, line 3: bad_csv" in totals["examples"]["bad_csv"][0]
    assert f"{tmp_path}/a.csv, line 4: empty_target" in totals["examples"]["empty_target"][0]


def test_a_unit_without_a_good_row_still_has_its_shard(tmp_path: Path) -> None:
    units, recipe = prepare(tmp_path / "a.jsonl", [GOOD_PAIR, *[b"{"] * 1000])
    totals = tokenize(tmp_path / "out", units, recipe)
    assert (totals["pairs"], totals["rejected"]) == (1, {"bad_json": 1000})
    assert len(totals["examples"]["bad_json"]) == 3


def test_doing_a_unit_again_writes_the_same_file(tmp_path: Path) -> None:
    units, recipe = prepare(tmp_path / "a.jsonl", MESSY_PAIRS)
    for folder in ("one", "two"):
        tokenize(tmp_path / folder, units, recipe)
    for unit in units:
        assert (tmp_path / "one" / unit.output_name).read_bytes() == (tmp_path / "two" / unit.output_name).read_bytes()


@given(rows=st.integers(1, 40), quota=st.integers(1, 50))
def test_a_sample_is_spread_over_the_unit_and_never_above_its_share(tmp_path: Path, rows: int, quota: int) -> None:
    lines = [json.dumps({"source": f"s{n}", "target": f"t{n}"}).encode() for n in range(rows)]
    _, recipe = prepare(tmp_path / "a.jsonl", lines)
    unit = Unit(3, str(tmp_path / "a.jsonl"), "jsonl", None, 0, 10**6, rows)
    result = SampleUnit(recipe, quota)(unit)
    chosen = [int(text[1:]) for text in result["texts"][::2]]
    assert result["texts"] == [f"{side}{n}" for n in chosen for side in "st"]
    assert len(set(chosen)) == len(chosen) == min(rows, quota)
    assert chosen[-1] >= rows - -(-rows // quota)
    assert (result["index"], result["labels"]) == (3, [])
    assert json.loads(json.dumps(result)) == result


def test_a_sample_of_labelled_text_has_every_label_but_no_label_text(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "t", "label": f"label {n % 7}"}).encode() for n in range(70)]
    _, recipe = prepare(tmp_path / "a.jsonl", lines)
    result = SampleUnit(recipe, 5)(Unit(0, str(tmp_path / "a.jsonl"), "jsonl", None, 0, 10**6, 70))
    assert result["texts"] == ["t"] * 5
    assert result["labels"] == [f"label {n}" for n in range(7)]


def test_a_corpus_that_is_not_named_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"corpus\.train is empty"):
        find_splits(TokenizeJob(out=""))
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(InputError, match=r"corpus\.valid: no row in"):
        (tmp_path / "b.jsonl").write_bytes(GOOD_PAIR)
        corpus = CorpusConfig(train=f"{tmp_path}/b.jsonl", valid=f"{tmp_path}/a.jsonl")
        find_splits(TokenizeJob(out="", corpus=corpus))
