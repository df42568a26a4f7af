"""The tokenize job as a whole, without Ray: where every row ends up, whatever the order, files and workers."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_storage_remote import bucket  # noqa: F401 - a fixture
from tests.tokens.conftest import Run
from tfray import storage
from tfray.config import CleanConfig, CorpusConfig, PartConfig, TokenizeJob, TokensConfig
from tfray.corpus.read import read_fields
from tfray.errors import CheckpointMismatch, InputError, StorageFailure, TooManyErrors
from tfray.report.account import format_account
from tfray.storage import publish_json, read_json
from tfray.tokens import learning as learning_module
from tfray.tokens.shards import TokenFolder, read_pairs
from tfray.tokens.special import EOS_ID
from tfray.tokens.stage import TokenizeUnit
from tfray.tokens.survey import SurveyUnit
from tfray.units import lock as lock_module
from tfray.units.lock import LOCK
from tfray.units.plan import Unit

WORDS = ["a", "man", "Mann", "ein", "dog", "Hund", "zwei", "two", "it's", "2,000", "café", "狗", "</s>"]
TEXT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
PAIRS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=40)
MESSY = [
    b"",
    b"{cut",
    b'{"source": "\xff", "target": "x"}',
    b'{"source": 7, "target": "x"}',
    b'{"source": "x"}',
    b'{"source": " ", "target": "x"}',
    b'{"source": "' + b"word " * 40 + b'", "target": "x"}',
    b'{"source": "' + b"x" * 600 + b'", "target": "x"}',
    b'["a"]',
]


def line(pair: tuple[str, str]) -> bytes:
    return json.dumps({"source": pair[0], "target": pair[1]}).encode()


def write_lines(path: Path, lines: list[bytes]) -> str:
    path.write_bytes(b"".join(entry + b"\n" for entry in lines))
    return str(path)


def make_job(
    place: Path, train: Any, clean: dict | None = None, tokens: dict | None = None, out: str = "", **corpus: Any
) -> TokenizeJob:
    cleaning = CleanConfig(**{"max_characters": 500, "max_error_rate": 1, **(clean or {})})
    settings = TokensConfig(**{"vocab_size": 300, "max_length": 30, **(tokens or {})})
    return TokenizeJob(
        out=out or str(place), corpus=CorpusConfig(train=train, clean=cleaning, **corpus), tokens=settings
    )


def read(tokens: TokenFolder, folder: str) -> list[dict]:
    """Return the rows in a subfolder's files."""
    paths = sorted(Path(tokens.folder, folder).glob("part-*.parquet"))
    return [row for path in paths for row in pq.read_table(path, partitioning=None).to_pylist()]


def texts_of(tokens: TokenFolder, split: str) -> list[tuple[str, str]]:
    """Return a split's pairs, decoded."""
    rows = read(tokens, split)
    sides = [tokens.tokenizer.decode_batch([row[side] for row in rows]) for side in ("source_ids", "target_ids")]
    return list(zip(*sides, strict=True))


def places(tokens: TokenFolder) -> Counter:
    """Return how often each (file, row) stands in a shard or among the rejected rows."""
    return Counter((row["file"], row["row"]) for name in ("train", "valid", "test", "rejected")
                   for row in read(tokens, name))  # fmt: skip


def test_settings_with_which_no_row_is_left_do_not_keep_the_place_from_better_ones(tmp_path: Path, run: Run) -> None:
    lines = [*map(line, [("a man", "ein Mann"), ("a dog", "ein Hund")])]
    file = write_lines(tmp_path / "a.jsonl", lines)
    for clean in ({"min_characters": 100}, {"max_characters": 1}):
        with pytest.raises(InputError, match="every row was dropped"):
            run(make_job(tmp_path / "out", file, clean))
    assert run(make_job(tmp_path / "out", file)).manifest["splits"]["train"]["pairs"] == 2
    with pytest.raises(CheckpointMismatch):
        run(make_job(tmp_path / "out", file, {"min_characters": 100}))


