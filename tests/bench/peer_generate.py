"""A plain Ray Data job that maps Hugging Face's generate over rows: what `prediction.py speed` compares with.

Prints the seconds from the first batch to the last.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


class Generate:
    """One model a core, fp32, as `generate` is called by its documentation."""

    def __init__(self, model: str, size: str, beam: int, target: int, times: str) -> None:
        import tokenizers

        from tests.bench.twins import make_marian

        self.tokenizer = tokenizers.Tokenizer.from_file(f"{model}/tokenizer.json")
        self.tokenizer.enable_padding(pad_id=0)
        self.marian = make_marian(size, self.tokenizer.get_vocab_size())
        self.beam, self.target, self.times = beam, target, Path(times)

    def __call__(self, batch: dict) -> dict:
        import torch

        began = time.time()
        encoded = self.tokenizer.encode_batch([text + "</s>" for text in batch["source"]])
        ids = torch.tensor([row.ids for row in encoded])
        mask = torch.tensor([row.attention_mask for row in encoded])
        with torch.inference_mode():
            found = self.marian.generate(
                input_ids=ids, attention_mask=mask, num_beams=self.beam, min_new_tokens=self.target,
                max_new_tokens=self.target,
            )  # fmt: skip
        batch["prediction"] = self.tokenizer.decode_batch(found.tolist())
        with (self.times / str(os.getpid())).open("a") as file:
            file.write(json.dumps([began, time.time()]) + "\n")
        return batch


def main(model: str, source: str, out: str, size: str, beam: str, target: str) -> None:
    import ray

    cores = os.cpu_count() or 1
    # Twice as many logical cores: with one for each, reading and writing would wait for the models for ever.
    ray.init(address="local", num_cpus=2 * cores, log_to_driver=False, include_dashboard=False)
    times = Path(f"{out}-times-{time.time():.0f}")
    times.mkdir()
    ray.data.read_parquet(source, override_num_blocks=4 * cores).map_batches(
        Generate,  # type: ignore[arg-type]
        fn_constructor_args=(model, size, int(beam), int(target), str(times)),
        batch_size=64,
        concurrency=cores,
        num_cpus=1,
    ).write_parquet(out)
    spans = [json.loads(line) for path in times.iterdir() for line in path.read_text().splitlines()]
    print(max(stop for _, stop in spans) - min(start for start, _ in spans))


if __name__ == "__main__":
    main(*sys.argv[1:])
