"""The stage of the predict job: a unit of rows -> its Parquet file of predictions."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import pyarrow as pa
import torch

from tfray import storage
from tfray.checkpoint.folder import open_model_folder
from tfray.config import GenerationConfig
from tfray.corpus.clean import kind_of, unusable
from tfray.corpus.normalize import normalize
from tfray.corpus.read import DamagedFile, Rows, read_unit
from tfray.errors import InputError
from tfray.generation.generate import generate, prepare
from tfray.generation.scoring import classify
from tfray.inference.columns import Prediction, with_predictions
from tfray.model.precision import prepare_cpu
from tfray.tokens.special import EOS_ID
from tfray.units.ledger import RECORDS, record_unit
from tfray.units.plan import Unit


class Assignment(NamedTuple):
    """What every unit of a predict job needs besides itself."""

    model_folder: str
    out: str
    source_column: str
    schema: pa.Schema
    generation: GenerationConfig
    max_characters: int


class PredictUnit:
    """Stage: loads the model once; reads, predicts and writes one unit at a time."""

    def __init__(self, assignment: Assignment) -> None:
        folder = open_model_folder(assignment.model_folder)
        self.assignment, self.task, self.text = assignment, folder.task, folder.text
        self.tokenizer = folder.tokenizer
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cpu":
            prepare_cpu(threads=1)  # one process a core is faster than one process with many threads
        self.model = prepare(folder.load_model().to(self.device), assignment.generation)

    def __call__(self, unit: Unit) -> dict:
        try:
            rows = read_unit(unit, self.assignment.schema, {self.assignment.source_column})
        except DamagedFile as error:
            raise InputError(f"{error}; replace or remove it") from error
        predictions = self.predict(rows)
        errors = Counter(kind_of(p.error) for p in predictions if p.error)
        summary = {"rows": len(predictions), "errors": dict(errors)}
        out = self.assignment.out
        storage.publish_table(storage.join(out, unit.output_name), with_predictions(rows.table, predictions))
        record_unit(storage.join(out, RECORDS), unit, summary)
        return {"unit_rows": unit.rows, **summary}

    def predict(self, rows: Rows) -> list[Prediction]:
        """Return a prediction or an error for each row."""
        texts = normalize(rows.table[self.assignment.source_column].combine_chunks(), self.text).to_pylist()
        limit = self.assignment.max_characters
        # A row whose text can be used is predicted even where another of its columns is bad.
        errors = [
            (rows.errors.get(index) if text is None else None) or unusable("source", text, limit)
            for index, text in enumerate(texts)
        ]
        usable = [index for index, error in enumerate(errors) if error is None]
        ids = self.tokenizer.encode_batch([texts[index] for index in usable])
        sources = [[*tokens, EOS_ID] for tokens in ids]
        longest = self.model.architecture.max_length
        predictions = [Prediction(None, None, error) for error in errors]
        fitting = []
        for index, source in zip(usable, sources, strict=True):
            if len(source) > longest:
                message = f"too_long: the source has {len(source)} tokens, the model takes {longest}"
                predictions[index] = Prediction(None, None, message)
            else:
                fitting.append((index, source))
        found = self.search([source for _, source in fitting])
        for (index, _), (text, score) in zip(fitting, found, strict=True):
            predictions[index] = Prediction(text, score, rows.errors.get(index))
        return predictions

    def search(self, sources: list[list[int]]) -> list[tuple[str, float]]:
        """Return text and log-probability, or label and probability, of each source."""
        generation = self.assignment.generation
        if self.task != "classification":
            hypotheses = generate(self.model, sources, generation)
            texts = self.tokenizer.decode_batch([hypothesis.ids for hypothesis in hypotheses])
            return [(text, hypothesis.score) for text, hypothesis in zip(texts, hypotheses, strict=True)]
        labels = list(self.tokenizer.label_ids)
        probabilities = classify(self.model, sources, list(self.tokenizer.label_ids.values()), generation.batch_rows)
        best = probabilities.max(-1)
        return [
            (labels[index], score) for index, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
