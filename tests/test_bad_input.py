"""What cannot be used is refused within seconds: name, value, rule, remedy, exit code 2, no traceback."""

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tfray import cli
from tfray.checkpoint.folder import save_model_folder
from tfray.config import ModelConfig, TokensConfig
from tfray.errors import TooManyErrors
from tfray.model.architecture import resolve
from tfray.model.transformer import Transformer
from tfray.tokens.tokenizer import train_tokenizer

SECONDS = 30  # on a loaded machine
WORK_SECONDS = 5.0  # of a core: this is what a refusal may take on a machine that is free


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good data file and a good model folder."""
    folder = tmp_path_factory.mktemp("place")
    pq.write_table(pa.table({"source": ["a b"], "target": ["b a"], "number": [1]}), folder / "good.parquet")
    pq.write_table(pa.table({"source": ["a b"], "target": [None]}), folder / "dropped.parquet")
    empty = pa.table({"source": pa.array([], pa.string()), "target": pa.array([], pa.string())})
    pq.write_table(empty, folder / "empty.parquet")
    (folder / "file").write_text("not a folder")
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a b"], TokensConfig(vocab_size=300), [])
    model = Transformer(resolve(ModelConfig(preset="tiny"), tokenizer.vocab_size, 32))
    save_model_folder(str(folder / "model"), model.state_dict(), model.architecture, tokenizer.json, "translation", {})
    return folder


def work_seconds() -> float:
    """Return the time that cores have worked for commands that ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def refused(*arguments: object, work: float = WORK_SECONDS) -> str:
    """Return the message with which the command refuses its arguments, after so many seconds of work at most."""
    command = [sys.executable, "-m", "tfray.cli", *map(str, arguments)]
    before = work_seconds()
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert work_seconds() - before < work
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    message = ended.stderr.splitlines()[-1]
    assert "error: " in message
    return message


def test_a_missing_file(place: Path) -> None:
    message = refused("tokenize", "--corpus.train", place / "no.parquet", "--out", place / "out1")
    assert "no.parquet" in message and "does not exist" in message


def test_a_column_that_is_not_there_names_those_that_are(place: Path) -> None:
    arguments = ("--corpus.train", place / "good.parquet", "--corpus.source_column", "src", "--out", place / "out2")
    message = refused("tokenize", *arguments)
    assert "src" in message and all(name in message for name in ("source", "target", "number"))


def test_a_column_of_numbers_where_text_belongs(place: Path) -> None:
    arguments = ("--model_folder", place / "model", "--input", place / "good.parquet", "--out", place / "out3")
    assert "int64, not text" in refused("predict", *arguments, "--source_column", "number")


def test_an_empty_corpus(place: Path) -> None:
    assert "empty" in refused("tokenize", "--corpus.train", place / "empty.parquet", "--out", place / "out4")


@pytest.mark.ray
def test_a_corpus_whose_every_row_is_dropped_says_why(place: Path) -> None:
    arguments = ("--corpus.train", place / "dropped.parquet", "--out", place / "out5")
    message = refused("tokenize", *arguments, work=60.0)  # Ray reads the rows
    assert "every row" in message and "missing_target" in message


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("fault", ["missing", "damaged"])
def test_a_model_folder_with_a_missing_or_damaged_file(place: Path, tmp_path: Path, name: str, fault: str) -> None:
    folder = shutil.copytree(place / "model", tmp_path / "model")
    if fault == "missing":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes((folder / name).read_bytes()[:-20])
    arguments = ("--model_folder", folder, "--input", place / "good.parquet", "--out", tmp_path / "out")
    assert name in refused("predict", *arguments)


def test_an_unknown_preset_names_those_that_exist(place: Path) -> None:
    message = refused("train", "--tokens_folder", place, "--out", place / "out6", "--model.preset", "huge")
    assert "huge" in message and "tiny" in message


def test_a_beam_of_zero(place: Path) -> None:
    arguments = ("--model_folder", place / "model", "--input", place / "good.parquet", "--out", place / "out7")
    assert "generation.beam_size=0 must be at least 1" in refused("predict", *arguments, "--generation.beam_size", 0)


def test_an_output_that_cannot_be_written(place: Path) -> None:
    arguments = ("--model_folder", place / "model", "--input", place / "good.parquet")
    message = refused("predict", *arguments, "--out", place / "file" / "out")
    assert "file/out" in message and "cannot be written" in message


def test_more_models_than_the_machine_has_room_for(place: Path) -> None:
    arguments = ("--model_folder", place / "model", "--input", place / "good.parquet", "--out", place / "out9")
    message = refused("predict", *arguments, "--inference.actors", 500, "--inference.use_gpu", "no")
    assert "inference.actors=500" in message and "use at most" in message


def test_a_tokens_folder_that_is_none(place: Path) -> None:
    assert "tfray tokenize" in refused("train", "--tokens_folder", place, "--out", place / "out8")


def test_an_unknown_command_names_those_that_exist() -> None:
    assert "'trian' is not one of tokenize, inspect, train" in refused("trian")


def test_a_job_that_lost_too_many_rows_ends_with_code_3_and_its_account(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lose_rows(name: str, module: str) -> object:
        def job(_: object) -> None:
            raise TooManyErrors("20 of 566 rows (3.5%) were lost by errors")

        return job

    monkeypatch.setattr(cli, "carry_out", lose_rows)
    with pytest.raises(SystemExit) as ended:
        cli.main(["tokenize", "--corpus.train", "x", "--out", "y"])
    assert ended.value.code == 3
    assert "20 of 566 rows" in capsys.readouterr().err
