"""The command `tfray`: the jobs by name, from YAML files and dotted overrides."""

from __future__ import annotations

import difflib
import importlib
import io
import logging
import re
import sys
from collections.abc import Callable, Collection
from itertools import zip_longest
from typing import Any, TextIO

from yaml import YAMLError

from tfray import config
from tfray.cluster import end_on_sigterm
from tfray.config.files import check_names_once
from tfray.errors import InputError, JobError, Terminated, TooManyErrors

COMMANDS: dict[str, tuple[type, str]] = {
    "tokenize": (config.TokenizeJob, "tfray.tokens.tokenize"),
    "inspect": (config.InspectJob, "tfray.inspect"),
    "train": (config.TrainJob, "tfray.training.train"),
    "predict": (config.PredictJob, "tfray.inference.predict"),
    "status": (config.StatusJob, "tfray.units.status"),
    "evaluate": (config.EvaluateJob, "tfray.evaluation.evaluate"),
    "run": (config.RunJob, "tfray.run"),
    "demo": (config.DemoJob, "tfray.demo.demo"),
}
EXAMPLES = {
    "tokenize": "tfray tokenize --corpus.train data/train.parquet --corpus.valid data/valid.parquet --out out/tokens",
    "inspect": "tfray inspect out/tokens",
    "train": "tfray train --tokens_folder out/tokens --out out/training --model.preset small",
    "predict": "tfray predict --model_folder out/training/best --input data/test.parquet --out out/predictions",
    "status": "tfray status out/predictions",
    "evaluate": "tfray evaluate --predictions out/predictions --reference_column target",
    "run": "tfray run --corpus.train data/train.parquet --corpus.valid data/valid.parquet --test data/test.parquet "
    "--out out/mine",
    "demo": "tfray demo",
}
FOLDERS = {"inspect": "--tokens_folder", "status": "--out"}
UNION = re.compile(
    r"Does not validate against any of the Union subtypes Subtypes: \[(.*?)(?:, NoneType)?\] Errors: .* Given value: "
)
YES_OR_NO = ("true", "false", "yes", "no", "on", "off")
SHORT = {
    "--address": "--cluster.address",
    "--allow-change": "--allow_change+",
    "--allow_change": "--allow_change+",
    "--dry-run": "--dry_run",
    "--fail-fast": "--inference.fail_fast",
    "--max-error-rate": "--inference.max_error_rate",
}


def main(argv: list[str] | None = None) -> None:
    """Run the command that the arguments name.

    Exit codes: 2 where the user's input cannot be used, 3 where a job did its work and lost more rows by
    errors than it may, 130 after Ctrl-C, 143 after SIGTERM.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return
    if arguments[0] == "--version":
        print(importlib.import_module("tfray").__version__)
        return
    name, *rest = arguments
    if name not in COMMANDS:
        fail(name, f"command {name!r} is not one of {', '.join(COMMANDS)}; see `tfray --help`")
    run_command(name, rest)


def run_command(name: str, arguments: list[str]) -> None:
    """Read a command's job from its arguments and carry it out."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("tfray").setLevel(logging.INFO)
    escape_unprintable(sys.stdout)
    end_on_sigterm()
    kind, module = COMMANDS[name]
    try:
        job = read_job(name, kind, arguments)
        show(name, carry_out(name, module)(job))
    except JobError as error:
        fail(name, str(error))
    except TooManyErrors as error:
        print(f"{error}", file=sys.stderr)
        sys.exit(3)
    except KeyboardInterrupt as stop:
        print(f"tfray {name}: interrupted; the same command goes on where it was", file=sys.stderr)
        sys.exit(143 if isinstance(stop, Terminated) else 130)


def escape_unprintable(stream: TextIO) -> None:
    """Have a stream print in escapes what its encoding lacks: a terminal that has no Chinese must not end a job."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


def name_folder(name: str, arguments: list[str], flags: Collection[str] = ()) -> list[str]:
    """Return arguments in which the one thing that a command is about may stand anywhere without its name.

    What follows a setting is its value; of one of yes or no (`flags`) only a yes or no is.
    """
    setting = FOLDERS.get(name)
    if setting is None or any(argument.partition("=")[0] == setting for argument in arguments):
        return arguments
    for place, (before, argument) in enumerate(zip(["", *arguments], arguments, strict=False)):
        takes_value = before.startswith("-") and "=" not in before
        is_value = takes_value and (before not in flags or argument.lower() in YES_OR_NO)
        if not (is_value or argument.startswith("-")):
            return [*arguments[:place], setting, *arguments[place:]]
    return arguments


def carry_out(name: str, module: str) -> Callable[[Any], object]:
    """Return the function of a command; it is imported only now, since Ray and torch take seconds."""
    return getattr(importlib.import_module(module), name)


def show(name: str, result: Any) -> None:
    """Print what a person wants to see of a command's result."""
    if name in ("evaluate", "run"):
        print(importlib.import_module("tfray.evaluation.tables").format_scores(result))
    elif name == "tokenize":
        print(importlib.import_module("tfray.report.account").format_account(result.manifest))
    elif name == "predict":
        print(importlib.import_module("tfray.inference.summary").format_result(result))
    elif name in ("demo", "inspect", "status") or (name == "train" and "\n" in result):  # a dry run's report
        print(result)


