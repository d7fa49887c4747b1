"""Prompt leak: a reply that repeats the operator's instructions word for word.

The measure is the longest run of words that the reply has in common with the system prompt (the n-gram overlap of
Carlini et al. 2021 and of the usual contamination checks, here with the runs joined). Chinese counts by character.
Paraphrases are not found; a judge is for those.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from inference_svc.moderation.base import (
    MODERATORS,
    Finding,
    ModerationContext,
    Moderator,
    ModeratorEnvironment,
    Scanner,
    Stage,
)

_WORD = re.compile(r"[\u3400-\u9fff\u3040-\u30ff]|[^\W\u3400-\u9fff\u3040-\u30ff]+")


@dataclass(frozen=True)
class LeakParameters:
    """Settings of `leak`.

    Attributes:
        words: shortest run of common words (of Chinese characters) that is a leak. A shop's policies stand in its
            prompt and are meant to be told, so this is long.
    """

    words: int = 24

    def __post_init__(self) -> None:
        if self.words < 2:
            raise ValueError("words must be at least 2")


@lru_cache(maxsize=64)
def _positions(prompt: str) -> dict[str, tuple[int, ...]]:
    places: dict[str, list[int]] = defaultdict(list)
    for index, match in enumerate(_WORD.finditer(prompt)):
        places[match.group().casefold()].append(index)
    return {word: tuple(at) for word, at in places.items()}


class LeakScanner:
    """Reads a reply beside one system prompt."""

    def __init__(self, prompt: str, words: int) -> None:
        self.safe = 0
        self._places = _positions(prompt)
        self._least = words
        self._window = ""
        self._offset = 0
        # Position in the prompt of the last common word -> how many words the run has.
        self._runs: dict[int, int] = {}
        self._starts: list[int] = []
        self._best: tuple[int, int] | None = None

    def feed(self, text: str, *, final: bool) -> list[Finding]:
        """See `Scanner`."""
        self._window += text
        found: list[Finding] = []
        consumed = 0
        for match in _WORD.finditer(self._window):
            if match.end() == len(self._window) and not final and not _is_complete(match.group()):
                break
            consumed = match.end()
            self._word(match.group().casefold(), self._offset + match.start(), self._offset + match.end(), found)
        if final:
            self._end_run(found)
            self._runs, consumed = {}, len(self._window)
        self._window, self._offset = self._window[consumed:], self._offset + consumed
        self.safe = max(self.safe, self._undecided())
        return found

    def _undecided(self) -> int:
        if self._best is not None:
            return self._best[0]
        if self._runs:
            return self._starts[-max(self._runs.values())]
        begun = _WORD.search(self._window)
        return self._offset + (begun.start() if begun else len(self._window))

    def _word(self, word: str, start: int, end: int, found: list[Finding]) -> None:
        runs = {at: self._runs.get(at - 1, 0) + 1 for at in self._places.get(word, ())}
        longest = max(runs.values(), default=0)
        if self._best is not None and longest < self._least:
            self._end_run(found)
        self._runs = runs
        self._starts.append(start)
        del self._starts[: len(self._starts) - max(longest, 1)]
        if longest >= self._least:
            first = self._starts[-longest] if self._best is None else min(self._best[0], self._starts[-longest])
            self._best = (first, end)

    def _end_run(self, found: list[Finding]) -> None:
        if self._best is not None:
            found.append(Finding(*self._best, "prompt_leak", 1.0, "[instructions]"))
            self._best = None


def _is_complete(word: str) -> bool:
    return "\u3040" <= word[-1] <= "\u9fff"


@MODERATORS.register("leak")
class LeakModerator(Moderator):
    """Looks at replies only."""

    Parameters: ClassVar[type[Any]] = LeakParameters

    def __init__(self, parameters: LeakParameters, environment: ModeratorEnvironment) -> None:
        self._words = parameters.words

    def open(self, context: ModerationContext) -> Scanner | None:
        """See `Moderator`."""
        if context.stage is Stage.OUTPUT and context.system_prompt:
            return LeakScanner(context.system_prompt, self._words)
        return None
