"""Why a row cannot be used, or what is asked of it cannot be had: said before the search begins."""

from __future__ import annotations

from collections.abc import Sequence

from tfray.config import GenerationConfig
from tfray.generation.constraints import unmet
from tfray.generation.pieces import as_seen
from tfray.generation.rows import Request, longest_target, shortest_target
from tfray.model.architecture import Architecture
from tfray.tokens.special import BOS_ID, EOS_ID, PAD_ID


def find_error(request: Request, architecture: Architecture, config: GenerationConfig) -> str | None:
    """Return what makes a row unusable, `kind: message`, or None."""
    source, vocab = request.source, architecture.vocab_size
    if not len(source):
        return "empty: the source has no tokens, not even an end"
    for name, ids in [
        ("source", source),
        ("prefix", request.prefix),
        *(("must", phrase) for phrase in request.must),
        *(("must_not", phrase) for phrase in request.must_not),
    ]:
        wrong = next((token for token in ids if not 0 <= token < vocab), None)
        if wrong is not None:
            return f"bad_id: {name} has the id {wrong}, the vocabulary ends at {vocab - 1}"
    if all(token == PAD_ID for token in source):
        return "empty: the source is padding alone"
    if PAD_ID in source:
        return "bad_id: the source has padding (id 0) among its tokens"
    if len(source) > architecture.max_length and config.long_sources == "refuse":
        return f"too_long: the source has {len(source)} tokens, the model takes {architecture.max_length}"
    return find_contradiction(request, architecture, config)


def find_contradiction(request: Request, architecture: Architecture, config: GenerationConfig) -> str | None:
    """Return why what is asked of a row cannot be had together, or None."""
    longest = architecture.max_length
    pieces = as_seen(request.source, longest, config)
    for piece in pieces:  # each has a target of its own
        limit, least = longest_target(len(piece), longest, config), shortest_target(len(piece), config)
        if least + 1 > limit:
            return f"length: the target must have {least} tokens at least, and {limit - 1} and an end at most"
    limit = longest_target(len(pieces[0]), longest, config)
    if len(request.prefix) + 1 > limit:
        return f"prefix: its {len(request.prefix)} tokens leave no room in a target of {limit}"
    if request.must and len(pieces) > 1:
        return "constraint: must-phrases have no place in a source that is split"
    return find_impossible(request, limit, config)


def find_impossible(request: Request, limit: int, config: GenerationConfig) -> str | None:
    """Return why a row's prefix and phrases cannot be had together in a target of so many tokens, or None."""
    if any(not phrase for phrase in [*request.must, *request.must_not]):
        return "constraint: a phrase is empty"
    ending = next((list(phrase) for phrase in request.must_not if EOS_ID in phrase), None)
    if ending is not None:
        return f"constraint: must_not forbids {ending}, and id {EOS_ID} ends every target"
    banned = {PAD_ID, BOS_ID, EOS_ID, *config.suppress_tokens}
    for name, phrases in (("prefix", [request.prefix]), ("must", request.must)):
        for phrase in phrases:
            if banned & set(phrase):
                return f"constraint: {name} asks for the id {min(banned & set(phrase))}, which never occurs in a target"
            hit = next((list(other) for other in request.must_not if contains(phrase, other)), None)
            if hit is not None:
                return f"constraint: {name} asks for {list(phrase)}, must_not forbids {hit} in it"
        twice = repeated(phrases, config.no_repeat_ngram)
        if twice is not None:
            return f"constraint: {name} repeats {twice}, which no_repeat_ngram={config.no_repeat_ngram} forbids"
    if request.must and not config.is_beam_search:
        return "constraint: must-phrases need beam search with a beam of 2 at least"
    missing, room = unmet(request.must, request.prefix), limit - len(request.prefix)
    if missing + 1 > room:
        return f"constraint: must needs {missing} tokens and an end, and the target has room for {room}"
    return None


def repeated(phrases: Sequence[Sequence[int]], size: int) -> list[int] | None:
    """Return an n-gram that stands twice in phrases, which do not overlap in a target; None for a size of 0."""
    seen: set[tuple[int, ...]] = set()
    for phrase in phrases:
        for start in range(len(phrase) - size + 1 if size else 0):
            ngram = tuple(phrase[start : start + size])
            if ngram in seen:
                return list(ngram)
            seen.add(ngram)
    return None


def contains(ids: Sequence[int], phrase: Sequence[int]) -> bool:
    """Say whether a phrase occurs in ids."""
    width = len(phrase)
    return width > 0 and any(list(ids[start : start + width]) == list(phrase) for start in range(len(ids) - width + 1))
