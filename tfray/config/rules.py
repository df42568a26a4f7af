"""What settings have in common: how one is refused, and paths that are one or many."""

from __future__ import annotations

from tfray.errors import InputError

Paths = str | list[str]


def as_list(paths: Paths) -> list[str]:
    """Return one path or many as a list."""
    return [paths] if isinstance(paths, str) else list(paths)


def text_keys(names: dict) -> dict:
    """Return a mapping with its keys as text: YAML reads 0 and true as a number and a truth."""
    return {str(key).lower() if isinstance(key, bool) else str(key): value for key, value in names.items()}


def require(holds: bool, name: str, value: object, rule: str) -> None:
    """Raise InputError with name, value and rule unless the rule holds."""
    if not holds:
        raise InputError(f"{name}={value!r} {rule}")
