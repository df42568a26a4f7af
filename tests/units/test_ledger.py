"""The commit log: resume is a difference of names, and nothing is mixed or deleted that must not be."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfray import storage
from tfray.errors import CheckpointMismatch, InputError
from tfray.units import ledger as ledger_module
from tfray.units.ledger import MANIFEST, RECORDS, open_ledger, published, read_manifest, record_unit, sweep
from tfray.units.place import open_place
from tfray.units.plan import Unit

UNITS = [Unit(index, "/a.txt", "text", None, index, index + 1, index, 1, 1) for index in range(8)]
MADE_FROM = {"model": "abc", "generation": {"beam_size": 4}, "inputs": [["/a.txt", 8, 1]]}


@settings(max_examples=20)
@given(done=st.sets(st.sampled_from(range(len(UNITS)))))
def test_what_remains_is_what_has_no_record_yet(tmp_path_factory: pytest.TempPathFactory, done: set[int]) -> None:
    folder = tmp_path_factory.mktemp("out")
    ledger = open_ledger(str(folder), MADE_FROM, overwrite=False)
    for index in done:
        record_unit(str(folder / RECORDS), UNITS[index], {"rows": index})
    assert [unit.index for unit in ledger.remaining(UNITS)] == [i for i in range(len(UNITS)) if i not in done]
    finished = [UNITS[index] for index in sorted(done)]
    assert ledger.records(finished) == [{"rows": unit.index} for unit in finished]


def test_a_half_written_record_does_not_count_as_done_and_is_swept_away(tmp_path: Path) -> None:
    ledger = open_ledger(str(tmp_path), MADE_FROM, overwrite=False)
    record_unit(str(tmp_path / RECORDS), UNITS[1], {})
    half = tmp_path / RECORDS / f".{UNITS[0].stem}.json.{uuid.uuid4().hex}"
    half.write_bytes(b"half")
    own = tmp_path / RECORDS / ".notes.txt"
    own.write_bytes(b"of the user")
    assert ledger.remaining(UNITS) == [UNITS[0], *UNITS[2:]]
    sweep(str(tmp_path / RECORDS))
    assert (
        not half.exists()
        and own.exists()
        and published(str(tmp_path / RECORDS)) == [f"{tmp_path}/{RECORDS}/{UNITS[1].stem}.json"]
    )


def test_the_same_settings_go_on_and_keep_what_is_done(tmp_path: Path) -> None:
    ledger = open_ledger(str(tmp_path), MADE_FROM, overwrite=False)
    record_unit(str(tmp_path / RECORDS), UNITS[0], {})
    for overwrite in (False, True):
        assert open_ledger(str(tmp_path), MADE_FROM, overwrite).remaining(UNITS) == UNITS[1:]
    assert ledger.remaining(UNITS) == UNITS[1:]


@settings(max_examples=20)
@given(st.dictionaries(st.text(), st.recursive(st.integers() | st.text(), lambda x: st.lists(x) | st.tuples(x, x))))
def test_any_settings_equal_themselves_when_they_come_back(
    tmp_path_factory: pytest.TempPathFactory, made_from: dict[str, object]
) -> None:
    folder = str(tmp_path_factory.mktemp("out"))
    open_ledger(folder, made_from, overwrite=False)
    open_ledger(folder, made_from, overwrite=False)


def test_a_changed_setting_is_refused_by_its_dotted_name(tmp_path: Path) -> None:
    open_ledger(str(tmp_path), MADE_FROM, overwrite=False)
    with pytest.raises(CheckpointMismatch, match=r"generation\.beam_size was 4, is now 1"):
        open_ledger(str(tmp_path), {**MADE_FROM, "generation": {"beam_size": 1}}, overwrite=False)


def test_a_setting_that_is_new_or_gone_is_refused_by_its_name(tmp_path: Path) -> None:
    open_ledger(str(tmp_path), MADE_FROM, overwrite=False)
    with pytest.raises(CheckpointMismatch, match="seed was None, is now 1"):
        open_ledger(str(tmp_path), {**MADE_FROM, "seed": 1}, overwrite=False)
    with pytest.raises(CheckpointMismatch, match="model was 'abc', is now None"):
        open_ledger(str(tmp_path), {"generation": {"beam_size": 4}, "inputs": MADE_FROM["inputs"]}, overwrite=False)


def test_a_long_setting_is_cut_in_the_message(tmp_path: Path) -> None:
    open_ledger(str(tmp_path), {"inputs": ["/file"] * 1000}, overwrite=False)
    with pytest.raises(CheckpointMismatch, match="inputs was") as error:
        open_ledger(str(tmp_path), {"inputs": ["/file"] * 999}, overwrite=False)
    assert len(str(error.value)) < 1000


def test_overwrite_clears_what_other_settings_made(tmp_path: Path) -> None:
    old = open_ledger(str(tmp_path), MADE_FROM, overwrite=False)
    storage.publish_bytes(f"{tmp_path}/train/{UNITS[0].output_name}", b"")
    storage.publish_bytes(f"{tmp_path}/{UNITS[0].output_name}", b"")
    old.finish({"rows": 1})
    new = open_ledger(str(tmp_path), {"model": "new"}, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]
    assert not new.is_finished
    assert new.manifest["made_from"] == {"model": "new"}


def test_a_killed_overwrite_is_taken_up_again_and_mixes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_ledger(str(tmp_path), MADE_FROM, overwrite=False).finish({})
    for unit in UNITS:
        (tmp_path / unit.output_name).touch()
    removed = []

    def remove_a_few(path: str) -> None:
        if len(removed) == 4:
            raise KeyboardInterrupt
        removed.append(path)
        Path(path).unlink()

    with monkeypatch.context() as patch:
        patch.setattr(ledger_module.storage, "remove", remove_a_few)
        # The probe of check_writable is removed too.
        with pytest.raises(KeyboardInterrupt):
            open_ledger(str(tmp_path), {"model": "new"}, overwrite=True)
    assert not (tmp_path / "_SUCCESS").exists()
    with pytest.raises(CheckpointMismatch):
        open_ledger(str(tmp_path), {"model": "new"}, overwrite=False)
    assert open_ledger(str(tmp_path), {"model": "new"}, overwrite=True).remaining(UNITS) == UNITS


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["thesis.tex", "photos/cat.jpg"])
def test_a_folder_with_something_else_in_it_is_refused_and_kept(tmp_path: Path, name: str, overwrite: bool) -> None:
    storage.publish_bytes(f"{tmp_path}/{name}", b"mine")
    with pytest.raises(InputError, match="holds files of something else"):
        open_ledger(str(tmp_path), MADE_FROM, overwrite)
    assert (tmp_path / name).read_bytes() == b"mine"


TOKENIZE = {"corpus": {"train": "a"}, "tokens": {"vocab_size": 300}}
TRAIN = {"tokens": "abc", "training": {"epochs": 3}}
PREDICT = {"model": "abc", "generation": {"beam_size": 4}, "inputs": {}}


@pytest.mark.parametrize(
    ("made", "command"), [(TOKENIZE, "tfray tokenize"), (TRAIN, "tfray train"), (PREDICT, "tfray predict")]
)
def test_what_another_command_made_is_never_deleted(tmp_path: Path, made: dict, command: str) -> None:
    open_ledger(str(tmp_path), made, overwrite=False)
    (tmp_path / "best").mkdir()
    for other in (TOKENIZE, TRAIN, PREDICT):
        if other is not made:
            with pytest.raises(InputError, match=f"was written by `{command}`; choose another folder"):
                open_ledger(str(tmp_path), other, overwrite=True)
            with pytest.raises(InputError, match=f"was written by `{command}`; choose another folder"):
                open_place(str(tmp_path), other, "overwrite")
    assert (tmp_path / "best").exists() and open_ledger(str(tmp_path), made, overwrite=False).is_begun


@pytest.mark.parametrize("content", ["", "{", "[1", "{}", "[1]", "null", '{"made_from": 3}'])
def test_a_damaged_manifest_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_text(content)
    for look in (lambda: open_ledger(str(tmp_path), MADE_FROM, overwrite=True), lambda: read_manifest(str(tmp_path))):
        with pytest.raises(InputError, match=f"{MANIFEST}' is damaged: .*; copy its folder again"):
            look()


def test_what_a_job_killed_at_its_very_start_leaves_does_not_stop_the_next(tmp_path: Path) -> None:
    (tmp_path / ".probe-0123").touch()
    (tmp_path / f".{MANIFEST}.0123").touch()
    assert open_ledger(str(tmp_path), MADE_FROM, overwrite=False).remaining(UNITS) == UNITS


def test_a_finished_ledger_says_so_and_keeps_its_summary(tmp_path: Path) -> None:
    ledger = open_ledger(str(tmp_path), MADE_FROM, overwrite=False)
    assert not ledger.is_finished
    ledger.finish({"rows": 7})
    again = open_ledger(str(tmp_path), MADE_FROM, overwrite=False)
    assert again.is_finished
    assert again.manifest == {"format_version": 1, "made_from": MADE_FROM, "rows": 7}


def test_a_setting_that_may_change_goes_on_with_the_new_value_which_the_manifest_then_has(tmp_path: Path):
    old = {"training": {"rate": 1, "steps": 5}, "weights": {}}
    new = {"training": {"rate": 2, "steps": 7}, "weights": {"a": 1.0}}
    open_ledger(str(tmp_path), old, overwrite=False, allow_change=[]).finish({})
    with pytest.raises(CheckpointMismatch, match=r"training\.rate was 1, is now 2") as refused:
        open_ledger(str(tmp_path), new, overwrite=False, allow_change=["training.steps"])
    assert "--allow_change training.rate --allow_change weights.a" in str(refused.value)
    names = ["training.steps", "training.rate", "weights.a"]
    ledger = open_ledger(str(tmp_path), new, overwrite=False, allow_change=names)
    assert ledger.manifest["made_from"] == new and not ledger.is_finished
    assert open_ledger(str(tmp_path), new, overwrite=False, allow_change=[]).made_from == new


def test_an_unknown_name_among_those_that_may_change_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"allow_change='training\.rat' .* did you mean training\.rate\?"):
        open_ledger(str(tmp_path), {"training": {"rate": 1}}, overwrite=False, allow_change=["training.rat"])
