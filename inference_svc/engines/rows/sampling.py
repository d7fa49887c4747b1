"""Choosing the next token of many rows at once, each by its own settings.

A row's token depends on its logits, its settings, its seed and how many tokens it has, and on nothing beside it: the
one random number of a token is a hash of (seed, token count), and whichever way a row is sampled is decided by the
row alone.

This module knows no model and no text.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from inference_svc.engines.rows import native
from inference_svc.generation import Sampling

log = logging.getLogger(__name__)

TOP = 256
"""Rows that cut the distribution look at so many of the most likely tokens first; nearly always that is enough."""

_MASK = (1 << 64) - 1


def uniform(seed: int, count: int) -> float:
    """The number in [0, 1) for token `count` of a request with this seed (SplitMix64, Steele et al. 2014)."""
    z = (seed * 0x9E3779B97F4A7C15 + (count + 1) * 0xD1B54A32D192ED03) & _MASK
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = ((z ^ (z >> shift)) * factor) & _MASK
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53


@dataclass(slots=True)
class RowSampling:
    """How one row is sampled, and what it has generated.

    Attributes:
        sampling: the request's settings.
        seed: in use.
        end_ids: tokens held back before `min_output_tokens`.
        prompt: prompt ids, for the repetition penalty.
        output: ids so far; the caller appends.
        allowed: [vocabulary] bool of what a constraint allows next, or None.
    """

    sampling: Sampling
    seed: int
    end_ids: tuple[int, ...]
    prompt: Sequence[int]
    output: list[int] = field(default_factory=list)
    allowed: Tensor | None = None

    @property
    def greedy(self) -> bool:
        """Takes the most likely token."""
        return self.sampling.temperature <= 0

    @property
    def plain(self) -> bool:
        """Greedy with nothing else, as long as no constraint and no minimum applies."""
        s = self.sampling
        return (
            self.greedy
            and self.allowed is None
            and s.logprobs is None
            and s.repetition_penalty == 1.0
            and not s.presence_penalty
            and not s.frequency_penalty
            and len(self.output) >= s.min_output_tokens
        )

    @property
    def cuts(self) -> bool:
        """Truncates the distribution."""
        s = self.sampling
        return s.top_p < 1.0 or s.top_k > 0 or s.min_p > 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """The next token of a row.

    Attributes:
        token: id, or -1 if the logits were not numbers or nothing was allowed.
        logprob: of the token before any processing; 0 if not asked for.
        top: (id, log probability) of the most likely ones, as many as asked for.
    """

    token: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


def choose(logits: Tensor, rows: Sequence[RowSampling | None]) -> list[Choice]:
    """The next token of every row.

    Args:
        logits: [n, vocabulary]; changed in place.
        rows: n rows; None marks a slot that nobody reads.
    """
    greedy, fine = _most_likely(logits)
    choices: list[Choice] = []
    for index, row in enumerate(rows):
        if row is None or not fine[index]:
            choices.append(Choice(-1))
        elif row.plain:
            choices.append(Choice(greedy[index]))
        else:
            choices.append(Choice(-2))
    others = [index for index, choice in enumerate(choices) if choice.token == -2]
    if others:
        picked = logits[others].float()
        for index, choice in zip(others, _choose_with_care(picked, [rows[i] for i in others]), strict=True):  # type: ignore[misc]
            choices[index] = choice
    return choices


def prepare(dtype: torch.dtype) -> None:
    """Compile what `choose` uses for logits of this precision on a CPU, so that no request waits for it."""
    _compiled_best(dtype)


def _most_likely(logits: Tensor) -> tuple[list[int], list[bool]]:
    """Per row the best token, and whether it is one: not if any logit is no number or the best is infinite."""
    if logits.device.type == "cpu":
        if (best := _compiled_best(logits.dtype)) is not None:
            logits = logits.contiguous()
            tokens = torch.empty(len(logits), dtype=torch.long)
            fine = torch.empty(len(logits), dtype=torch.bool)
            best(logits.data_ptr(), *logits.shape, tokens.data_ptr(), fine.data_ptr())
            return tokens.tolist(), fine.tolist()
        # NumPy's argmax is five times as fast as torch's on a CPU, conversion included.
        scores = logits.float().numpy()
        at = scores.argmax(-1)
        return at.tolist(), np.isfinite(scores[np.arange(len(at)), at]).tolist()
    highest, where = logits.max(-1)
    return where.tolist(), torch.isfinite(highest).tolist()


@functools.cache
def _compiled_best(dtype: torch.dtype) -> Callable[..., None] | None:
    """`best` of `best.c` for logits of this precision; None where it can't be had."""
    if dtype not in (torch.float32, torch.bfloat16):
        return None
    try:
        library = native.load("best", "-march=native", f"-DHALF={int(dtype == torch.bfloat16)}")
    except OSError as error:
        log.warning("%s: choosing tokens takes longer than it could", error)
        return None
    best: Callable[..., None] = library.best
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    best.argtypes, best.restype = [pointer, size, size, pointer, pointer], None  # type: ignore[attr-defined]
    return best


