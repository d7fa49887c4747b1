"""Chooses few-shot examples that differ from one another and fit the room there is.

Greedy k-centre (Gonzalez, 1985) over character trigrams of what the customer says: each next example is the one least
like those already chosen. Trigrams work for English and for unsegmented Chinese alike.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from factory_svc.methods.prompt.config import PromptParameters
from factory_svc.task import Messages

HANDOVER_MARK = "transfer_to_human"


def select_examples(conversations: Sequence[Messages], parameters: PromptParameters, seed: int) -> list[Messages]:
    """At most `parameters.examples` conversations, without system turns, in the order of their choice."""
    pool = list(conversations)
    if len(pool) > parameters.candidates:
        pool = random.Random(seed).sample(pool, parameters.candidates)
    candidates = [c for c in (_shortened(m, parameters.turns_per_example) for m in pool) if c]
    # Short first: of two examples that are equally far away, the cheaper one teaches as much.
    candidates.sort(key=lambda c: (_size(c), c[0]["content"]))
    grams = [_trigrams(c) for c in candidates]
    chosen: list[int] = []
    room = parameters.example_characters
    if parameters.include_handover and parameters.examples:
        first = next((i for i, c in enumerate(candidates) if _hands_over(c) and _size(c) <= room), None)
        if first is not None:
            chosen.append(first)
            room -= _size(candidates[first])
    nearness = [max((_jaccard(g, grams[i]) for i in chosen), default=0.0) for g in grams]
    while len(chosen) < parameters.examples:
        fitting = [i for i, c in enumerate(candidates) if i not in chosen and _size(c) <= room]
        if not fitting:
            break
        best = min(fitting, key=lambda i: (nearness[i], i))
        chosen.append(best)
        room -= _size(candidates[best])
        nearness = [max(n, _jaccard(g, grams[best])) for n, g in zip(nearness, grams, strict=True)]
    return [candidates[i] for i in chosen]


def _shortened(messages: Messages, turns: int) -> Messages:
    """The first turns without the system turn, ending on an assistant turn; empty if there is none."""
    kept = [m for m in messages if m["role"] != "system"][:turns]
    while kept and kept[-1]["role"] != "assistant":
        kept.pop()
    return kept if any(m["role"] == "user" for m in kept) else []


def _size(messages: Messages) -> int:
    return sum(len(m["content"]) for m in messages)


def _hands_over(messages: Messages) -> bool:
    return any(m["role"] == "assistant" and HANDOVER_MARK in m["content"] for m in messages)


def _trigrams(messages: Messages) -> frozenset[str]:
    text = " ".join(m["content"].lower() for m in messages if m["role"] == "user")
    return frozenset(text[i : i + 3] for i in range(max(1, len(text) - 2)))


def _jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    return len(left & right) / len(left | right) if left or right else 0.0
