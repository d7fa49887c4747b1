"""Chooses few-shot examples that differ from one another and fit the room there is.

Greedy k-centre (Gonzalez, 1985) over character trigrams of what the customer says: each next example is the one least
like those already chosen. Trigrams work for English and for unsegmented Chinese alike.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from factory_svc.methods.prompt.config import PromptParameters
from factory_svc.task import Messages

HANDOVER_MARK = "transfer_to_human"


@dataclass(frozen=True, slots=True)
class Exchange:
    """One thing the customer says and the agent's answer to it."""

    user: str
    assistant: str

    @property
    def size(self) -> int:
        """Characters."""
        return len(self.user) + len(self.assistant)

    @property
    def hands_over(self) -> bool:
        """Whether the agent hands over to a person."""
        return HANDOVER_MARK in self.assistant


def select_examples(conversations: Sequence[Messages], parameters: PromptParameters, seed: int) -> list[Exchange]:
    """At most `parameters.examples` exchanges, in the order of their choice."""
    pool = list(conversations)
    if len(pool) > parameters.candidates:
        pool = random.Random(seed).sample(pool, parameters.candidates)
    # Short first: of two examples that are equally far away, the cheaper one teaches as much.
    candidates = sorted({e for m in pool for e in _exchanges(m)}, key=lambda e: (e.size, e.user, e.assistant))
    grams = [_trigrams(e.user) for e in candidates]
    chosen: list[int] = []
    room = parameters.example_characters
    if parameters.include_handover and parameters.examples:
        first = next((i for i, e in enumerate(candidates) if e.hands_over and e.size <= room), None)
        if first is not None:
            chosen.append(first)
            room -= candidates[first].size
    nearness = [max((_jaccard(g, grams[i]) for i in chosen), default=0.0) for g in grams]
    while len(chosen) < parameters.examples:
        fitting = [i for i, e in enumerate(candidates) if i not in chosen and e.size <= room]
        if not fitting:
            break
        best = min(fitting, key=lambda i: (nearness[i], i))
        chosen.append(best)
        room -= candidates[best].size
        nearness = [max(n, _jaccard(g, grams[best])) for n, g in zip(nearness, grams, strict=True)]
    return [candidates[i] for i in chosen]


def _exchanges(messages: Messages) -> Iterator[Exchange]:
    """What opens the conversation, and the handover: both make sense without the turns before them."""
    turns = [m for m in messages if m["role"] != "system"]
    for position, (asked, answered) in enumerate(itertools.pairwise(turns)):
        if asked["role"] == "user" and answered["role"] == "assistant":
            exchange = Exchange(asked["content"], answered["content"])
            if position == 0 or exchange.hands_over:
                yield exchange


def _trigrams(text: str) -> frozenset[str]:
    lowered = text.lower()
    return frozenset(lowered[i : i + 3] for i in range(max(1, len(lowered) - 2)))


def _jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    return len(left & right) / len(left | right) if left or right else 0.0