def _choose_with_care(logits: Tensor, rows: list[RowSampling]) -> list[Choice]:
    """Rows with settings; `logits` is a float copy of theirs."""
    device = logits.device
    logprobs = _logprobs(logits, rows)
    for index, row in enumerate(rows):
        _penalise(logits[index], row)
    forbidden = [i for i, row in enumerate(rows) if row.allowed is not None]
    for index in forbidden:
        allowed = rows[index].allowed
        assert allowed is not None
        logits[index].masked_fill_(~allowed.to(device), float("-inf"))
    tokens = logits.argmax(-1)
    drawn = [i for i, row in enumerate(rows) if not row.greedy]
    whole = [i for i in drawn if not rows[i].cuts]
    cut = [i for i in drawn if rows[i].cuts]
    if drawn:
        heat = torch.tensor([rows[i].sampling.temperature for i in drawn], device=device)
        logits[drawn] = logits[drawn] / heat[:, None]
    if whole:
        tokens[whole] = _draw(torch.softmax(logits[whole], -1), [rows[i] for i in whole])
    if cut:
        tokens[cut] = _draw_cut(logits[cut], [rows[i] for i in cut])
    possible = torch.isfinite(logits.gather(1, tokens[:, None])[:, 0]).tolist()
    out = []
    for index, token in enumerate(tokens.tolist()):
        if not possible[index]:
            out.append(Choice(-1))
        elif index in logprobs:
            scores, count = logprobs[index]
            values, ids = scores.topk(count) if count else (scores[:0], tokens[:0])
            out.append(Choice(token, float(scores[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True))))
        else:
            out.append(Choice(token))
    return out


def _logprobs(logits: Tensor, rows: list[RowSampling]) -> dict[int, tuple[Tensor, int]]:
    """Per row that wants them: log probabilities [vocabulary] and how many alternatives."""
    wanted = [(i, row.sampling.logprobs) for i, row in enumerate(rows) if row.sampling.logprobs is not None]
    if not wanted:
        return {}
    scores = torch.log_softmax(logits[[i for i, _ in wanted]], -1)
    return {i: (scores[place], min(count, scores.shape[1])) for place, (i, count) in enumerate(wanted)}


def _penalise(logits: Tensor, row: RowSampling) -> None:
    """Apply penalties and the minimum length to one row's logits [vocabulary], in place."""
    s = row.sampling
    if s.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*row.prompt, *row.output}), dtype=torch.long, device=logits.device)
        scores = logits[seen]
        logits[seen] = torch.where(scores < 0, scores * s.repetition_penalty, scores / s.repetition_penalty)
    if (s.presence_penalty or s.frequency_penalty) and row.output:
        ids, counts = torch.unique(torch.tensor(row.output, device=logits.device), return_counts=True)
        logits[ids] -= s.presence_penalty + s.frequency_penalty * counts
    if len(row.output) < s.min_output_tokens and row.end_ids and row.allowed is None:
        logits[list(row.end_ids)] = float("-inf")


def _draw(probabilities: Tensor, rows: list[RowSampling]) -> Tensor:
    """Token per row by inverse distribution; double precision, since float sums of a large vocabulary drift."""
    sums = probabilities.double().cumsum(-1)
    at = torch.tensor([uniform(row.seed, len(row.output)) for row in rows], dtype=torch.float64, device=sums.device)
    found = torch.searchsorted(sums, (at * sums[:, -1])[:, None], right=True)[:, 0]
    last = (probabilities > 0).to(torch.uint8).flip(-1).argmax(-1)
    return torch.minimum(found, probabilities.shape[-1] - 1 - last)


def _draw_cut(logits: Tensor, rows: list[RowSampling]) -> Tensor:
    """Rows that truncate: look at the most likely `TOP`, and at all where a row's cut lies beyond."""
    count = min(TOP, logits.shape[-1])
    values, ids = logits.topk(count)
    total = torch.logsumexp(logits, -1)
    inside, found = _kept(values, total, rows)
    tokens = ids.gather(1, _draw(inside, rows)[:, None])[:, 0]
    if count < logits.shape[-1]:
        for index, row in enumerate(rows):
            if not found[index]:
                values, ids = logits[index : index + 1].sort(descending=True)
                inside, _ = _kept(values, total[index : index + 1], [row])
                tokens[index] = ids[0, _draw(inside, [row])[0]]
    return tokens


def _kept(values: Tensor, total: Tensor, rows: list[RowSampling]) -> tuple[Tensor, list[bool]]:
    """Probabilities [n, k] of sorted logits with what is cut set to 0, and whether the cut lies inside the k.

    Temperature, top-k, top-p, min-p, each on what the one before left, as Transformers' warpers do.
    """
    device = values.device
    size = values.shape[-1]
    top_k = torch.tensor([row.sampling.top_k or size for row in rows], device=device)
    top_p = torch.tensor([row.sampling.top_p for row in rows], device=device)
    min_p = torch.tensor([row.sampling.min_p for row in rows], device=device)
    place = torch.arange(size, device=device)
    by_count = place < top_k[:, None]
    limited = torch.tensor([0 < row.sampling.top_k <= size for row in rows], device=device)
    # Below the k most likely, the rest of the vocabulary belongs to the sum that top-p is a share of.
    mass = torch.where(limited, torch.logsumexp(values.masked_fill(~by_count, float("-inf")), -1), total)
    shares = torch.exp(values - mass[:, None]) * by_count
    before = shares.cumsum(-1) - shares
    keep = by_count & ((before < top_p[:, None]) | (top_p[:, None] >= 1.0)) & (shares >= min_p[:, None] * shares[:, :1])
    # A row that keeps more tokens than are here has a sum that is not known yet.
    beyond = (top_k > size) | (~limited & keep[:, -1])
    return shares * keep, (~beyond).tolist()
