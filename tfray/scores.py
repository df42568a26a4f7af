"""Predictions against references: BLEU and chrF, or accuracy and F1."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow makes its compute functions when it is loaded)
from __future__ import annotations

import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from tfray.errors import InputError

# The confusion matrix grows with the square: 10,000 different texts would take 800 MB.
MAX_LABELS = 1000


def translation_scores(predictions: list[str], references: list[str], *, lowercase: bool = False) -> dict:
    """Return corpus BLEU and chrF (0 to 100) with sacrebleu's signatures, and the share of exact matches.

    lowercase: compare without regard to case, which the signatures then say.
    """
    check_pairs(predictions, references)
    if lowercase:
        predictions, references = in_lower_case(predictions), in_lower_case(references)
    bleu, chrf = BLEU(tokenize=bleu_tokenizer(references), lowercase=lowercase), CHRF(lowercase=lowercase)
    return {
        "rows": len(references),
        "bleu": bleu.corpus_score(predictions, [references]).score,
        "chrf": chrf.corpus_score(predictions, [references]).score,
        "exact_match": sum(map(str.__eq__, predictions, references)) / len(references),
        "bleu_signature": str(bleu.get_signature()),
        "chrf_signature": str(chrf.get_signature()),
    }


def in_lower_case(texts: list[str]) -> list[str]:
    """Return texts in lower case as `normalize` writes it: str.lower, and so sacrebleu, makes two characters of \u0130,
    and of a \u03a3 another letter where it ends a word."""
    return pc.utf8_lower(pa.array(texts, pa.string())).to_pylist()


def bleu_tokenizer(references: list[str]) -> str:
    """Return sacrebleu's tokenizer for the references' script: 13a, zh or char (Japanese)."""
    characters = han = kana = 0
    for reference in references:
        for character in reference:
            characters += not character.isspace()
            han += is_named(character, "CJK UNIFIED") or is_named(character, "CJK COMPAT")
            kana += is_named(character, "HIRAGANA") or is_named(character, "KATAKANA")
    if 2 * (han + kana) <= characters:
        return "13a"
    # zh splits at Chinese characters alone: a run of kana would count as one word.
    return "char" if 10 * kana > han + kana else "zh"


def is_named(character: str, script: str) -> bool:
    """Say whether a character's Unicode name begins with a script's."""
    return character > "\u2e7f" and unicodedata.name(character, "").startswith(script)


def classification_scores(predictions: list[str], references: list[str]) -> dict:
    """Return accuracy, macro-F1 and F1 per label of the references, and the confusion matrix.

    Rows of the matrix are references, columns predictions, both in the order of its labels. A ratio
    without cases (a label that is never predicted) is 0.
    """
    check_pairs(predictions, references)
    labels = sorted({*references, *predictions})
    if len(labels) > MAX_LABELS:
        raise InputError(
            f"task='classification' met {len(labels)} different labels, at most {MAX_LABELS} can "
            "be compared; if the targets are texts, use task=translation"
        )
    counts = confusion_counts(predictions, references, labels)
    per_label = scores_per_label(counts, labels)
    return {
        "rows": len(references),
        "accuracy": float(np.trace(counts) / len(references)),
        "macro_f1": float(np.mean([scores["f1"] for scores in per_label.values()])),
        "per_label": per_label,
        "confusion": {"labels": labels, "counts": counts.tolist()},
    }


def confusion_counts(predictions: list[str], references: list[str], labels: list[str]) -> np.ndarray:
    """Return how often each reference met each prediction, (labels, labels)."""
    index = {label: position for position, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    rows, columns = [index[label] for label in references], [index[label] for label in predictions]
    np.add.at(counts, (rows, columns), 1)
    return counts


def scores_per_label(counts: np.ndarray, labels: list[str]) -> dict[str, dict[str, float | int]]:
    """Return precision, recall, F1 and support of every label that occurs in the references."""
    correct, support, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    precision, recall = ratio(correct, predicted), ratio(correct, support)
    f1 = ratio(2 * correct, support + predicted)
    return {
        label: {
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
            "support": int(support[i]),
        }
        for i, label in enumerate(labels)
        if support[i]
    }


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole, and 0 where whole is 0."""
    return part / np.maximum(whole, 1)


def check_pairs(predictions: list[str], references: list[str]) -> None:
    """Raise ValueError unless there is one prediction for each of at least one reference."""
    if len(predictions) != len(references) or not references:
        raise ValueError(
            f"{len(predictions)} predictions for {len(references)} references: there must be one "
            "for each, and at least one"
        )