@settings(max_examples=15)
@given(
    pairs=PAIRS,
    mess=st.lists(st.sampled_from(MESSY), max_size=10),
    seed=st.integers(0, 99),
    duplicates=st.sampled_from(["off", "pair", "source", "target", "either"]),
    shares=st.sampled_from([(0, 0), (0.3, 0), (0.2, 0.3)]),
)
def test_every_row_is_in_exactly_one_of_shards_and_rejected_rows(
    tmp_path_factory: pytest.TempPathFactory,
    run: Run,
    pairs: list,
    mess: list,
    seed: int,
    duplicates: str,
    shares: tuple,
) -> None:
    folder = tmp_path_factory.mktemp("job")
    lines = [*map(line, pairs), *mess]
    random.Random(seed).shuffle(lines)
    first, second = lines[: len(lines) // 2], lines[len(lines) // 2 :]
    files = [write_lines(folder / f"{n}.jsonl", part) for n, part in enumerate((first, second)) if part]
    clean = {"duplicates": duplicates, "drop_equal": True}
    job = make_job(folder / "out", files, clean, valid_share=shares[0], test_share=shares[1])
    try:
        tokens = run(job, workers=2, seed=seed)
    except InputError as error:
        assert "every row was dropped" in str(error)
        return
    found = places(tokens)
    assert set(found.values()) == {1}
    assert len(found) == len(lines) == tokens.manifest["corpora"]["corpus"]["rows"]
    assert sum(tokens.manifest["corpora"]["corpus"]["rejected"].values()) == len(read(tokens, "rejected"))
    for split, sums in tokens.manifest["splits"].items():
        rows = read(tokens, split)
        assert sums["pairs"] == len(rows)
        assert sums["source_tokens"] == sum(row["source_length"] for row in rows)
        assert all(
            row["source_ids"][-1] == EOS_ID and len(row["target_ids"]) + 1 == row["target_length"] for row in rows
        )
    kept = {pair for split in tokens.manifest["splits"] for pair in texts_of(tokens, split)}
    assert kept <= set(pairs)


@settings(max_examples=12)
@given(pairs=PAIRS, seed=st.integers(0, 99), sample=st.integers(1, 30))
def test_tokenizer_and_splits_follow_from_the_rows_and_not_from_their_order_files_or_workers(
    tmp_path_factory: pytest.TempPathFactory, run: Run, pairs: list, seed: int, sample: int
) -> None:
    folder = tmp_path_factory.mktemp("job")
    chance = random.Random(seed)
    results = []
    for number, workers in enumerate((1, 2, 4)):
        rows = chance.sample(pairs, len(pairs)) if number else pairs
        cut = chance.randrange(len(rows) + 1) if number else 0
        files = []
        for part, chosen in enumerate((rows[:cut], rows[cut:])):
            if chosen and part:
                files.append(write_lines(folder / f"{number}{part}.jsonl", list(map(line, chosen))))
            elif chosen:
                path = folder / f"{number}{part}.parquet"
                columns = list(zip(*chosen, strict=True))
                pq.write_table(pa.table({"source": columns[0], "target": columns[1]}), path)
                files.append(str(path))
        job = make_job(folder / str(number), files, tokens={"sample_rows": sample}, valid_share=0.3, held_out="source")
        try:
            tokens = run(job, workers, seed, unit_rows=chance.randrange(1, 9))
        except InputError as error:
            results.append(str(error).partition("(")[0])
            continue
        results.append((tokens.tokenizer.json, *(sorted(texts_of(tokens, split)) for split in ("train", "valid"))))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("held_out", ["either", "source", "off"])
def test_no_text_of_validation_data_is_in_training(tmp_path: Path, run: Run, held_out: str) -> None:
    pairs = [(f"{WORDS[i % 9]} {i}", f"{WORDS[i % 7]} {i % 40}") for i in range(120)]
    valid = [("new", pairs[3][1]), (pairs[50][0], "neu"), ("unseen", "ungesehen")]
    job = make_job(
        tmp_path / "out",
        write_lines(tmp_path / "a.jsonl", list(map(line, pairs))),
        valid=write_lines(tmp_path / "v.jsonl", list(map(line, valid))),
        held_out=held_out,
    )
    tokens = run(job)
    trained = set(texts_of(tokens, "train"))
    sources, targets = {source for source, _ in valid}, {target for _, target in valid}
    leaks = {pair for pair in pairs if pair[0] in sources}
    if held_out == "either":
        leaks |= {pair for pair in pairs if pair[1] in targets}
    assert trained == (set(pairs) if held_out == "off" else set(pairs) - leaks)
    assert tokens.manifest["corpora"]["corpus"]["rejected"].get("held_out", 0) == len(set(pairs) - trained)
    assert set(texts_of(tokens, "valid")) == set(valid)


def test_test_rows_are_kept_as_text_too(tmp_path: Path, run: Run) -> None:
    pairs = [(f"source {i}", f"target {i}") for i in range(200)]
    path = write_lines(tmp_path / "a.jsonl", list(map(line, pairs)))
    tokens = run(make_job(tmp_path / "out", path, test_share=0.2))
    kept = [(row["source"], row["target"]) for row in read(tokens, "test_text")]
    assert kept and sorted(kept) == sorted(texts_of(tokens, "test"))
    assert all(pairs[row["row"]] == (row["source"], row["target"]) for row in read(tokens, "test_text"))


@given(pairs=PAIRS, mode=st.sampled_from(["pair", "source", "target", "either"]))
@settings(max_examples=20)
def test_the_first_of_equal_rows_stays(
    tmp_path_factory: pytest.TempPathFactory, run: Run, pairs: list, mode: str
) -> None:
    folder = tmp_path_factory.mktemp("job")
    path = write_lines(folder / "a.jsonl", list(map(line, pairs)))
    tokens = run(make_job(folder / "out", path, {"duplicates": mode}), workers=3, unit_rows=3)
    seen: set = set()
    expected = []
    for row, (source, target) in enumerate(pairs):
        keys = {"pair": {(source, target)}, "source": {(source,)}, "target": {("", target)}}.get(
            mode, {(source,), ("", target)}
        )
        if not keys & seen:
            expected.append(row)
        seen |= keys
    assert sorted(row["row"] for row in read(tokens, "train")) == expected


def test_several_corpora_have_columns_weights_and_accounts_of_their_own(tmp_path: Path, run: Run) -> None:
    pq.write_table(pa.table({"en": ["a man", "two dogs"], "de": ["ein Mann", "zwei Hunde"]}), tmp_path / "a.parquet")
    (tmp_path / "b.tsv").write_text("source\ttarget\na cat\teine Katze\n\tleer\n")
    parts = [
        PartConfig(name="news", files=str(tmp_path / "a.parquet"), source_column="en", target_column="de", weight=2),
        PartConfig(name="talks", files=str(tmp_path / "b.tsv")),
    ]
    tokens = run(make_job(tmp_path / "out", [], parts=parts))
    assert tokens.weights == {"news": 2.0, "talks": 1.0}
    assert {shard.corpus for shard in tokens.shards("train")} == {"news", "talks"}
    assert sorted(texts_of(tokens, "train")) == [
        ("a cat", "eine Katze"),
        ("a man", "ein Mann"),
        ("two dogs", "zwei Hunde"),
    ]
    assert tokens.manifest["corpora"]["talks"]["rejected"] == {"empty_source": 1}
    assert {row["corpus"] for row in read(tokens, "rejected")} == {"talks"}
    assert "talks" in format_account(tokens.manifest)


def test_a_second_start_does_nothing_and_a_changed_setting_is_refused_by_its_name(tmp_path: Path, run: Run) -> None:
    path = write_lines(tmp_path / "a.jsonl", [line(("a", "b"))] * 3)
    first = run(make_job(tmp_path / "out", path))
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.parquet")}
    assert run(make_job(tmp_path / "out", path)).fingerprint == first.fingerprint
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.parquet")} == before
    with pytest.raises(CheckpointMismatch, match=r"corpus\.clean\.duplicates was 'off', is now 'pair'"):
        run(make_job(tmp_path / "out", path, {"duplicates": "pair"}))


def test_an_input_that_changed_is_refused_by_its_name(tmp_path: Path, run: Run) -> None:
    paths = [write_lines(tmp_path / f"{name}.jsonl", [line(("a", name))] * 3) for name in "ab"]
    run(make_job(tmp_path / "out", paths))
    write_lines(tmp_path / "b.jsonl", [line(("a", "b"))] * 4)
    with pytest.raises(CheckpointMismatch, match=r"inputs\.corpus\.\S*/b\.jsonl was \["):
        run(make_job(tmp_path / "out", paths))


def test_near_duplicates_are_dropped_where_that_is_wanted(tmp_path: Path, run: Run) -> None:
    text = "the quick brown fox jumps over the lazy dog near the old river bank"
    sources = [text, f"{text}!", "something that is not like it in any way at all", f"{text}s"]
    path = write_lines(tmp_path / "a.jsonl", [line((source, str(i))) for i, source in enumerate(sources)])
    tokens = run(make_job(tmp_path / "out", path, {"near_duplicates": 0.7}, {"max_length": 100}), workers=2)
    assert sorted(row["row"] for row in read(tokens, "train")) == [0, 2]


def test_shards_hold_about_so_many_tokens_and_no_unit_is_lost(tmp_path: Path, run: Run) -> None:
    lines = [line((f"{'word ' * 20}{i}", "x")) for i in range(300)]
    job = make_job(
        tmp_path / "out", write_lines(tmp_path / "a.jsonl", lines), tokens={"shard_tokens": 1000, "max_length": 200}
    )
    tokens = run(job, unit_rows=300)
    sizes = [shard.source_tokens + shard.target_tokens for shard in tokens.shards("train")]
    assert max(sizes) <= 2000 and sum(tokens.pair_counts("train")) == 300


def test_an_object_store_gives_and_takes_the_same_as_a_folder(tmp_path: Path, run: Run, bucket: str) -> None:  # noqa: F811
    lines = [line((f"{word} {i}", f"{i % 7} {word}")) for i, word in enumerate(WORDS * 5)]
    local = run(make_job(tmp_path / "out", write_lines(tmp_path / "a.jsonl", lines), {"duplicates": "target"}))
    storage.publish_bytes(storage.join(bucket, "in/a.jsonl"), (tmp_path / "a.jsonl").read_bytes())
    out = storage.join(bucket, "out")
    remote = run(make_job(Path(), storage.join(bucket, "in/*.jsonl"), {"duplicates": "target"}, out=out))
    assert [shard.pairs for shard in remote.shards("train")] == [shard.pairs for shard in local.shards("train")]
    assert remote.tokenizer.json == local.tokenizer.json
    ids = [read_pairs(tokens.paths("train")).to_pylist() for tokens in (local, remote)]
    assert ids[0] == ids[1]
    assert not storage.exists(storage.join(out, "_work"))


# ------------------------------------------------------------------------------------------- bad input


def test_a_job_that_lost_too_many_rows_by_errors_says_so_and_ends_at_once_with_a_higher_limit(
    tmp_path: Path, run: Run
) -> None:
    lines = [line(("a", "b"))] * 97 + [b"{"] * 2 + [b'{"source": "", "target": "x"}']
    path = write_lines(tmp_path / "a.jsonl", lines)
    with pytest.raises(TooManyErrors, match=r"2 of 100 rows \(2\.0%\) were lost by errors(.|\n)*max_error_rate=0\.01"):
        run(make_job(tmp_path / "out", path, {"max_error_rate": 0.01}))
    shards = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "train").iterdir()}
    tokens = run(make_job(tmp_path / "out", path, {"max_error_rate": 0.02}))
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "train").iterdir()} == shards
    assert tokens.manifest["corpora"]["corpus"]["rejected"] == {"bad_json": 2, "empty_source": 1}


