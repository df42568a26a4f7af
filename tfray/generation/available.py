"""How much memory this process may still take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Files of a control group by its version: limit, usage; and what of it can be given back at once.
NAMES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
UNKNOWN = 4 << 30


def available_bytes(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the machine's memory that can be had, files that are only cached counted as free; or what is left of a
    limit of this process' control groups, where that is less."""
    return max(0, min([machine_bytes(proc), *left_of_limits(proc, groups)]))


def machine_bytes(proc: Path) -> int:
    """Return what the machine has left, as the kernel estimates it; about, where there is no Linux."""
    try:
        return 1024 * read_fields(proc / "meminfo")["MemAvailable:"]
    except (OSError, KeyError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return UNKNOWN


def left_of_limits(proc: Path, groups: Path) -> Iterator[int]:
    """Yield what is left of the limit of each control group around this process, of version 1 or 2."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = groups / "memory" if controllers else groups
        # Inside a container the path may be that outside of it; then the root is the container's own group.
        parts = path.strip("/").split("/")
        for depth in range(len(parts) + 1):
            yield from left_of_limit(root.joinpath(*parts[:depth]), 1 if controllers else 2)


def left_of_limit(group: Path, version: int) -> Iterator[int]:
    """Yield what is left of one group's limit, if it has one."""
    limit, usage, cached = NAMES[version]
    try:
        most = (group / limit).read_text().strip()
        if most != "max":
            used = int((group / usage).read_text()) - read_fields(group / "memory.stat").get(cached, 0)
            yield int(most) - used
    except (OSError, ValueError):
        return


def read_fields(path: Path) -> dict[str, int]:
    """Return a file of lines with a name and a whole number."""
    return {line.split()[0]: int(line.split()[1]) for line in path.read_text().splitlines() if line.strip()}
