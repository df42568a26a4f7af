"""What came in, what was dropped and why, what went out."""

from tfray.report.account import format_account

CLEAN = {"rows": 12_000, "pairs": 12_000, "source_tokens": 150_000, "target_tokens": 160_000}
DIRTY = {"rows": 110, "pairs": 100, "source_tokens": 1_000, "target_tokens": 1_100}


def test_every_number_of_the_account_is_shown() -> None:
    shown = format_account({"totals": {"train": {**CLEAN, "rejected": {}, "examples": {}}}})
    assert all(number in shown for number in ("train", "12,000", "150,000", "160,000"))
    assert "dropped" not in shown


def test_dropped_rows_are_counted_by_reason_with_the_first_of_each() -> None:
    rejected = {"bad_json": 7, "empty_source": 3}
    examples = {"bad_json": ["a.jsonl, line 3: bad_json: oops"], "empty_source": ["a.jsonl, line 9: empty_source"]}
    shown = format_account({"totals": {"valid": {**DIRTY, "rejected": rejected, "examples": examples}}})
    assert all(text in shown for text in ("bad_json", "7", "empty_source", "3", "line 3", "line 9"))
