"""The configurations that we ship, and the help that explains every field."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from tfray import config
from tfray.cli import COMMANDS, read_job
from tfray.config.rules import results_follow_from
from tfray.errors import InputError

CONFIGS = sorted((Path(__file__).parents[1] / "jobs" / "configs").glob("*.yaml"))
CLASSES = [kind for kind in vars(config).values() if dataclasses.is_dataclass(kind)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_configuration_is_a_whole_job(path: Path) -> None:
    job = read_job("run", config.RunJob, ["--config", str(path)])
    assert isinstance(job, config.RunJob)
    assert config.as_list(job.corpus.train) and config.as_list(job.test)


def test_a_flag_overrides_the_file() -> None:
    job = read_job("run", config.RunJob, ["--config", str(CONFIGS[0]), "--training.learning_rate", "5e-4"])
    assert job.training.learning_rate == 5e-4


@pytest.mark.parametrize(
    ("flag", "value", "named"),
    [
        ("--generation.beam_size", "0", "generation.beam_size=0"),
        ("--generation.seed", str(2**63), "generation.seed=9223372036854775808 must be below 2^63"),
        ("--generation.length_penalty", "300", "generation.length_penalty=300.0 must be at most 20"),
        ("--training.workers", "3", "batches.lanes=2 must be divisible by training.workers=3"),
        ("--model.dropout", "1.5", "model.dropout=1.5"),
        ("--tokens.vocab_size", "12", "tokens.vocab_size=12"),
        ("--training.cpus_per_worker", "0", "training.cpus_per_worker=0.0 must be positive"),
        ("--training.cpus_per_worker", "-1", "training.cpus_per_worker=-1.0 must be positive"),
        ("--training.adam_betas", "[0.9, 1.0]", "training.adam_betas=(0.9, 1.0) must be at least 0 and below 1, each"),
        ("--training.adam_betas", "[-0.1, 0.98]", "training.adam_betas=(-0.1, 0.98)"),
        ("--cluster.num_cpus", "0", "cluster.num_cpus=0 must be positive"),
        ("--cluster.num_cpus", "1.5", 'cluster.num_cpus": must be of type int. Got value: 1.5'),
        ("--batches.lanes", "99999999999", "batches.lanes=99999999999 must be at most 65,536"),
    ],
)
def test_a_setting_out_of_its_range_is_refused_by_its_name(flag: str, value: str, named: str) -> None:
    with pytest.raises(InputError, match="must be") as refused:
        read_job("run", config.RunJob, ["--config", str(CONFIGS[0]), flag, value])
    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("name", "kind", "arguments"),
    [
        ("train", config.TrainJob, ["--tokens_folder", "a", "--out", "b"]),
        ("run", config.RunJob, ["--config", str(CONFIGS[0])]),
    ],
)
def test_r_drop_without_dropout_is_refused(name: str, kind: type, arguments: list[str]) -> None:
    job = read_job(name, kind, [*arguments, "--model.dropout", "0"])
    changed = {"training": dataclasses.replace(job.training, r_drop=1.0)}
    with pytest.raises(InputError, match=r"training\.r_drop=1\.0 compares two passes .* model\.dropout is 0"):
        dataclasses.replace(job, **changed)
    dataclasses.replace(job, model=dataclasses.replace(job.model, dropout=0.1), **changed)


@pytest.mark.parametrize(("best", "limit"), [(0, "keep_checkpoints"), (2, "keep_best_checkpoints")])
def test_more_checkpoints_to_average_than_are_kept_name_what_limits_them(best: int, limit: str) -> None:
    with pytest.raises(InputError, match=rf"average_checkpoints=3 must be at most training\.{limit} \(2\)"):
        config.TrainingConfig(keep_checkpoints=2, keep_best_checkpoints=best, average_checkpoints=3)


@pytest.mark.parametrize(
    ("command", "arguments", "named"),
    [
        ("predict", ["--model_folder", "a", "--out", "b", "--input", ""], "input=''"),
        ("predict", ["--model_folder", "a", "--out", "b", "--input", '["c", ""]'], "input=['c', '']"),
        ("predict", ["--model_folder", "", "--out", "b", "--input", "c"], "model_folder=''"),
        ("predict", ["--model_folder", "a", "--out", "", "--input", "c"], "out=''"),
        ("tokenize", ["--corpus.train", "", "--out", "b"], "corpus.train=''"),
        ("tokenize", ["--corpus.train", "a", "--corpus.valid", "['']", "--out", "b"], "corpus.valid=['']"),
        ("tokenize", ["--corpus.parts", '[{"name": "a", "files": ""}]', "--out", "b"], "corpus.parts (a).files=''"),
        ("tokenize", ["--corpus.train", "a", "--tokens.tokenizer", "", "--out", "b"], "tokens.tokenizer=''"),
        ("train", ["--tokens_folder", "", "--out", "b"], "tokens_folder=''"),
        ("inspect", ["--tokens_folder", ""], "tokens_folder=''"),
        ("status", ["--out", ""], "out=''"),
        ("evaluate", ["--predictions", ""], "predictions=''"),
        ("evaluate", ["--predictions", "a", "--reference_file", ""], "reference_file=''"),
        ("run", ["--config", str(CONFIGS[0]), "--test", ""], "test=''"),
        ("demo", ["--out", ""], "out=''"),
    ],
)
def test_an_unset_variable_of_the_shell_is_not_the_current_folder(
    command: str, arguments: list[str], named: str
) -> None:
    with pytest.raises(InputError, match="is an empty path, as an unset variable of the shell gives") as refused:
        read_job(command, COMMANDS[command][0], arguments)
    assert str(refused.value).startswith(f"{named} ")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model.d_modle", "128"], "d_modle"),
        (["--model.preset", "huge"], "tiny"),
        (["--training.epochs", "many"], "epochs"),
    ],
)
def test_an_unknown_key_or_value_is_refused_by_its_name(arguments: list[str], named: str) -> None:
    with pytest.raises(InputError, match=named):
        read_job("run", config.RunJob, ["--config", str(CONFIGS[0]), *arguments])


def test_a_misspelt_setting_brings_the_right_one_to_mind() -> None:
    with pytest.raises(InputError, match=r"did you mean model\.d_model"):
        read_job("run", config.RunJob, ["--config", str(CONFIGS[0]), "--model.d_modle", "128"])


def test_epochs_without_end_need_another_end() -> None:
    with pytest.raises(InputError, match=r"training\.epochs=1000000 are more than 100,000.*max_steps or token_budget"):
        config.TrainingConfig(epochs=10**6, patience=5)
    config.TrainingConfig(epochs=10**6, max_steps=1000)


def test_an_unknown_key_in_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("tokens_folder: a\nout: b\nmodel:\n  layers: 3\n")
    with pytest.raises(InputError, match="layers"):
        read_job("train", config.TrainJob, ["--config", str(file)])


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_field(name: str) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "tfray.cli", name, "--help"], capture_output=True, text=True, check=True
    ).stdout
    flat = " ".join(shown.split())
    kind = COMMANDS[name][0]
    for field in dataclasses.fields(kind):
        assert f"--{field.name}" in flat


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_setting_has_a_description(kind: type) -> None:
    import ast
    import inspect

    body = ast.parse(inspect.getsource(kind)).body[0].body  # type: ignore[attr-defined]
    for field, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign) and not is_group(field):
            assert isinstance(after, ast.Expr), f"{kind.__name__}.{field.target.id} has no description"  # type: ignore[union-attr]


def is_group(field: object) -> bool:
    """Say whether a field is a group of settings, which its own class describes."""
    import ast

    return "Config" in ast.unparse(field.annotation)  # type: ignore[attr-defined]


def test_a_setting_counts_for_the_result_unless_it_says_that_it_is_free() -> None:
    generation, corpus = config.GenerationConfig(), config.CorpusConfig(train="a")
    counted = {"search", "beam_size", "precision", "seed", "long_sources"}
    assert counted <= results_follow_from(generation).keys()
    assert not {"batch_rows", "max_tokens", "memory_gb", "most_loss"} & results_follow_from(generation).keys()
    assert "max_characters" in results_follow_from(corpus)["clean"]
    assert "max_error_rate" not in results_follow_from(corpus)["clean"]
    assert {"workers", "use_gpu"}.isdisjoint(results_follow_from(config.TrainingConfig()))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (config.TrainingConfig, {"schedule": "cosin"}, "training.schedule='cosin' must be one of"),
        (config.TrainingConfig, {"learning_rate": float("nan")}, "training.learning_rate=nan must be a finite number"),
        (config.BatchesConfig, {"seed": 10**400}, "must be a whole number"),
        (config.ModelConfig, {"d_model": 128.0}, r"model.d_model=128.0 must be a whole number or nothing"),
        (config.BatchesConfig, {"weights": {"a": "2"}}, "must be a mapping: a finite number each"),
        (config.CorpusConfig, {"train": 7}, "corpus.train=7 must be text or a list: text each"),
    ],
)
def test_settings_made_in_python_are_of_their_types(kind: type, settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        kind(**settings)