def test_bad_files_are_counted_and_named_and_the_others_are_used(tmp_path: Path, run: Run) -> None:
    good = [line(("a man", "ein Mann"))] * 50
    write_lines(tmp_path / "good.jsonl", good)
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "magic.parquet").write_bytes(b"this is not Parquet at all")
    pq.write_table(pa.table({"other": ["x"] * 5}), tmp_path / "schema.parquet")
    import gzip

    chance = random.Random(1)
    whole = gzip.compress(b"".join(line((f"s{chance.random()}", f"t{i}")) + b"\n" for i in range(100_000)))
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    names = ("good.jsonl", "empty.jsonl", "magic.parquet", "schema.parquet", "cut.jsonl.gz")
    tokens = run(make_job(tmp_path / "out", [str(tmp_path / name) for name in names]))
    account = tokens.manifest["corpora"]["corpus"]
    assert account["rejected"]["other_schema"] == 5
    assert account["rejected"]["damaged_file"] >= 2
    assert {Path(entry.partition(": ")[0].strip("'")).name for entry in account["damaged_files"]} == {
        "magic.parquet", "schema.parquet", "cut.jsonl.gz",
    }  # fmt: skip
    assert sum(account["pairs"].values()) > 50, "what can be read of the cut file is used"
    assert "magic.parquet" in format_account(tokens.manifest)


