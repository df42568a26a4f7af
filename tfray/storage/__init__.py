"""Places: local folders and object stores alike, atomic publishing, fingerprints.

A place is a path, or a URI that pyarrow knows (`s3://bucket/folder`, `gs://...`); input may be a web
address (`https://...`). What is published appears whole or not at all.
"""

from tfray.storage.fingerprints import file_fingerprint, file_identity, fingerprint
from tfray.storage.places import (
    TRIES,
    absolute,
    base_name,
    exists,
    expand,
    file_info,
    file_size,
    filesystem,
    is_remote,
    is_web,
    join,
    list_files,
    list_folders,
    matches,
    pause,
    remote_path,
    retried,
)
from tfray.storage.publishing import (
    append_line,
    check_writable,
    publish,
    publish_bytes,
    publish_json,
    publish_table,
    publish_text,
    remove,
)
from tfray.storage.reading import READ_ERRORS, open_input, open_stream, read_bytes, read_chunks, read_json, read_text

__all__ = [
    "READ_ERRORS",
    "TRIES",
    "absolute",
    "append_line",
    "base_name",
    "check_writable",
    "exists",
    "expand",
    "file_fingerprint",
    "file_identity",
    "file_info",
    "file_size",
    "filesystem",
    "fingerprint",
    "is_remote",
    "is_web",
    "join",
    "list_files",
    "list_folders",
    "matches",
    "open_input",
    "open_stream",
    "pause",
    "publish",
    "publish_bytes",
    "publish_json",
    "publish_table",
    "publish_text",
    "read_bytes",
    "read_chunks",
    "read_json",
    "read_text",
    "remote_path",
    "remove",
    "retried",
]
