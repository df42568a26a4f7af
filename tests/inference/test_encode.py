"""Prediction reads a text as training did: the job that makes tokens, the predict job and the model in process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tfray
from tests.inference.conftest import WORDS, make_job
from tfray.checkpoint.folder import open_model_folder, save_model_folder
from tfray.config import CorpusConfig, ModelConfig, TextConfig, TokenizeJob, TokensConfig
from tfray.inference.encode import EncodeUnit
from tfray.inference.planning import assign, plan_rows
from tfray.model.architecture import resolve
from tfray.model.transformer import Transformer
from tfray.tokens import learning as learning_module
from tfray.tokens import tokenize as tokenize_module
from tfray.tokens import verdicts as verdicts_module

TEXTS = ["one  two", " ｔｅｎ\u3000nine\t", "cafe\u0301 ﬁve", "one\x00 two\ufeff", "three", "</s> four", "Å\u00a0½"]


@pytest.mark.parametrize(
    "text",
    [
        TextConfig(),
        TextConfig(unicode="nfkc"),
        TextConfig(unicode="off", control_characters=False),
        TextConfig(whitespace=False),
    ],
    ids=str,
)
def test_a_text_has_the_ids_that_it_has_in_training(
    text: TextConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(
        pa.table({"source": TEXTS, "target": [f"{WORDS} {row}" for row in range(7)]}), tmp_path / "a.parquet"
    )
    tokens = tokenize(
        TokenizeJob(
            corpus=CorpusConfig(train=str(tmp_path / "a.parquet"), text=text),
            tokens=TokensConfig(vocab_size=320),
            out=str(tmp_path / "tokens"),
        ),
        monkeypatch,
    )
    rows = pq.read_table(tmp_path / "tokens" / "train", columns=["row", "source_ids"]).to_pylist()
    trained = [row["source_ids"] for row in sorted(rows, key=lambda row: row["row"])]
    assert len(trained) == len(TEXTS)

    sizes = ModelConfig(preset="tiny", d_model=32, num_heads=2, d_ff=64, encoder_layers=1, decoder_layers=1)
    model = Transformer(resolve(sizes, tokens.tokenizer.vocab_size, 64))
    place = str(tmp_path / "model")
    weights, architecture = model.state_dict(), model.architecture
    save_model_folder(place, weights, architecture, tokens.tokenizer.json, "translation", {}, text)

    assert tfray.load(place, threads=1).encode(TEXTS) == trained
    job = make_job(place, tmp_path / "a.parquet", tmp_path / "out")
    plan = plan_rows(job, open_model_folder(place), "generate", [str(tmp_path / "a.parquet")])
    assignment = assign(job, job.out, open_model_folder(place), "generate", plan, {})
    pieces = EncodeUnit(assignment)(plan.units[0]).pieces
    assert [[ids.tolist() for ids in pieces[row]] for row in range(len(TEXTS))] == [[ids] for ids in trained]


def tokenize(job: TokenizeJob, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the tokens folder of a job that is carried out in this process."""

    def stream(
        items: Sequence[object], stage: type, arguments: tuple, cluster: object, *, shared: object = None
    ) -> Iterator[Any]:
        yield from map(stage(*arguments, *(() if shared is None else (shared,))), items)

    for module in (tokenize_module, learning_module, verdicts_module):
        monkeypatch.setattr(module, "stream", stream)
    monkeypatch.setattr(tokenize_module, "connected", lambda cluster: contextlib.nullcontext())
    return tokenize_module.tokenize(job)
