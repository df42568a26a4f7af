"""Scores -> tables for people."""

from __future__ import annotations

from tfray.report.tables import format_table

# A wider matrix does not fit a terminal.
MAX_SHOWN_LABELS = 12


def format_scores(scores: dict) -> str:
    """Return scores as tables for people."""
    show = format_translation if scores["task"] == "translation" else format_classification
    return f"{show(scores)}\n\n{format_rows(scores)}"


def format_rows(scores: dict) -> str:
    """Return a line that says how many rows were scored, and which were not as they should be."""
    return (
        f"{scores['rows']:,} rows scored, {scores['rows_with_error']:,} of them with an error "
        f"(counted as wrong); {scores['rows_without_reference']:,} without a reference left out"
    )


def format_translation(scores: dict) -> str:
    """Return a table of BLEU and chrF with their signatures."""
    rows: list[list[object]] = [
        ["BLEU", f"{scores['bleu']:.2f}", scores["bleu_signature"]],
        ["chrF", f"{scores['chrf']:.2f}", scores["chrf_signature"]],
    ]
    return format_table(["metric", "score", "sacrebleu signature"], rows)


def format_classification(scores: dict) -> str:
    """Return tables of accuracy and macro-F1, of the labels, and of the confusion matrix."""
    overall: list[list[object]] = [
        ["accuracy", f"{scores['accuracy']:.4f}"],
        ["macro-F1", f"{scores['macro_f1']:.4f}"],
    ]
    labels: list[list[object]] = [
        [
            shown(label),
            *(f"{of[name]:.4f}" for name in ("precision", "recall", "f1")),
            of["support"],
        ]
        for label, of in scores["per_label"].items()
    ]
    tables = [
        format_table(["metric", "score"], overall),
        format_table(["label", "precision", "recall", "F1", "support"], labels),
        format_confusion(**scores["confusion"]),
    ]
    return "\n\n".join(tables)


def format_confusion(labels: list[str], counts: list[list[int]]) -> str:
    """Return the confusion matrix as a table, or where to find it if it is too wide to show."""
    if len(labels) > MAX_SHOWN_LABELS:
        return f"The confusion matrix of {len(labels)} labels is in _scores.json."
    pairs = zip(labels, counts, strict=True)
    rows: list[list[object]] = [[shown(label), *row] for label, row in pairs if any(row)]
    return format_table(["reference \\ prediction", *map(shown, labels)], rows)


def shown(label: str) -> str:
    """Return a label for a table, where an empty one would not be seen."""
    return label or "(none)"