@pytest.mark.parametrize("damaged", ["a", "b"])
def test_beside_a_damaged_row_group_duplicates_alone_are_dropped(tmp_path: Path, run: Run, damaged: str) -> None:
    texts = {name: [f"{name} {row}" for row in range(20)] for name in "ab"}
    texts["a"][19] = texts["b"][19] = texts["a"][11]
    paths = [tmp_path / f"{name}.parquet" for name in "ab"]
    for path, column in zip(paths, texts.values(), strict=True):
        table = pa.table({"source": column, "target": column})
        pq.write_table(table, path, row_group_size=10, write_page_checksum=True, use_dictionary=False)
    path = tmp_path / f"{damaged}.parquet"
    column, data = pq.read_metadata(path).row_group(0).column(0), bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 1] ^= 0xFF
    path.write_bytes(data)
    job = make_job(tmp_path / "out", [str(path) for path in paths], {"duplicates": "pair"})
    tokens = run(job, unit_rows=20, most_units=1)
    lost = {(damaged, row) for row in range(10)}
    whole = {(name, row) for name in "ab" for row in range(20)} - {("a", 19), ("b", 19)}
    assert {(Path(row["file"]).stem, row["row"]) for row in read(tokens, "train")} == whole - lost
    assert tokens.manifest["corpora"]["corpus"]["rejected"] == {"duplicate": 2, "damaged_file": 10}