def read_job(name: str, kind: type, arguments: list[str]) -> Any:
    """Return the job dataclass that YAML files and overrides describe; later ones win.

    Raises InputError for an unknown key, a value of another type, or a broken relation between fields.
    """
    from jsonargparse import ArgumentError, ArgumentParser, set_loader, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    set_loader("settings", load_settings, (YAMLError,))
    parser = ArgumentParser(
        parser_mode="settings",
        prog=f"tfray {name}",
        usage=f"tfray {name} [--config FILE.yaml] [--group.field VALUE ...]; `tfray {name} --help` explains each",
        description=f"{kind.__doc__} Example: {EXAMPLES[name]}",
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="YAML file of settings; may be given several times.")
    parser.add_class_arguments(kind)
    defaults = parser.get_defaults()
    flags = {f"--{setting}" for setting in defaults.keys() if isinstance(defaults[setting], bool)}
    try:
        settings = parser.parse_args(spell_out(name_folder(name, arguments, flags), flags))
        settings.pop("config", None)
        check_filled(settings.as_dict(), defaults.as_dict())
        return kind(**parser.instantiate(settings))
    except InputError:
        raise
    except RecursionError as error:
        raise InputError(
            "--config: a group of settings stands in itself, or in too many others; name it once"
        ) from error
    except OSError as error:
        raise InputError(f"--config names a file that cannot be read: {error}; check it") from error
    except (ArgumentError, ValueError) as error:  # a ValueError: a file that is not UTF-8, a rule inside a union
        raise InputError(explain(str(error), [*defaults.keys()])) from error


def load_settings(text: str) -> Any:
    """Return what a file or a value says in YAML; raises YAMLError where a name stands twice in a group."""
    from jsonargparse import get_loader

    check_names_once(text)
    return get_loader("yaml")(text)


def check_filled(settings: dict, defaults: dict, group: str = "") -> None:
    """Raise InputError where a file names a setting, or a group of them, and gives it no value."""
    for name, default in defaults.items():
        value = settings.get(name, default)
        if value is None and default is not None:
            raise InputError(f"{group}{name} has no value; give one, or leave the name out")
        if isinstance(default, dict) and default:
            if not isinstance(value, dict):
                raise InputError(f"{group}{name}={value!r} must be a group of settings; name some, or leave it out")
            check_filled(value, default, f"{group}{name}.")


def spell_out(arguments: list[str], flags: set[str]) -> list[str]:
    """Return arguments with their full names (`--address` is short for `--cluster.address`); a flag alone is true."""
    spelled = []
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue="--"):
        short, mark, value = argument.partition("=")
        name = SHORT.get(short, short)
        is_alone = name in flags and not mark and following.startswith("--")
        spelled.append(f"{name}{'=true' if is_alone else mark + value}")
    return spelled


def explain(message: str, names: list[str]) -> str:
    """Return the parser's message as one line, with the setting that an unknown name may have meant."""
    line = " ".join(message.replace("Expected a typing.Literal", "must be one of ").split())
    line = re.sub(r"<class '(\w+)'>", r"\1", line.replace("Expected a <class", "must be of type <class"))
    words = (word.strip("'\".,:;-").partition("=")[0] for word in line.split())
    meant = [match for word in words if word not in names for match in difflib.get_close_matches(word, names, 1, 0.8)]
    if line.startswith("Unexpected config"):
        return "--config names a file without settings; write them as YAML, such as `training: {epochs: 3}`"
    if "training.workers" in line and "Union" in line:
        rule = re.search(r"training\.workers=\{.*?\} must have 1 <= min <= max", line)
        return rule[0] if rule else 'training.workers must be a whole number, or a range such as {"min": 1, "max": 4}'
    line = UNION.sub(lambda found: f"must be of type {found[1].replace(', ', ' or ')}. Got value: ", line)
    is_word = "must be one of" in line or "must be of type str" in line
    if is_word and line.rstrip(".").endswith(("value: True", "value: False")):
        line += "; a YAML file reads yes, no, on and off as true and false: put the word in quotes"
    return f"{line}; did you mean {meant[0]}?" if meant else line


def overview() -> str:
    """Return what the commands are for."""
    lines = [f"  {name:<10}{kind.__doc__}" for name, (kind, _) in COMMANDS.items()]
    return "\n".join(
        [
            "tfray: a sequence-to-sequence Transformer on Ray, from raw text to Parquet",
            "",
            "usage: tfray COMMAND [--config FILE.yaml] [--group.field VALUE ...]",
            "",
            *lines,
            "",
            "`--address auto` uses the Ray cluster of this machine; without it tfray starts its own and stops it.",
            "`tfray COMMAND --help` explains every setting; `tfray demo` shows the whole way in a few minutes.",
        ]
    )


def fail(name: str, message: str) -> None:
    """End with one clear message and exit code 2."""
    print(f"tfray {name}: error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
