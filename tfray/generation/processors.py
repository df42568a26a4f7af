"""Rules that change the scores of the next token, each a small function of (rows x width, vocab) and the board.

They forbid by -inf and do not normalize again: a target's score stays the model's probability of it. Only
the repetition penalty changes probabilities, so it comes before the sums of the softmax.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tfray.config import GenerationConfig
from tfray.generation import native
from tfray.generation.board import Board
from tfray.generation.ranking import NEVER
from tfray.generation.select import BLOCK, best_token, best_tokens
from tfray.tokens.special import BOS_ID, EOS_ID, PAD_ID


class NextTokens(NamedTuple):
    """What may come next, and how probable it is.

    Log-probabilities are scores less log sums. A search wants few of them, so that most are never worked out.
    """

    scores: Tensor
    """(rows x width, vocab), fp32: logits, or log-probabilities whose log sums are 0; -inf where a rule forbids."""
    log_sums: Tensor
    """(rows x width, 1)."""
    bounds: Tensor | None = None
    """What no score of a block of tokens is above, (rows x width, blocks); rules only lower scores."""

    def best(self) -> tuple[Tensor, Tensor]:
        """Return the most probable token's log-probability, and its id, (rows x width) each."""
        values, ids = best_token(self.scores, self.bounds)
        return values - self.log_sums[:, 0], ids

    def best_few(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the most probable tokens' log-probabilities, and their ids, (rows x width, count) each."""
        values, ids = best_tokens(self.scores, count, self.bounds)
        return values - self.log_sums, ids

    def log_probs(self, rows: slice = slice(None)) -> Tensor:
        """Return the log-probabilities of all tokens in some rows."""
        return self.scores[rows] - self.log_sums[rows]


def next_tokens(logits: Tensor, board: Board, config: GenerationConfig) -> NextTokens:
    """Return what may come next by the network and the rules."""
    logits = logits.float()
    if config.repetition_penalty != 1.0:
        penalize_repetitions(logits, board, config.repetition_penalty)
    found = normalize(logits)
    forbid(found.scores, board, config)
    return found


def normalize(logits: Tensor) -> NextTokens:
    """Return logits as probabilities of all tokens."""
    kernels = native.kernels(logits.device)
    log_sums = logits.new_zeros(len(logits), 1)
    if kernels is None:
        return NextTokens(logits.log_softmax(-1), log_sums)
    logits, (rows, vocab) = logits.contiguous(), logits.shape
    bounds = logits.new_empty(rows, -(-vocab // BLOCK))
    native.call(kernels.log_sums, logits, log_sums, bounds, rows, vocab)
    return NextTokens(logits, log_sums, bounds)


def forbid(scores: Tensor, board: Board, config: GenerationConfig) -> None:
    """Write -inf where a rule forbids a token."""
    scores[:, PAD_ID] = NEVER
    scores[:, BOS_ID] = NEVER
    if config.suppress_tokens:
        scores[:, list(config.suppress_tokens)] = NEVER
    if config.min_length or config.min_length_ratio:
        forbid_early_end(scores, board)
    if config.no_repeat_ngram:
        forbid_repeated_ngrams(scores, board, config.no_repeat_ngram)
    if any(request.must_not for request in board.requests[: board.rows]):
        forbid_phrases(scores, board)
    if board.prefixes.shape[1] > 1 or any(request.prefix for request in board.requests[: board.rows]):
        force_prefix(scores, board)


def past_tokens(board: Board) -> Tensor:
    """Return the tokens so far, pad beyond, (rows x width, positions)."""
    longest = max(1, board.reached)
    place = torch.arange(longest, device=board.device)
    past = board.history[: board.rows, :, :longest]
    return past.masked_fill(place >= board.positions[: board.rows, None, None], PAD_ID).flatten(0, 1)


def penalize_repetitions(logits: Tensor, board: Board, penalty: float) -> None:
    """Make tokens that have occurred less probable: positive logits are divided by the penalty, negative
    ones multiplied (Keskar et al. 2019, section 4.1)."""
    if not board.reached:
        return
    past = past_tokens(board)
    # A row that has just begun has nothing to penalize: the write below gives back what was there.
    past = torch.where(past == PAD_ID, past[:, :1], past)
    penalties = torch.where(past == PAD_ID, 1.0, penalty)
    found = logits.gather(1, past)
    logits.scatter_(1, past, torch.where(found > 0, found / penalties, found * penalties))


def forbid_early_end(scores: Tensor, board: Board) -> None:
    """Forbid eos before a row's shortest length."""
    early = board.positions[: board.rows] < board.least[: board.rows]
    scores[early.repeat_interleave(board.width), EOS_ID] = NEVER


def forbid_repeated_ngrams(scores: Tensor, board: Board, size: int) -> None:
    """Forbid each token that would repeat an n-gram of the hypothesis."""
    past = past_tokens(board)
    if past.shape[1] < size:
        return
    positions = board.positions[: board.rows].repeat_interleave(board.width)[:, None]
    tail_places = (positions - (size - 1) + torch.arange(size - 1, device=board.device)).clamp_min(0)
    tail = past.gather(1, tail_places)  # (hypotheses, size - 1)
    windows = past.unfold(1, size, 1)  # (hypotheses, starts, size)
    is_same = (windows[..., :-1] == tail[:, None]).all(-1)
    ends = torch.arange(windows.shape[1], device=board.device) + size
    is_same &= ends <= positions
    scores.scatter_(1, windows[..., -1].masked_fill(~is_same, PAD_ID), NEVER)


def forbid_phrases(scores: Tensor, board: Board) -> None:
    """Forbid the last token of each forbidden phrase whose other tokens stand there."""
    for slot, request in enumerate(board.requests[: board.rows]):
        if not request.must_not:
            continue
        position = board.taken[slot]
        for place, ids in enumerate(board.history[slot, :, :position].tolist()):
            for phrase in request.must_not:
                rest = list(phrase[:-1])
                if not rest or ids[-len(rest) :] == rest:
                    scores[slot * board.width + place, phrase[-1]] = NEVER


def force_prefix(scores: Tensor, board: Board) -> None:
    """Forbid everything but the row's prefix where it has not been written yet."""
    rows = board.rows
    place = board.positions[:rows, None].clamp_max(board.prefixes.shape[1] - 1)
    wanted = board.prefixes[:rows].gather(1, place).squeeze(1)
    wanted = torch.where(board.positions[:rows] < board.prefixes.shape[1], wanted, -1)
    forced = (wanted >= 0).repeat_interleave(board.width)
    tokens = wanted.repeat_interleave(board.width)[forced, None]
    kept = scores[forced].gather(1, tokens)
    scores[forced] = torch.full_like(scores[forced], NEVER).scatter_(1, tokens, kept)
