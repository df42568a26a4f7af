"""Files of settings: written so that they read back, and read with each name once."""

from __future__ import annotations

from typing import Any

import yaml


class SettingsDumper(yaml.SafeDumper):
    """Writes text that might be taken for a number in quotes: the parser reads 1e5 as one, and YAML 1.1 does not."""


def represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Return text as a node."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if text[:1] in "+-.0123456789" else None)


SettingsDumper.add_representer(str, represent_text)


def dump_settings(settings: dict[str, Any]) -> str:
    """Return settings as YAML, in their order."""
    return yaml.dump(settings, Dumper=SettingsDumper, sort_keys=False, allow_unicode=True)


class RepeatedName(yaml.YAMLError):
    """A group of settings that names one of them twice."""


def check_names_once(text: str) -> None:
    """Raise RepeatedName where a group in a text of YAML has a name twice: the first would be lost without a word.

    Raises other errors of YAML where the text is none.
    """
    nodes, looked_at = [yaml.compose(text, Loader=yaml.SafeLoader)], set[int]()
    while nodes:
        node = nodes.pop()
        if id(node) in looked_at:  # an alias may lead back
            continue
        looked_at.add(id(node))
        if isinstance(node, yaml.MappingNode):
            check_group(node)
            nodes.extend(value for _, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            nodes.extend(node.value)


def check_group(group: yaml.MappingNode) -> None:
    """Raise RepeatedName where a group has a name twice."""
    seen: set[str] = set()
    for name, _ in group.value:
        if str(name.value) in seen:
            line = name.start_mark.line + 1
            raise RepeatedName(f"line {line} names {name.value!r} for the second time; put both in one place")
        seen.add(str(name.value))
