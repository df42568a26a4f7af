"""`tfray inspect`: what a tokens folder holds, for people."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tokens.conftest import Run, run  # noqa: F401 - a fixture
from tfray.config import BatchesConfig, CorpusConfig, InspectJob, TokenizeJob, TokensConfig
from tfray.errors import InputError
from tfray.inspect import inspect


def test_counts_lengths_padding_and_examples_are_shown(tmp_path: Path, run: Run) -> None:  # noqa: F811
    sources = [f"{'a man and ' * (i % 5)}a dog" for i in range(100)]
    targets = [f"{'ein Mann und ' * (i % 5)}ein Hund" for i in range(100)]
    pq.write_table(pa.table({"source": sources, "target": targets}), tmp_path / "a.parquet")
    corpus = CorpusConfig(train=str(tmp_path / "a.parquet"))
    tokens = run(TokenizeJob(out=str(tmp_path / "t"), corpus=corpus, tokens=TokensConfig(vocab_size=400)))
    shown = inspect(InspectJob(tokens_folder=tokens.folder, batches=BatchesConfig(max_tokens=512)))
    words = sum(len(text.split()) for text in sources + targets)
    count = sum(s.source_tokens + s.target_tokens - 2 * s.pairs for s in tokens.shards("train"))
    assert f"tokens per word  {count / words:.2f}" in shown
    assert "padding at batches.max_tokens=512:" in shown
    assert shown.count("\n  -> ") == 10 and "a man and a dog\n  -> ein Mann und ein Hund" in shown
    assert "a.parquet, row" in shown and "####" in shown


def test_labels_are_shown_by_their_names(tmp_path: Path, run: Run) -> None:  # noqa: F811
    pq.write_table(pa.table({"text": ["good film", "bad film"] * 9, "label": [1, 0] * 9}), tmp_path / "a.parquet")
    corpus = CorpusConfig(train=str(tmp_path / "a.parquet"), label_names={"0": "negative", "1": "positive"})
    tokens = run(TokenizeJob(out=str(tmp_path / "t"), corpus=corpus, tokens=TokensConfig(vocab_size=300)))
    shown = inspect(InspectJob(tokens_folder=tokens.folder))
    assert "good film\n  -> positive" in shown and "negative, positive" in shown


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run that first"):
        inspect(InspectJob(tokens_folder=str(tmp_path)))
