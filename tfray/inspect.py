"""The inspect command: a tokens folder, for people."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc

from tfray.batches.plan import plan_pool, shapes_of
from tfray.config import SPLITS, BatchesConfig, InspectJob
from tfray.report.account import format_account
from tfray.report.tables import format_table
from tfray.tokens.shards import TokenFolder, open_tokens, read_columns, read_lengths

MOST_SHARDS = 64  # of which lengths are read; evenly spread over the split
EXAMPLES = 10
BINS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
BAR = 40  # characters


def inspect(job: InspectJob) -> str:
    """Return the manifest of a tokens folder, its lengths, padding and some examples as text."""
    tokens = open_tokens(job.tokens_folder)
    split = next(split for split in SPLITS if tokens.has_split(split))
    chosen = spread(tokens.paths(split), MOST_SHARDS)
    lengths = [read_lengths(path) for path in chosen]
    source, target = (np.concatenate(side) for side in zip(*lengths, strict=True))
    return "\n\n".join(
        [
            format_account(tokens.manifest),
            describe_tokens(tokens),
            f"lengths in tokens ({split}, {len(source):,} pairs of {len(chosen)} shards)\n\n"
            + format_histogram(source, target),
            describe_padding(source, target, job.batches),
            f"examples ({split})\n\n" + format_pairs(tokens, split),
        ]
    )


def spread(items: list[str], most: int) -> list[str]:
    """Return at most so many items, evenly spread."""
    return [items[i * len(items) // most] for i in range(most)] if len(items) > most else items


def describe_tokens(tokens: TokenFolder) -> str:
    """Return what the manifest says of the tokenizer and the shards."""
    manifest = tokens.manifest
    totals = manifest["splits"].values()
    count = sum(sums["source_tokens"] + sums["target_tokens"] - 2 * sums["pairs"] for sums in totals)
    rows: list[list[object]] = [
        ["task", manifest["task"]],
        ["vocabulary", f"{manifest['vocab_size']:,}"],
        ["tokens per word", f"{count / max(manifest['words'], 1):.2f}"],
        ["shards", f"{sum(map(len, manifest['shards'].values())):,}"],
        ["weights", ", ".join(f"{name} {weight:g}" for name, weight in tokens.weights.items())],
        ["shard format", manifest["shard_format"]],
        ["fingerprint", tokens.fingerprint],
    ]
    if manifest["labels"]:
        rows.insert(1, ["labels", ", ".join(manifest["labels"])])
    return format_table(["tokens", ""], rows)


def format_histogram(source: np.ndarray, target: np.ndarray) -> str:
    """Return the lengths of both sides, counted by powers of two."""
    edges = np.array([*BINS, np.iinfo(np.int32).max])
    counts = [np.histogram(lengths, edges)[0] for lengths in (source, target)]
    used = [i for i in range(len(BINS)) if counts[0][i] or counts[1][i]]
    most = max(int(count.max()) for count in counts)
    rows: list[list[object]] = [
        [
            f"{BINS[i]}-{edges[i + 1] - 1}" if i + 1 < len(BINS) else f"{BINS[i]}-",
            *(cell for count in counts for cell in (f"{count[i]:,}", "#" * round(BAR * count[i] / most))),
        ]
        for i in used
    ]
    return format_table(["length", "source", "", "target", ""], rows)


def describe_padding(source: np.ndarray, target: np.ndarray, config: BatchesConfig) -> str:
    """Return the share of padding in one pool of these pairs at the configured budget."""
    size = min(len(source), config.pool_examples)
    source, target = source[:size], target[:size]
    steps = plan_pool(source, target, config, epoch=0, pool=0)
    rows = [batch for step in steps for batch in step]
    padded = sum(shape.tokens for shape in shapes_of(source, target, steps, config))
    real = sum(int(side[batch].sum()) for batch in rows for side in (source, target))
    return (
        f"padding at batches.max_tokens={config.max_tokens:,}: {1 - real / padded:.1%} of {len(rows):,} micro-batches "
        f"(one pool of {size:,} pairs)"
    )


def format_pairs(tokens: TokenFolder, split: str) -> str:
    """Return the first pairs of evenly spread shards, decoded, with their place in the input."""
    paths = spread(tokens.paths(split), EXAMPLES)
    each = -(-EXAMPLES // len(paths))
    lines, tokenizer = [], tokens.tokenizer
    for path in paths:
        table = read_columns(path, ["source_ids", "target_ids", "file", "row"]).slice(0, each)
        texts = [tokenizer.decode_batch(table[side].to_pylist()) for side in ("source_ids", "target_ids")]
        if tokens.task == "classification":
            names = {index: name for name, index in tokenizer.label_ids.items()}
            texts[1] = [names[index] for index in pc.list_flatten(table["target_ids"]).to_pylist()]
        for source, target, file, row in zip(*texts, table["file"].to_pylist(), table["row"].to_pylist(), strict=True):
            lines.append(f"  {source}\n  -> {target}\n     {file}, row {row}")
    return "\n".join(lines[:EXAMPLES])
