"""The stage of the tokenize job: a unit of rows -> its shards, its rejected rows and its record."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfray import storage
from tfray.config import SPLITS, TokensConfig
from tfray.corpus.clean import REJECTED_SCHEMA, Cleaned
from tfray.corpus.hashing import TRAIN
from tfray.corpus.read import DamagedFile
from tfray.tokens.encoder import Encoder
from tfray.tokens.output import TEST_TEXT, UnitOutput, rejected_rows
from tfray.tokens.ragged import Ragged, with_eos
from tfray.tokens.recipe import Recipe
from tfray.tokens.survey import split_numbers
from tfray.tokens.tokenizer import Tokenizer
from tfray.tokens.verdicts import Verdicts
from tfray.units.ledger import RECORDS, record_unit
from tfray.units.lock import Ticket
from tfray.units.plan import Unit


class Assignment(NamedTuple):
    """What every unit of a tokenize job needs besides itself."""

    folder: str
    recipe: Recipe
    tokens: TokensConfig
    tokenizer_json: str
    ticket: Ticket
    """Of the driver: what a killed one has left behind writes into no other run."""


class TokenizeUnit:
    """Stage: loads the tokenizer once; reads, cleans, encodes and writes one unit at a time."""

    def __init__(self, assignment: Assignment, verdicts: Verdicts) -> None:
        self.assignment, self.verdicts = assignment, verdicts
        self.recipe = assignment.recipe
        tokenizer = Tokenizer.from_json(assignment.tokenizer_json)
        self.encoder = Encoder(tokenizer)
        self.vocab_size = tokenizer.vocab_size
        self.label_names = pa.array(tokenizer.labels, pa.string())
        self.label_ids = np.array([*tokenizer.label_ids.values(), -1], np.int32)  # -1: not a label of this task

    def __call__(self, unit: Unit) -> dict:
        began, clock = time.time(), time.monotonic()
        self.assignment.ticket.check()
        folder, clean = self.assignment.folder, self.recipe.config.clean
        output = UnitOutput(folder, unit, self.vocab_size, self.assignment.tokens.shard_tokens, clean.keep_rejected)
        with output:
            try:
                for cleaned in self.recipe.clean_blocks(unit):
                    self.tokenize(unit, cleaned, output)
            except DamagedFile as damage:
                output.lose(damage.reason)
        self.assignment.ticket.check()
        record = {**output.record(), "began": began, "seconds": round(time.monotonic() - clock, 3)}
        record_unit(storage.join(folder, RECORDS), unit, record)
        return {"rows": output.rows, "bytes": unit.bytes, "tokens": output.tokens}

    def tokenize(self, unit: Unit, cleaned: Cleaned, output: UnitOutput) -> None:
        """Judge and encode a block, and hand everything to the output."""
        output.reject(cleaned.rejected)
        cleaned, splits = self.judge(unit, cleaned, output)
        if not len(cleaned.rows):
            return
        source, target = with_eos(Ragged(*self.encoder.encode(cleaned.source))), self.encode_targets(cleaned.target)
        lengths = [np.diff(source.offsets), np.diff(target.offsets) + 1]
        table = output.table(source, target, lengths, cleaned.rows)
        reasons = self.misfits(cleaned, *lengths)
        for number in np.unique(splits):
            chosen, split = (splits == number) & (reasons == 0), SPLITS[number]
            output.write(split, table.filter(pa.array(chosen)), count_words(cleaned, chosen))
            if split == "test" and self.recipe.config.test_share and chosen.any():
                output.store_text(TEST_TEXT, as_text(cleaned, chosen))
        if reasons.any():
            output.reject(self.explain(cleaned, reasons, *lengths))

    def judge(self, unit: Unit, cleaned: Cleaned, output: UnitOutput) -> tuple[Cleaned, np.ndarray]:
        """Return the rows that are neither duplicates nor held out, with the split of each."""
        splits = split_numbers(self.recipe, unit, cleaned)
        duplicate = self.verdicts.is_duplicate(unit, cleaned.rows)
        held_out = (splits == TRAIN) & ~duplicate
        if held_out.any():
            held_out &= self.verdicts.are_held_out(cleaned.source, cleaned.target)
        for mask, reason, message in (
            (duplicate, "duplicate", "an equal row came before"),
            (held_out, "held_out", "its text belongs to validation or test data"),
        ):
            if mask.any():
                output.reject(rejected_rows(cleaned, mask, reason, message))
        left = ~(duplicate | held_out)
        return (cleaned, splits) if left.all() else (select(cleaned, left), splits[left])

    def encode_targets(self, texts: pa.Array) -> Ragged:
        """Return target ids without eos: one label token each (-1 for a label that is not known), or the text's."""
        if not self.recipe.is_classification:
            return Ragged(*self.encoder.encode(texts))
        index = pc.index_in(texts, self.label_names).fill_null(len(self.label_names)).to_numpy()
        return Ragged(self.label_ids[index], np.arange(len(index) + 1))

    def misfits(self, cleaned: Cleaned, source_lengths: np.ndarray, target_lengths: np.ndarray) -> np.ndarray:
        """Return for each row the number of the reason in MISFITS for which its tokens cannot be used, or 0."""
        reasons = np.zeros(len(source_lengths), np.uint8)
        if self.recipe.is_classification:
            reasons[~pc.is_in(cleaned.target, self.label_names).to_numpy(zero_copy_only=False)] = 3
        elif ratio := self.recipe.config.clean.max_length_ratio:
            longer, shorter = np.maximum(source_lengths, target_lengths), np.minimum(source_lengths, target_lengths)
            reasons[longer - 1 > ratio * np.maximum(shorter - 1, 1)] = 2  # without eos
        reasons[np.maximum(source_lengths, target_lengths) > self.assignment.tokens.max_length] = 1
        return reasons

    def explain(
        self, cleaned: Cleaned, reasons: np.ndarray, source_lengths: np.ndarray, target_lengths: np.ndarray
    ) -> pa.Table:
        """Return the rows that do not fit, of which there is one at least, each with its reason in words."""
        tables = []
        for number in np.unique(reasons[reasons > 0]):
            kind, words = MISFITS[number]
            mask = reasons == number
            messages = [
                words.format(source=source, target=target, longest=self.assignment.tokens.max_length)
                for source, target in zip(source_lengths[mask].tolist(), target_lengths[mask].tolist(), strict=True)
            ]
            tables.append(rejected_rows(cleaned, mask, kind, messages))
        return pa.concat_tables(tables)


MISFITS = {
    1: ("too_long", "{source} source and {target} target tokens, more than max_length={longest}"),
    2: ("length_ratio", "{source} source and {target} target tokens are too different"),
    3: ("unknown_label", "the label does not occur in training"),
}


def select(cleaned: Cleaned, mask: np.ndarray) -> Cleaned:
    """Return some of the usable rows."""
    chosen = pa.array(mask)
    return Cleaned(
        cleaned.rows[mask],
        cleaned.source.filter(chosen),
        cleaned.target.filter(chosen),
        REJECTED_SCHEMA.empty_table(),
    )


def as_text(cleaned: Cleaned, mask: np.ndarray) -> pa.Table:
    """Return some rows as the text that they were."""
    rows = select(cleaned, mask)
    return pa.table({"row": rows.rows, "source": rows.source, "target": rows.target})


def count_words(cleaned: Cleaned, mask: np.ndarray) -> int:
    """Return how many words, separated by spaces, both sides of some rows have."""
    chosen = pa.array(mask)
    return sum(
        (pc.sum(pc.count_substring(texts.filter(chosen), " ")).as_py() or 0) + int(mask.sum())
        for texts in (cleaned.source, cleaned.target)
    )
