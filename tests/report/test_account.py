"""What came in, what was dropped and why, what went out."""

from tfray.report.account import format_account

SUMS = {"pairs": 12_000, "source_tokens": 150_000, "target_tokens": 160_000}
CORPUS = {"bytes": 3_400_000, "rows": 12_010, "pairs": {"train": 12_000, "valid": 0}, "rejected": {}, "examples": {}}


def test_every_number_of_the_account_is_shown() -> None:
    shown = format_account({"corpora": {"news": {**CORPUS, "rows": 12_000}}, "splits": {"train": SUMS}})
    assert all(number in shown for number in ("news", "train", "12,000", "150,000", "160,000", "3.4"))
    assert "dropped because" not in shown


def test_dropped_rows_are_counted_by_corpus_and_reason_with_the_first_of_each() -> None:
    rejected = {"bad_json": 7, "empty_source": 3}
    examples = {"bad_json": ["a.jsonl, line 3: bad_json: oops"], "empty_source": ["a.jsonl, line 9: empty_source"]}
    corpus = {**CORPUS, "rejected": rejected, "examples": examples}
    shown = format_account({"corpora": {"talks": corpus}, "splits": {"train": SUMS}})
    assert all(text in shown for text in ("talks", "bad_json", "7", "0.06%", "empty_source", "3", "line 3", "line 9"))
