"""Imports go one way, and Ray is known only where a stage is placed on it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "tfray"
ORDER = [
    {"errors", "native"},
    {"config", "web"},
    {"storage", "local_ray"},
    {"cluster", "report", "scores"},
    {"units"},
    {"corpus"},
    {"tokens"},
    {"batches"},
    {"model"},
    {"checkpoint"},
    {"generation"},
    {"training"},
    {"inference"},
    {"evaluation"},
    {"run", "inspect"},
    {"demo"},
    {"cli"},
]
RAY_FILES = {
    *("local_ray.py", "cluster.py", "units/stream.py", "batches/feed.py"),
    *("training/bell.py", "training/fit.py", "training/group.py", "training/launch.py"),
    *("training/worker.py", "training/validator.py"),
}
PUBLIC_SEARCH = {"tfray.generation.generate", "tfray.generation.scoring"}
FILES = sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py")


def imported_modules(path: Path) -> set[str]:
    """Return the dotted names of everything that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def level(part: str) -> int:
    """Return a folder's or module's place in the pipeline."""
    return next(number for number, parts in enumerate(ORDER) if part in parts)


def part_of(path: Path) -> str:
    """Return the folder, or the module at the top, to which a file belongs."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_stage_imports_only_the_stages_before_it(path: Path) -> None:
    own = part_of(path)
    for name in imported_modules(path):
        if name.startswith("tfray."):
            other = name.split(".")[1]
            assert other == own or level(other) < level(own), f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_ray_is_known_only_where_a_stage_is_placed_on_it(path: Path) -> None:
    knows_ray = any(name.split(".")[0] == "ray" for name in imported_modules(path))
    assert not knows_ray or str(path.relative_to(ROOT)) in RAY_FILES


@pytest.mark.parametrize("library", ["tokenizers", "ray", "pyarrow"])
def test_the_network_and_the_search_know_torch_alone(library: str) -> None:
    for path in FILES:
        if part_of(path) in ("model", "generation"):
            assert library not in {name.split(".")[0] for name in imported_modules(path)}


def test_validation_calls_the_public_functions_of_the_search_alone() -> None:
    names = {name for path in FILES if part_of(path) == "training" for name in imported_modules(path)}
    assert {name for name in names if name.startswith("tfray.generation")} <= PUBLIC_SEARCH


def test_nothing_imports_the_jobs() -> None:
    assert not any(name.split(".")[0] == "jobs" for path in FILES for name in imported_modules(path))


def test_every_folder_of_the_package_has_its_place_in_the_order() -> None:
    assert {part_of(path) for path in FILES} == set().union(*ORDER)


@pytest.mark.parametrize("module", ["predict", "encode", "write", "steps", "summary"])
def test_a_predict_job_imports_no_torch_outside_the_actors_with_the_model(module: str) -> None:
    program = f"import sys, tfray.inference.{module}; print('torch' in sys.modules, 'sacrebleu' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
