"""What settings have in common: how one is refused, and paths that are one or many."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import asdict, field, fields, is_dataclass
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tfray.errors import InputError

Paths = str | list[str]


def as_list(paths: Paths) -> list[str]:
    """Return one path or many as a list."""
    return [paths] if isinstance(paths, str) else list(paths)


def text_keys(names: dict) -> dict:
    """Return a mapping with its keys as text: YAML reads 0 and true as a number and a truth."""
    return {str(key).lower() if isinstance(key, bool) else str(key): value for key, value in names.items()}


FREE = {"is_free": True}


def free(default: Any) -> Any:
    """Return a field that is free to change: no result follows from it, but for rounding."""
    return field(default=default, metadata=FREE)


def results_follow_from(settings: Any) -> dict[str, Any]:
    """Return the settings that results follow from, by name: all that are not said to be free, also those to come."""
    values = asdict(settings)
    for setting in fields(settings):
        value = getattr(settings, setting.name)
        if setting.metadata.get("is_free"):
            del values[setting.name]
        elif is_dataclass(value):
            values[setting.name] = results_follow_from(value)
    return values


def require(holds: bool, name: str, value: object, rule: str) -> None:
    """Raise InputError with name, value and rule unless the rule holds."""
    if not holds:
        raise InputError(f"{name}={value!r} {rule}")


def check_types(group: str, settings: object) -> None:
    """Raise InputError where a setting's value is of another type than it has, or none of its choices: settings that
    are made in Python have not come through the parser."""
    for name, kind in type_hints(type(settings)).items():
        value = getattr(settings, name)
        require(is_of(value, kind), f"{group}.{name}", value, f"must be {describe(kind)}")


type_hints = functools.cache(get_type_hints)


def is_of(value: Any, kind: Any) -> bool:
    """Say whether a value is of a type; numbers are finite, and no bool is one."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin in (Union, UnionType):
        return any(is_of(value, one) for one in inner)
    if origin in (list, tuple):
        fits = origin is list or len(value) == len(inner) if isinstance(value, list | tuple) else False
        kinds = inner if origin is tuple else inner * len(value) if fits else ()
        return fits and all(map(is_of, value, kinds))
    if origin is dict:
        return isinstance(value, Mapping) and all(is_of(entry, inner[1]) for entry in value.values())
    if kind in (int, float):
        is_number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
        return is_number and is_finite(value)
    return isinstance(value, kind)


def is_finite(value: Any) -> bool:
    """Say whether a number is one that a float holds: of whole numbers, rates and shares are made."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


WORDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text", NoneType: "nothing"}


def describe(kind: Any) -> str:
    """Return a type in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(inner)}"
    if origin in (Union, UnionType):
        return " or ".join(map(describe, inner))
    if origin in (list, tuple):
        return f"a list: {describe(inner[0])} each"
    if origin is dict:
        return f"a mapping: {describe(inner[1])} each"
    return WORDS.get(kind, f"a {getattr(kind, '__name__', kind)}")


def require_paths(config: object, *names: str, group: str = "") -> None:
    """Raise InputError where a setting of paths holds an empty one, which would mean the current folder, or one that
    no file system has."""
    for name in names:
        paths = getattr(config, name)
        for path in [] if paths is None else as_list(paths):
            require(
                path != "",
                f"{group}{name}",
                paths,
                "is an empty path, as an unset variable of the shell gives; name the place",
            )
            require(
                "\0" not in str(path), f"{group}{name}", paths, "has a NUL character, which no path has; take it out"
            )
