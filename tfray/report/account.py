"""What came in, what was dropped and why, what went out: the account of a tokenized corpus."""

from __future__ import annotations

from tfray.report.tables import format_table


def format_account(manifest: dict) -> str:
    """Return a tokens manifest as tables for people, with the first rejected rows of each reason."""
    accounts = manifest["corpora"]
    splits = list(manifest["splits"])
    rows: list[list[object]] = [
        [name, f"{account['bytes'] / 1e6:,.1f}", f"{account['rows']:,}"]
        + [f"{account['pairs'].get(split, 0):,}" for split in splits]
        + [f"{sum(account['rejected'].values()):,}"]
        for name, account in accounts.items()
    ]
    blocks = [format_table(["corpus", "MB in", "rows in", *(f"{split} pairs" for split in splits), "dropped"], rows)]
    tokens: list[list[object]] = [
        [split, *(f"{sums[name]:,}" for name in ("pairs", "source_tokens", "target_tokens"))]
        for split, sums in manifest["splits"].items()
    ]
    blocks.append(format_table(["split", "pairs out", "source tokens", "target tokens"], tokens))
    dropped: list[list[object]] = [
        [name, kind, f"{count:,}", f"{count / account['rows']:.2%}"]
        for name, account in accounts.items()
        for kind, count in account["rejected"].items()
    ]
    if dropped:
        blocks.append(format_table(["corpus", "dropped because", "rows", "share"], dropped))
        blocks += [format_examples(account["examples"]) for account in accounts.values() if account["examples"]]
    return "\n\n".join(blocks)


def format_examples(examples: dict[str, list[str]]) -> str:
    """Return the first rejected rows of each reason, a line each."""
    return "\n".join(f"  {row}" for rows in examples.values() for row in rows)
