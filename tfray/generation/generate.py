"""Ids in, ids out: the public functions of the search. Knows torch, and nothing of text or Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from tfray.config import GenerationConfig
from tfray.errors import InputError
from tfray.generation.budget import budget_bytes, slots_for
from tfray.generation.engine import Engine
from tfray.generation.network import Network
from tfray.generation.pieces import as_seen, join, split_request
from tfray.generation.rows import Hypothesis, Output, Request
from tfray.generation.soundness import contains, find_error
from tfray.model.precision import has_fast_bf16
from tfray.model.transformer import Transformer

Models = Transformer | Network | Sequence[Transformer | Network]
WINDOW_ROWS = 16_384
NO_MEMORY = "out_of_memory: the row alone needs more memory than there is"
NOTHING_FOUND = (
    "constraint: the search found no target that meets all that is asked for; ask for less, or use a larger beam"
)


def prepare(model: Transformer | Network, config: GenerationConfig) -> Network:
    """Return a model packed for a configuration's precision; a network comes back as it is."""
    if isinstance(model, Network):
        return model
    precision, device = config.precision, model.output_weight.device
    config.check_device(is_cpu=device.type == "cpu")
    if precision == "auto":
        precision = "bf16" if has_fast_bf16(device) else "fp32"
    return Network(model, precision)


def networks_of(models: Models, config: GenerationConfig) -> list[Network]:
    """Return the networks that decide together; raises InputError where their vocabularies differ, or have not the
    ids that are to be suppressed."""
    each = [models] if isinstance(models, Transformer | Network) else list(models)
    networks = [prepare(model, config) for model in each]
    sizes = [network.architecture.vocab_size for network in networks]
    if len(set(sizes)) > 1:
        raise InputError(f"models with vocabularies of {sizes} cannot decide together; they need one tokenizer")
    config.check_vocabulary(sizes[0])
    return networks


def generate(models: Models, sources: Sequence[Sequence[int] | Request], config: GenerationConfig) -> list[Output]:
    """Return each source's output; sources end with eos. Several models decide by their mean probability.

    What is drawn (search: sample, mbr) comes back whole, in the order of drawing; `samples` chooses from it.
    """
    outputs: list[Output | None] = [None] * len(sources)
    for row, output in stream(models, sources, config):
        outputs[row] = output
    return [output for output in outputs if output is not None]


def stream(
    models: Models, sources: Sequence[Sequence[int] | Request], config: GenerationConfig
) -> Iterator[tuple[int, Output]]:
    """Yield (row, output) as rows get done."""
    networks = networks_of(models, config)
    engine = Engine(networks, config)
    for start in range(0, len(sources), WINDOW_ROWS):
        window = [
            (row, source if isinstance(source, Request) else Request(source))
            for row, source in enumerate(sources[start : start + WINDOW_ROWS], start)
        ]
        yield from run_window(engine, window)


def run_window(engine: Engine, window: list[tuple[int, Request]]) -> Iterator[tuple[int, Output]]:
    """Yield the outputs of rows that are worked on together."""
    networks, config = engine.networks, engine.config
    budget = budget_bytes(config, networks[0].device)
    sound: list[tuple[int, Request]] = []
    pieces: dict[int, list[int]] = {}
    truncated: set[int] = set()
    longest = min(network.architecture.max_length for network in networks)
    seen = replace(networks[0].architecture, max_length=longest)  # what the search sees: vocabularies are alike
    for row, request in window:
        error = find_error(request, seen, config)
        own = as_seen(request.source, longest, config) if error is None else []
        length = max(map(len, own), default=0)
        if own and slots_for(length, networks, config, config.width, budget) < 1:
            error = (
                f"too_large: a row of {length} source tokens with {config.width} hypotheses does not fit into "
                f"{budget / 2**30:.2f} GB"
            )
        if error is not None:
            yield row, Output(error=error)
        elif len(own) > 1:
            pieces[row] = [-1 - len(sound) - place for place in range(len(own))]
            sound += zip(pieces[row], split_request(request, row, own), strict=True)
        else:
            if len(request.source) > longest:
                truncated.add(row)
            sound.append((row, replace(request, source=own[0])))
    owner = {piece: row for row, own in pieces.items() for piece in own}
    asked = dict(window)
    parts: dict[int, list[Hypothesis] | None] = {}
    for row, hypotheses in engine.run(sound):
        if row >= 0:
            yield row, output_of(hypotheses, row in truncated)
            continue
        parts[row] = hypotheses
        whole = owner[row]
        if all(piece in parts for piece in pieces[whole]):
            yield whole, joined_output([parts[piece] for piece in pieces[whole]], asked[whole])


def joined_output(parts: list[list[Hypothesis] | None], request: Request) -> Output:
    """Return what the engine found for a row by its pieces; a forbidden phrase stands not even where two meet."""
    found = [hypotheses for hypotheses in parts if hypotheses is not None]
    if len(found) < len(parts):
        return output_of(None)
    return output_of([h for h in join(found) if not any(contains(h.ids, phrase) for phrase in request.must_not)])


def output_of(hypotheses: list[Hypothesis] | None, truncated: bool = False) -> Output:
    """Return what the engine found for a row, or the error that it found nothing."""
    if hypotheses is None:
        return Output(error=NO_MEMORY)
    return Output(hypotheses, None if hypotheses else NOTHING_FOUND, truncated)
