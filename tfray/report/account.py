"""What came in, what was dropped and why, what went out: the account of a tokenized corpus."""

from __future__ import annotations

from tfray.report.tables import format_table


def format_account(manifest: dict) -> str:
    """Return a tokens manifest as tables for people, with the first rejected rows of each reason."""
    totals = manifest["totals"]
    rows = [
        [split, *(f"{t[name]:,}" for name in ("rows", "pairs", "source_tokens", "target_tokens"))]
        for split, t in totals.items()
    ]
    blocks = [format_table(["split", "rows in", "pairs out", "source tokens", "target tokens"], rows)]
    dropped = [[split, kind, f"{count:,}"] for split, t in totals.items() for kind, count in t["rejected"].items()]
    if dropped:
        blocks.append(format_table(["split", "dropped because", "rows"], dropped))
        blocks += [format_examples(t["examples"]) for t in totals.values() if t["examples"]]
    return "\n\n".join(blocks)


def format_examples(examples: dict[str, list[str]]) -> str:
    """Return the first rejected rows of each reason, a line each."""
    return "\n".join(f"  {row}" for rows in examples.values() for row in rows)
