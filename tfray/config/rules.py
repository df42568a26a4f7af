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


def require_paths(config: object, *names: str, group: str = "") -> None:
    """Raise InputError where a setting of paths holds an empty one, which would mean the current folder."""
    for name in names:
        paths = getattr(config, name)
        require(
            paths is None or "" not in as_list(paths),
            f"{group}{name}",
            paths,
            "is an empty path, as an unset variable of the shell gives; name the place",
        )
