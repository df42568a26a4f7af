"""The end of the tokenize job: the units' records -> the account of every row, and the manifest."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from tfray import storage
from tfray.config import SPLITS, TokenizeJob
from tfray.corpus.clean import ERROR_KINDS
from tfray.errors import InputError, TooManyErrors
from tfray.report.account import format_account
from tfray.tokens.output import EXAMPLES_SHOWN, REJECTED, TEST_TEXT
from tfray.tokens.recipe import Corpus, LostFile
from tfray.tokens.shards import FORMAT_VERSION, TokenFolder, open_tokens, tokens_fingerprint
from tfray.tokens.tokenizer import TOKENIZER, Tokenizer
from tfray.units.ledger import RECORDS, Ledger, sweep
from tfray.units.plan import Unit
from tfray.units.stored import sweep_plans

WORK = "_work"


def finish(job: TokenizeJob, ledger: Ledger, corpora: list[Corpus], units: list[Unit]) -> TokenFolder:
    """Return the finished folder with its manifest.

    Raises InputError where no training pair is left, and TooManyErrors where more rows were lost by errors
    than may be; with a higher limit the same job then ends at once.
    """
    records = ledger.records(units)
    accounts = {corpus.name: account_for(corpus, records) for corpus in corpora}
    tokenizer = Tokenizer.load(storage.join(ledger.folder, TOKENIZER))
    shards = {split: [shard for record in records for shard in record["shards"].get(split, [])] for split in SPLITS}
    manifest = {
        "shard_format": FORMAT_VERSION,
        "task": corpora[0].columns.task,
        "labels": tokenizer.labels,
        "vocab_size": tokenizer.vocab_size,
        "fingerprint": tokens_fingerprint(tokenizer.json, shards),
        "weights": {corpus.name: corpus.weight for corpus in corpora if corpus.split == "train"},
        "corpora": accounts,
        "splits": {split: add_up(shards[split]) for split in SPLITS if shards[split]},
        "words": sum(record["words"] for record in records),
        "shards": {split: found for split, found in shards.items() if found},
    }
    check_account(job, manifest)
    storage.remove(storage.join(ledger.folder, WORK))
    for place in (ledger.folder, *(storage.join(ledger.folder, n) for n in (*SPLITS, REJECTED, TEST_TEXT, RECORDS))):
        sweep(place)
    plan = ledger.manifest["plan"]
    sweep_plans(ledger.folder, plan)
    ledger.finish({"plan": plan, **manifest})
    return open_tokens(ledger.folder)


def account_for(corpus: Corpus, records: list[dict]) -> dict:
    """Return what became of a corpus' rows; the first rows of each reason as examples."""
    own = [record for record in records if record["corpus"] == corpus.name]
    rejected: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for record in own:
        rejected.update(record["rejected"])
        for reason, shown in record["examples"].items():
            examples[reason] = (examples.get(reason, []) + shown)[:EXAMPLES_SHOWN]
    size = sum(file.bytes for file in corpus.files)
    rows = sum(record["rows"] for record in own)
    for file in corpus.lost:
        kind = file.reason.partition(":")[0]
        rejected[kind] += estimate_rows(file, rows, size)
        examples.setdefault(kind, []).append(f"{file.path}: {file.reason}")
    pairs = {split: count_pairs(own, split) for split in SPLITS}
    return {
        "split": corpus.split,
        "columns": {"source": corpus.columns.source, "target": corpus.columns.target},
        "files": len(corpus.files),
        "bytes": size,
        "rows": sum(pairs.values()) + rejected.total(),
        "pairs": pairs,
        "rejected": dict(rejected.most_common()),
        "examples": examples,
        "damaged_files": [f"{file.path}: {file.reason}" for file in corpus.lost]
        + [record["damage"] for record in own if record["damage"]],
    }


def estimate_rows(file: LostFile, rows: int, size: int) -> int:
    """Return how many rows a lost file has or may have had, by its size beside the corpus' other files."""
    return file.rows if file.rows is not None else max(1, math.ceil(file.bytes * rows / max(size, 1)))


def count_pairs(records: list[dict], split: str) -> int:
    """Return the pairs of a split in some units."""
    return sum(shard["pairs"] for record in records for shard in record["shards"].get(split, []))


def add_up(shards: list[dict]) -> dict[str, int]:
    """Return the totals of a split's shards."""
    return {name: sum(shard[name] for shard in shards) for name in ("pairs", "source_tokens", "target_tokens")}


def check_account(job: TokenizeJob, manifest: dict) -> None:
    """Raise InputError or TooManyErrors where the corpus cannot be used as it came out."""
    accounts = manifest["corpora"].values()
    rejected = sum((Counter(account["rejected"]) for account in accounts), Counter())
    for split in ("train", "valid"):
        is_wanted = split == "train" or job.corpus.valid or job.corpus.valid_share
        if is_wanted and split not in manifest["splits"]:
            raise InputError(
                f"corpus.{split}: every row was dropped ({why_dropped(accounts)}); look at them in "
                f"{storage.join(storage.absolute(job.out), REJECTED)} (corpus.clean.keep_rejected writes them), then "
                "mend the files, or change the limits of corpus.clean or tokens.max_length"
            )
    rows = sum(account["rows"] for account in accounts)
    errors = sum(count for kind, count in rejected.items() if kind in ERROR_KINDS)
    limit = job.corpus.clean.max_error_rate
    if errors > limit * rows:
        raise TooManyErrors(
            f"{format_account(manifest)}\n\n{errors:,} of {rows:,} rows ({errors / rows:.1%}) were lost by errors, "
            f"more than corpus.clean.max_error_rate={limit:g} allows; mend the files named above, or raise the share "
            "and start the job again: what is done stays done"
        )


def why_dropped(accounts: Iterable[dict]) -> str:
    """Return why rows cannot be used, the most frequent reason first and with its first row."""
    rejected = sum((Counter(account["rejected"]) for account in accounts), Counter())
    if not rejected:
        return "there was none"
    reason = rejected.most_common(1)[0][0]
    first = next(account["examples"][reason][0] for account in accounts if reason in account["examples"])
    remedy = "; name it in corpus.label_names, or leave that out" if reason == "unknown_label" else ""
    counts = ", ".join(f"{count:,} {kind}" for kind, count in rejected.most_common())
    return f"{counts}; the first: {first}{remedy}"
