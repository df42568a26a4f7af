"""How a prediction ended: counts, rates and errors by kind, for people and as JSON."""

from __future__ import annotations

from collections import Counter

from tfray import storage
from tfray.inference.quality import Comparison
from tfray.report.tables import format_table

SUMMARY = "_summary.json"


def summarize(records: list[dict]) -> dict[str, object]:
    """Return the totals of units' records."""
    errors: Counter[str] = Counter()
    for record in records:
        errors.update(record["errors"])
    totals = {name: sum(record[name] for record in records) for name in ("rows", "source_tokens", "target_tokens")}
    seconds = sum(record["seconds"] for record in records)
    return {
        **totals,
        "units": len(records),
        "cut_short": sum(record.get("cut_short", 0) for record in records),
        "bytes": sum(record["bytes"] for record in records),
        "errors": dict(errors.most_common()),
        "first_errors": [record["first_error"] for record in records if record["first_error"]][:5],
        "memory_shortages": sum(record.get("shortages", 0) for record in records),
        "device_seconds": round(seconds, 1),
        "rows_per_device_second": round(totals["rows"] / max(seconds, 1e-3), 1),
        "target_tokens_per_device_second": round(totals["target_tokens"] / max(seconds, 1e-3), 1),
    }


def format_result(result: str) -> str:
    """Return what people see at the end of `tfray predict`: a report as it is, of a folder its summary."""
    return result if "\n" in result else format_summary(storage.read_json(storage.join(result, SUMMARY)), result)


def format_summary(summary: dict, folder: str) -> str:
    """Return a summary as tables."""
    headers = ["rows", "units", "target tokens", "MB", "model seconds", "rows/s a model", "target tokens/s a model"]
    row: list[object] = [
        f"{summary['rows']:,}",
        f"{summary['units']:,}",
        f"{summary['target_tokens']:,}",
        f"{summary['bytes'] / 1e6:,.1f}",
        f"{summary['device_seconds']:,.1f}",
        f"{summary['rows_per_device_second']:,.1f}",
        f"{summary['target_tokens_per_device_second']:,.1f}",
    ]
    blocks = [format_table(headers, [row]), format_errors(summary), f"-> {folder}"]
    if "quality" in summary:
        blocks.insert(1, str(Comparison(**summary["quality"])))
    if count := summary["memory_shortages"]:
        blocks.insert(1, f"memory ran out {count:,} times, and fewer rows were worked on at a time; nothing was lost")
    return "\n\n".join(blocks)


def format_errors(summary: dict) -> str:
    """Return the errors by kind as a table, and the first ones."""
    if not summary["errors"]:
        return "no errors"
    total = max(1, summary["rows"] + summary.get("cut_short", 0))
    rows: list[list[object]] = [
        [kind, f"{count:,}", f"{count / total:.2%}"] for kind, count in summary["errors"].items()
    ]
    table = format_table(["error", "rows", "share"], rows)
    return "\n".join([table, *(f"  {error[:200]}" for error in summary["first_errors"])])
