"""The regex check. Every search is limited in time, because a suite may come from anyone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import regex

from eval_svc.scorers.base import SCORERS, Check, Finding, View
from eval_svc.text import normalise

TIMEOUT = 0.25
"""Seconds that one search may take; a pattern that needs more backtracks without end."""

MAX_PATTERN = 2000


@lru_cache(maxsize=1024)
def compiled(pattern: str, *, ignore_case: bool = True) -> regex.Pattern[str]:
    """The compiled pattern. Raises ValueError with the place if it can't be compiled."""
    if not pattern or len(pattern) > MAX_PATTERN:
        raise ValueError(f"value must be a pattern of 1 to {MAX_PATTERN} characters, not {len(pattern)}")
    try:
        return regex.compile(pattern, regex.IGNORECASE if ignore_case else 0)
    except (regex.error, OverflowError, RecursionError) as error:
        raise ValueError(f"is not a regular expression: {error}") from None


def search(pattern: str, text: str, *, ignore_case: bool = True) -> tuple[int, int] | None:
    """Where the pattern first matches. Raises TimeoutError after `TIMEOUT` seconds."""
    found = compiled(pattern, ignore_case=ignore_case).search(text, timeout=TIMEOUT)
    return found.span() if found else None


@SCORERS.register("regex")
@dataclass(frozen=True)
class Regex(Check):
    """Passes if the pattern matches somewhere in the text, as it came or normalised (all but case folded).

    Attributes:
        value: the pattern, in the syntax of the `regex` package (a superset of `re`).
        ignore_case: whether case counts for nothing.
    """

    value: str
    ignore_case: bool = True

    def __post_init__(self) -> None:
        compiled(self.value, ignore_case=self.ignore_case)

    def score(self, view: View) -> Finding:
        """Evidence is the match; unscored if the pattern ran out of time."""
        text = normalise(view.text, fold=False)
        try:
            span = search(self.value, text.text, ignore_case=self.ignore_case)
            # a pattern may be written with the very characters that normalisation takes away, such as the Chinese comma
            raw = None if span else search(self.value, view.text, ignore_case=self.ignore_case)
        except TimeoutError:
            return Finding(
                "unscored", note=f"the pattern took longer than {TIMEOUT} s; rewrite it without nested repetition"
            )
        if raw is not None:
            return Finding("pass", 1.0, view.text[slice(*raw)])
        if span is None:
            return Finding("fail", 0.0)
        return Finding("pass", 1.0, text.quote(*span))
