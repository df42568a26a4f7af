"""Natural text for benchmarks that every machine has: the prose lines in installed Python packages.

Every line is there once, so a benchmark over it is one pass over text that is not a repetition of itself.
"""

from __future__ import annotations

import hashlib
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ENDINGS = (".py", ".md", ".rst", ".txt", ".pyi", ".h", ".js")
PROSE = re.compile(r"(?:[^\W\d_]{2,}[,.;:]? ){4,}")  # five words in a row


def prose_lines() -> Iterator[str]:
    """Yield lines of prose from the standard library and the installed packages, each once, always in one order."""
    seen: set[bytes] = set()
    roots = sorted({sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), *filter(is_library, sys.path)})
    for path in (path for root in roots for path in sorted(Path(root).rglob("*")) if path.suffix in ENDINGS):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            continue
        for line in (line.strip(" \t#*/") for line in lines):
            digest = hashlib.blake2b(line.encode(), digest_size=8).digest()
            if 25 <= len(line) <= 2000 and digest not in seen and PROSE.search(line):
                seen.add(digest)
                yield line


def is_library(path: str) -> bool:
    """Say whether a folder of the search path holds packages."""
    return path.endswith(("site-packages", "dist-packages"))


def write_pairs(folder: Path, megabytes: float, files: int = 8) -> int:
    """Write pairs of prose lines as Parquet, about so many MB of UTF-8 on both sides; return the bytes written.

    Where the machine has less text, what there is; a benchmark prints how much that was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = prose_lines()
    written = 0
    for index in range(files):
        sources: list[str] = []
        targets: list[str] = []
        size = 0
        for source, target in zip(lines, lines, strict=False):
            sources.append(source)
            targets.append(target)
            size += len(source.encode()) + len(target.encode())
            if size >= megabytes * 1e6 / files:
                break
        if sources:
            table = pa.table({"source": sources, "target": targets})
            pq.write_table(table, folder / f"part-{index:03d}.parquet", row_group_size=20_000)
        written += size
    return written
