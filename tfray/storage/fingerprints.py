"""Short hashes of what something was made from, and what tells a file apart unread."""

from __future__ import annotations

import hashlib
import json

from tfray.storage.places import file_info, is_web, look
from tfray.storage.reading import open_patiently


def fingerprint(value: object) -> str:
    """Return 16 hexadecimal digits that follow from a JSON-like value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_fingerprint(path: str) -> str:
    """Return 16 hexadecimal digits that follow from a file's content."""
    digest = hashlib.sha256()
    with open_patiently(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def file_identity(path: str) -> list[object]:
    """Return what tells a file apart without reading it: path, size, time of change (on the web: ETag or date)."""
    if is_web(path):
        from tfray import web

        try:
            return [path, *look(path, lambda fs, inner: web.identity(inner))]
        except FileNotFoundError:
            return [path, None, None]
    info = file_info(path)
    return [path, info.size, info.mtime_ns]
