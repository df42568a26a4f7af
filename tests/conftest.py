"""Hypothesis without a deadline (machines are shared), one folder for all examples of a test; Ray's tests in one
process; an S3 server; nodes; shards."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pyarrow as pa
import pyarrow.fs
import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from tests.cluster import Nodes
from tfray.tokens.shards import TokenFolder, shard_schema, write_shard
from tfray.tokens.special import EOS_ID

settings.register_profile(
    "tfray",
    deadline=None,
    max_examples=60,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("tfray")


class OneRay(LoadScopeScheduling):
    """Gives xdist's processes a file at a time, and at last all files with a Ray to one of them: beside others they
    starve on two cores, for the workers of a Ray that `Nodes` starts stand back. (Groups by marks are without effect
    in pytest 9.2 with xdist 3.8.)"""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "ray" if has_ray(file) else file


@functools.cache
def has_ray(file: str) -> bool:
    """Say whether tests in a file start a Ray."""
    return "pytest.mark.ray" in Path(__file__).parents[1].joinpath(file).read_text()


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> OneRay:
    return OneRay(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that have a Ray last."""
    items.sort(key=lambda item: has_ray(item.nodeid.partition("::")[0]))


class S3:
    """An S3 server."""

    def __init__(self, host: str, port: int) -> None:
        self.options = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1"

    def place(self, bucket: str, name: str) -> str:
        """Return the URI of a name in a bucket, which is made if need be, with the options that lead there."""
        uri = f"s3://{bucket}?{self.options}&allow_bucket_creation=true"
        pyarrow.fs.FileSystem.from_uri(uri)[0].create_dir(bucket)
        return f"s3://{bucket}/{name}?{self.options}"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """Yield an S3 server on loopback, empty, and let this process and its children have credentials for it."""
    from moto.server import ThreadedMotoServer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield S3(host, port)
    urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
    server.stop()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head and two more nodes."""
    nodes = Nodes(3)
    yield nodes
    nodes.stop()


@pytest.fixture(scope="session")
def write_tokens() -> Callable[..., TokenFolder]:
    """Writes shards, each the name of a corpus and pairs of ids without special tokens, and returns their folder."""

    def write(
        folder: str, shards: list[tuple[str, list]], split: str = "train", vocab_size: int = 1000, **manifest: object
    ) -> TokenFolder:
        written = [
            write_shard(f"{folder}/{split}/{index}.parquet", corpus, [shard_table(corpus, pairs, vocab_size)])
            for index, (corpus, pairs) in enumerate(shards)
        ]
        common = {"shards": {split: [shard._asdict() for shard in written]}, "task": "translation"}
        return TokenFolder(folder, common | {"weights": {corpus: 1.0 for corpus, _ in shards}} | manifest)

    return write


def shard_table(corpus: str, pairs: list, vocab_size: int) -> pa.Table:
    """Return pairs of ids as a shard has them."""
    columns = {
        "source_ids": [[*source, EOS_ID] for source, _ in pairs],
        "target_ids": [list(target) for _, target in pairs],
        "source_length": [len(source) + 1 for source, _ in pairs],
        "target_length": [len(target) + 1 for _, target in pairs],
        "corpus": [corpus] * len(pairs),
        "file": ["file"] * len(pairs),
        "row": list(range(len(pairs))),
    }
    return pa.table(columns, schema=shard_schema(vocab_size))
