"""Quality of the shipped Multi30k configuration: BLEU on test2016 of several seeds, and their mean.

    pip install -e '.[bench]'
    python tests/bench/multi30k.py --data DIR --out DIR --seeds 1 2 3        # hours on two cores
    python tests/bench/multi30k.py --data DIR --predictions DIR              # scores alone

DIR holds train.parquet, val.parquet and test2016.parquet. Printed are the BLEU of the literature, multi-bleu on
lower-cased, Moses-tokenized text (Wu et al. 2021: 41.02 of the best small text-only Transformer), and sacreBLEU cased.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

import pyarrow.dataset as ds
from sacrebleu.metrics.bleu import BLEU
from sacremoses import MosesPunctNormalizer, MosesTokenizer

CONFIG = ROOT / "jobs/configs/multi30k_en_de.yaml"
PUBLISHED = 41.02


def train_and_predict(data: Path, out: Path, seed: int, arguments: list[str]) -> Path:
    """Run the whole job with a seed; return the folder of its predictions."""
    command = [
        *(sys.executable, str(ROOT / "jobs/run.py"), "--config", str(CONFIG), "--out", str(out)),
        *("--corpus.train", str(data / "train.parquet"), "--corpus.valid", str(data / "val.parquet")),
        *("--test", str(data / "test2016.parquet"), "--training.seed", str(seed), "--batches.seed", str(seed)),
        *arguments,
    ]
    subprocess.run(command, check=True)
    return out / "predictions"


def read_texts(predictions: Path) -> tuple[list[str], list[str]]:
    """Return predictions and references, row by row."""
    table = ds.dataset(str(predictions), format="parquet", exclude_invalid_files=True).to_table()
    return table["prediction"].to_pylist(), table["target"].to_pylist()


def moses(texts: list[str], language: str = "de") -> list[str]:
    """Return texts with punctuation normalized, lower-cased and tokenized, as the task's published files are."""
    normalizer, tokenizer = MosesPunctNormalizer(lang=language), MosesTokenizer(lang=language)
    return [tokenizer.tokenize(normalizer.normalize(text).lower(), return_str=True, escape=False) for text in texts]


def scores(predictions: list[str], references: list[str]) -> tuple[float, float]:
    """Return multi-bleu on Moses tokens in lower case, and sacreBLEU cased."""
    tokenized = BLEU(tokenize="none", smooth_method="none", force=True)
    multi_bleu = tokenized.corpus_score(moses(predictions), [moses(references)]).score
    return multi_bleu, BLEU().corpus_score(predictions, [references]).score


def main() -> None:
    """Print both scores of every seed, and their means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the three Parquet files")
    parser.add_argument("--out", type=Path, default=Path("out/bench_multi30k"), help="where the runs go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--predictions", type=Path, help="score these, train nothing")
    arguments, others = parser.parse_known_args()
    if arguments.predictions:
        runs = {"given": arguments.predictions}
    else:
        runs = {
            f"seed {seed}": train_and_predict(arguments.data, arguments.out / f"seed-{seed}", seed, others)
            for seed in arguments.seeds
        }
    found = {name: scores(*read_texts(folder)) for name, folder in runs.items()}
    for name, (multi_bleu, cased) in found.items():
        print(f"{name:<8} multi-bleu, lower-cased, Moses tokens {multi_bleu:.2f}   sacreBLEU cased {cased:.2f}")
    means = [statistics.mean(column) for column in zip(*found.values(), strict=True)]
    print(f"mean     multi-bleu {means[0]:.2f} ({means[0] - PUBLISHED:+.2f} to {PUBLISHED})   sacreBLEU {means[1]:.2f}")


if __name__ == "__main__":
    main()