def test_a_file_that_disappears_is_counted_and_named(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from tfray.tokens import tokenize as module

    paths = [write_lines(tmp_path / f"{name}.jsonl", [line(("a", "b"))] * 10) for name in "ab"]
    plan = module.plan_corpora

    def plan_and_lose(*arguments: Any) -> Any:
        units = plan(*arguments)
        Path(paths[1]).unlink()
        return units

    monkeypatch.setattr(module, "plan_corpora", plan_and_lose)
    tokens = run(make_job(tmp_path / "out", paths))
    account = tokens.manifest["corpora"]["corpus"]
    assert account["rejected"] == {"damaged_file": 10} and account["rows"] == 20
    assert all("b.jsonl" in entry for entry in account["damaged_files"])


def test_parallel_files_of_different_length_are_refused_with_both_counts(tmp_path: Path, run: Run) -> None:
    (tmp_path / "a.en").write_text("one\ntwo\nthree\n")
    (tmp_path / "a.de").write_text("eins\nzwei\n")
    job = make_job(tmp_path / "out", str(tmp_path / "a.en"), train_target=str(tmp_path / "a.de"))
    with pytest.raises(InputError, match=r"a\.en' has 3.*a\.de' has 2"):
        run(job)
    (tmp_path / "a.de").write_text("eins\nzwei\ndrei\n")  # mended, and started again
    assert sorted(texts_of(run(job), "train")) == [("one", "eins"), ("three", "drei"), ("two", "zwei")]


def test_a_corpus_that_is_not_named_or_empty_is_refused(tmp_path: Path, run: Run) -> None:
    with pytest.raises(InputError, match=r"corpus\.train is empty"):
        run(TokenizeJob(out=str(tmp_path / "out")))
    (tmp_path / "a.jsonl").touch()
    path = write_lines(tmp_path / "b.jsonl", [line(("a", "b"))])
    with pytest.raises(InputError, match=r"corpus\.valid: no row in"):
        run(make_job(tmp_path / "out", path, valid=str(tmp_path / "a.jsonl")))


# ------------------------------------------------------------------------------------------- labels


def test_labels_become_their_names_and_unknown_ones_are_counted(tmp_path: Path, run: Run) -> None:
    values = [1, 0, "0", "awful", 7, None, [1], 1]
    lines = [json.dumps({"text": f"text {i}", "label": value}).encode() for i, value in enumerate(values * 3)]
    names = {"0": "negative", "1": "positive"}
    tokens = run(make_job(tmp_path / "out", write_lines(tmp_path / "a.jsonl", lines), label_names=names))
    label_of_id = {index: label for label, index in tokens.tokenizer.label_ids.items()}
    labels = Counter(label_of_id[row["target_ids"][0]] for row in read(tokens, "train"))
    assert labels == {"positive": 6, "negative": 6}
    rejected = tokens.manifest["corpora"]["corpus"]["rejected"]
    assert rejected["unknown_label"] == 9 and sum(rejected.values()) == 12


def test_label_names_that_fit_no_row_are_named_with_the_first_row(tmp_path: Path, run: Run) -> None:
    lines = [json.dumps({"text": f"text {i}", "label": True}).encode() for i in range(3)]
    path = write_lines(tmp_path / "a.jsonl", lines)
    first = r"3 unknown_label; the first: .*a\.jsonl, line 1: .*'true' is not in label_names \(True\).*'text 0'"
    with pytest.raises(InputError, match=f"{first}.*; name it in corpus.label_names, or leave that out"):
        run(make_job(tmp_path / "out", path, label_names={"True": "pos"}))


def test_a_label_that_training_never_saw_is_counted_and_named(tmp_path: Path, run: Run) -> None:
    rows = [{"text": f"t{i}", "label": "old"} for i in range(5)]
    train = write_lines(tmp_path / "a.jsonl", [json.dumps(row).encode() for row in rows])
    valid = write_lines(tmp_path / "v.jsonl", [b'{"text": "x", "label": "new"}', b'{"text": "y", "label": "old"}'])
    tokens = run(make_job(tmp_path / "out", train, valid=valid, label_names={}))
    assert tokens.tokenizer.labels == ["old"]
    assert tokens.manifest["corpora"]["valid"]["rejected"] == {"unknown_label": 1}


def test_labels_are_never_held_out_nor_length_checked(tmp_path: Path, run: Run) -> None:
    rows = [{"text": f"{'word ' * 12}{i}", "label": i % 2} for i in range(20)]
    train = write_lines(tmp_path / "a.jsonl", [json.dumps(row).encode() for row in rows])
    valid = write_lines(tmp_path / "v.jsonl", [b'{"text": "x", "label": 1}', b'{"text": "y", "label": 0}'])
    tokens = run(make_job(tmp_path / "out", train, {"max_length_ratio": 2}, valid=valid))
    assert tokens.pair_counts("train") and sum(tokens.pair_counts("train")) == 20


def test_a_stage_whose_driver_has_lost_the_place_writes_nothing(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "PATIENCE_SECONDS", 0.0)
    train = write_lines(tmp_path / "a.jsonl", [line((f"a man {n}", f"ein Mann {n}")) for n in range(40)])
    job = make_job(tmp_path, train, out=str(tmp_path / "out"))

    def lose_place(self: TokenizeUnit, unit: Unit) -> dict:
        owner = read_json(lock_path)
        publish_json(lock_path, {**owner, "token": "another"})
        return call(self, unit)

    lock_path, call = str(tmp_path / "out" / LOCK), TokenizeUnit.__call__
    monkeypatch.setattr(TokenizeUnit, "__call__", lose_place)
    with pytest.raises(InputError, match="is worked on by"):
        run(job)
    assert not list((tmp_path / "out").glob("train/*")) and not list((tmp_path / "out" / "_units").glob("*"))


@pytest.mark.parametrize("clean", [{}, {"min_characters": 100}])
def test_a_driver_that_has_lost_the_place_during_its_survey_leaves_what_another_has_made_there(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, clean: dict
) -> None:
    """Neither is its tokenizer put there, nor is the folder deleted where no row is left."""
    train = write_lines(tmp_path / "a.jsonl", [line((f"a man {n}", f"ein Mann {n}")) for n in range(40)])
    out, draw = tmp_path / "out", learning_module.draw_sample
    path = str(out / LOCK)

    def lose_place(*arguments: Any) -> list[str]:
        texts = draw(*arguments)
        thief = {**read_json(path), "token": "another", "host": "elsewhere"}
        publish_json(path, thief)
        deadline = time.monotonic() + 30
        while not locks[0].thief and time.monotonic() < deadline:
            time.sleep(0.01)
            publish_json(path, thief)  # a beat may have fallen between
        (out / "tokenizer.json").write_text("of the other")
        return texts

    locks: list[lock_module.Lock] = []
    enter = lock_module.Lock.__enter__
    monkeypatch.setattr(lock_module.Lock, "__enter__", lambda self: locks.append(self) or enter(self))
    monkeypatch.setattr(lock_module, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(learning_module, "draw_sample", lose_place)
    with pytest.raises(InputError, match=r"is worked on by process .* on elsewhere"):
        run(make_job(tmp_path, train, clean, out=str(out)))
    assert (out / "tokenizer.json").read_text() == "of the other" and (out / "_manifest.json").exists()


def test_who_surveys_for_a_driver_that_was_killed_notes_nothing_for_the_next(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "PATIENCE_SECONDS", 0.0)
    pairs = [(f"a man {n % 5}", f"ein Mann {n}") for n in range(30)]
    train = write_lines(tmp_path / "a.jsonl", [*map(line, pairs)])
    calm = run(make_job(tmp_path / "calm", train, {"duplicates": "source"}))
    call, left_behind = SurveyUnit.__call__, []

    def be_killed(self: SurveyUnit, unit: Unit) -> dict:
        left_behind.append((self, unit))
        raise KeyboardInterrupt

    def overtaken(self: SurveyUnit, unit: Unit) -> dict:
        if left_behind:
            zombie, before = left_behind.pop()
            with contextlib.suppress(InputError):
                call(zombie, before)
        return call(self, unit) if unit.stem not in recorded(self) else {"rows": 0, "bytes": 0}

    def recorded(survey: SurveyUnit) -> set[str]:
        found = storage.list_files(survey.questions.folder)
        return {storage.base_name(path).removesuffix(".json") for path in found}

    job = make_job(tmp_path / "out", train, {"duplicates": "target"})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SurveyUnit, "__call__", be_killed)
        run(job)
    monkeypatch.setattr(SurveyUnit, "__call__", overtaken)
    job = replace(make_job(tmp_path / "out", train, {"duplicates": "source"}), overwrite=True)
    assert run(job).manifest["splits"] == calm.manifest["splits"]


def test_an_overwrite_that_is_refused_leaves_what_is_there(tmp_path: Path, run: Run) -> None:
    (tmp_path / "a.en").write_text("a man\n" * 3)
    (tmp_path / "a.de").write_text("ein Mann\n" * 3)
    job = make_job(tmp_path / "out", str(tmp_path / "a.en"), train_target=str(tmp_path / "a.de"))
    run(job)
    before = sorted((tmp_path / "out").rglob("*"))
    (tmp_path / "a.de").write_text("ein Mann\n" * 2)
    with pytest.raises(InputError, match="as many lines on both sides"):
        run(replace(job, overwrite=True))
    assert sorted((tmp_path / "out").rglob("*")) == before and (tmp_path / "out" / "_SUCCESS").exists()


def test_what_kills_and_other_settings_leave_is_gone_in_the_end(tmp_path: Path, run: Run) -> None:
    train = write_lines(tmp_path / "a.jsonl", [line(("a man", "ein Mann"))] * 5)
    job = make_job(tmp_path / "out", train)
    run(job)
    (tmp_path / "out" / f".tokenizer.json.{'0' * 32}").write_text("half")
    run(replace(make_job(tmp_path / "out", train, {"max_characters": 400}), overwrite=True))
    assert not list((tmp_path / "out").glob(".*"))
    assert len(list((tmp_path / "out").glob("_plan*"))) == 1


def test_a_file_that_the_storage_does_not_give_is_not_left_out(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = [write_lines(tmp_path / f"{name}.jsonl", [line(("a man", "ein Mann"))] * 5) for name in "ab"]

    def fail(file: Any) -> Any:
        if file.path.endswith("b.jsonl"):
            raise StorageFailure("b.jsonl cannot be read")
        return read_fields(file)

    monkeypatch.setattr("tfray.corpus.read.read_fields", fail)
    with pytest.raises(StorageFailure, match=r"b\.jsonl"):
        run(make_job(tmp_path, train, out=str(tmp_path / "out")))
    with pytest.raises(StorageFailure, match=r"b\.jsonl"):
        run(make_job(tmp_path, train[::-1], out=str(tmp_path / "out")))


def test_the_sample_is_the_same_where_the_rows_of_a_layout_are_guessed(tmp_path: Path, run: Run) -> None:
    chance = random.Random(0)
    pairs = [(" ".join(f"w{chance.randrange(900)}" for _ in range(40)), f"t{row}") for row in range(400)]
    columns = list(zip(*pairs, strict=True))
    pq.write_table(pa.table({"source": columns[0], "target": columns[1]}), tmp_path / "a.parquet")
    lines = "".join(f"{source}\t{target}\n" for source, target in [("source", "target"), *pairs])
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(lines.encode()))  # taken for about twice as many rows
    names, tokens = ("a.parquet", "a.tsv.gz"), {"sample_rows": 100, "vocab_size": 600, "max_length": 500}
    jobs = [make_job(tmp_path / f"out-{name}", str(tmp_path / name), tokens=tokens) for name in names]
    first, second = (run(job, unit_rows=1000).tokenizer.json for job in jobs)
    assert first == second


@pytest.mark.parametrize("pattern", ["", "/**", "/x/*/part*.parquet"])
def test_an_output_that_would_be_read_as_corpus_is_refused_before_the_work(
    tmp_path: Path, run: Run, pattern: str
) -> None:
    write_lines(tmp_path / "a.jsonl", [line(("a", "b"))])
    (tmp_path / "x/y").mkdir(parents=True)
    pq.write_table(pa.table({"source": ["a"], "target": ["b"]}), tmp_path / "x/y/part.parquet")
    with pytest.raises(InputError, match=r"out=.*/x/out' and corpus=.* lie in each other"):
        run(make_job(tmp_path / "x/out", f"{tmp_path}{pattern}"))
    assert not (tmp_path / "x/out").exists()
