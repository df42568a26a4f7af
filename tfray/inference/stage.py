"""The stage of the predict job: a unit of rows -> its Parquet file of predictions."""

from __future__ import annotations

import json
from collections import Counter
from typing import NamedTuple

import pyarrow as pa
import torch

from tfray import storage
from tfray.checkpoint.folder import open_model_folder
from tfray.config import GenerationConfig
from tfray.corpus.clean import kind_of, normalize, unusable
from tfray.corpus.read import Rows, read_unit
from tfray.generation.generate import prepare
from tfray.generation.scoring import classify
from tfray.inference.columns import Prediction, with_predictions
from tfray.inference.search import search_targets
from tfray.model.precision import prepare_cpu
from tfray.tokens.shards import SUMMARY_KEY
from tfray.tokens.special import EOS_ID
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
        self.assignment, self.task = assignment, folder.task
        self.tokenizer = folder.tokenizer
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cpu":
            prepare_cpu(threads=1)  # one process a core is faster than one process with many threads
        self.model = prepare(folder.load_model().to(self.device), assignment.generation)

    def __call__(self, unit: Unit) -> dict:
        rows = read_unit(unit, self.assignment.schema, {self.assignment.source_column})
        predictions = self.predict(rows)
        errors = Counter(kind_of(p.error) for p in predictions if p.error)
        summary = {"rows": len(predictions), "errors": dict(errors)}
        table = with_predictions(rows.table, predictions)
        table = table.replace_schema_metadata({SUMMARY_KEY: json.dumps(summary).encode()})
        storage.publish_table(storage.join(self.assignment.out, unit.output_name), table)
        return {"unit_rows": unit.rows, **summary}

    def predict(self, rows: Rows) -> list[Prediction]:
        """Return a prediction or an error for each row."""
        texts = rows.table[self.assignment.source_column].to_pylist()
        limit = self.assignment.max_characters
        # A row whose text can be used is predicted even where another of its columns is bad.
        errors = [
            (error if text is None else None) or unusable("source", text, limit)
            for text, error in zip(texts, rows.errors, strict=True)
        ]
        usable = [index for index, error in enumerate(errors) if error is None]
        ids = self.tokenizer.encode_batch([normalize(texts[index]) for index in usable])
        sources = [[*tokens, EOS_ID] for tokens in ids]
        longest, generation = self.model.architecture.max_length, self.assignment.generation
        predictions = [Prediction(None, None, error) for error in errors]
        fitting = []
        for index, source in zip(usable, sources, strict=True):
            if len(source) > longest and (self.task == "classification" or generation.long_sources == "refuse"):
                message = f"too_long: the source has {len(source)} tokens, the model takes {longest}"
                predictions[index] = Prediction(None, None, message)
            else:
                fitting.append((index, source))
        found = self.search([source for _, source in fitting])
        for (index, _), prediction in zip(fitting, found, strict=True):
            predictions[index] = prediction._replace(error=prediction.error or rows.errors[index])
        return predictions

    def search(self, sources: list[list[int]]) -> list[Prediction]:
        """Return text and log-probability, or label and probability, of each source."""
        generation = self.assignment.generation
        if self.task != "classification":
            outputs = search_targets(self.model, self.tokenizer, sources, generation)
            texts = self.tokenizer.decode_batch([out.best.ids if not out.error else [] for out in outputs])
            return [
                Prediction(None, None, out.error) if out.error else Prediction(text, out.best.score, None)
                for out, text in zip(outputs, texts, strict=True)
            ]
        labels = list(self.tokenizer.label_ids)
        probabilities = classify(self.model, sources, list(self.tokenizer.label_ids.values()), generation.batch_rows)
        best = probabilities.max(-1)
        return [
            Prediction(labels[index], score, None)
            for index, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
