"""What people hand a model in process: lists and columns of any kind -> lists, or a refusal with what is wanted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import fields, replace
from typing import Any, NamedTuple

from tfray.config import GenerationConfig
from tfray.config.rules import require
from tfray.corpus.rows import unreadable


def listed(name: str, values: Iterable[Any], count: int | None = None) -> list:
    """Return the entries of a list, an array, a column or a generator, by their places in it.

    Raises InputError where one text or a table stands for a list, where the order is nobody's, or where there are not
    as many entries as there are texts.
    """
    require(not isinstance(values, str), name, values, f"must be a list; write [{values!r}] for one")
    is_list = isinstance(values, Iterable) and not isinstance(values, bytes | Mapping | Set)
    is_table = hasattr(values, "columns")
    require(is_list and not is_table, name, type(values).__name__, "must be a list of texts, or one column of a table")
    # By place: a column of pandas gives by [3] what is called 3.
    of_own = next((getattr(values, name) for name in ("to_pylist", "tolist") if hasattr(values, name)), None)
    entries = of_own() if of_own else list(values)
    require(
        isinstance(entries, list), name, entries, f"must be a list; write [{entries!r}] for one"
    )  # an array of none
    require(count in (None, len(entries)), f"len({name})", len(entries), f"must be {count}: one for each text")
    return entries


class Targets(NamedTuple):
    """What people want of each text's target."""

    prefixes: list[str | None]
    must: list[list]
    must_not: list[list]

    @classmethod
    def of(
        cls,
        count: int,
        prefixes: Iterable[str | None] | None,
        must: Iterable[Iterable[str] | None] | None,
        must_not: Iterable[Iterable[str] | None] | None,
    ) -> Targets:
        """Return the wishes for so many texts; of a text without any, none."""
        begins: list[str | None] = listed("prefixes", [None] * count if prefixes is None else prefixes, count)
        return cls(begins, phrases("must", must, count), phrases("must_not", must_not, count))

    def error(self, row: int) -> str | None:
        """Return why a text's wishes cannot be read, `kind: message`, or None."""
        asked = [self.prefixes[row], *self.must[row], *self.must_not[row]]
        found = (unreadable("the prefix or a phrase", text) for text in asked if text is not None)
        return next(filter(None, found), None)


def phrases(name: str, lists: Iterable[Iterable[str] | None] | None, count: int) -> list[list]:
    """Return each text's phrases."""
    rows = enumerate([None] * count if lists is None else listed(name, lists, count))
    return [[] if own is None else listed(f"{name}[{row}]", own) for row, own in rows]


def listed_pairs(pairs: Iterable[Any]) -> list[tuple]:
    """Return pairs of source and target; raises InputError where an entry is none."""
    entries = listed("pairs", pairs)
    for row, entry in enumerate(entries):
        is_pair = isinstance(entry, list | tuple) and len(entry) == 2
        require(is_pair, f"pairs[{row}]", entry, "must be a pair (source, target)")
    return [tuple(entry) for entry in entries]


def with_options(config: GenerationConfig, options: Mapping[str, Any]) -> GenerationConfig:
    """Return a configuration with other options; raises InputError where one is not known, or cannot be."""
    known = [option.name for option in fields(GenerationConfig)]
    for name, value in options.items():
        require(name in known, name, value, f"is no option; those are {', '.join(known)}")
    return replace(config, **options)
