"""Checks by likeness of wording: fuzzy, and replay against the reply that was really given.

"can refund" and "cannot refund" are 96% alike, so likeness is a hint: these checks are soft unless a scenario says
otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rapidfuzz import fuzz

from eval_svc.scorers.base import SCORERS, Check, Finding, View, verdict
from eval_svc.scorers.words import Texts, listed
from eval_svc.text import plain

_METHODS = {"ratio": fuzz.ratio, "partial": fuzz.partial_ratio, "token_set": fuzz.token_set_ratio}


def _percentage(threshold: float) -> None:
    if not 0 <= threshold <= 100:
        raise ValueError(f"threshold must be from 0 to 100, not {threshold}")


@SCORERS.register("fuzzy")
@dataclass(frozen=True)
class Fuzzy(Check):
    """Passes if the text is like one of the values.

    Attributes:
        value: the texts to compare with.
        threshold: least likeness, 0 to 100.
        method: `ratio` compares whole texts, `partial` the best fitting part, `token_set` words in any order.
    """

    value: Texts
    threshold: float = 80.0
    method: Literal["ratio", "partial", "token_set"] = "ratio"

    def __post_init__(self) -> None:
        listed(self.value)
        _percentage(self.threshold)

    def score(self, view: View) -> Finding:
        """The score is the likeness to the nearest value."""
        said = plain(view.text)
        best, nearest = max((_METHODS[self.method](said, plain(v)), v) for v in listed(self.value))
        return Finding(verdict(best >= self.threshold), best / 100, note=f"{best:.0f}% like {nearest[:80]!r}")


@SCORERS.register("replay")
@dataclass(frozen=True)
class Replay(Check):
    """Passes if the reply is as like the real one as the threshold asks (rapidfuzz ratio after normalisation).

    Attributes:
        value: what the agent really said; empty if it only handed over.
        threshold: least likeness, 0 to 100.
        handoff: the agent really passed the customer to a person here; then only a handover passes.
    """

    value: str = ""
    threshold: float = 60.0
    handoff: bool = False

    def __post_init__(self) -> None:
        _percentage(self.threshold)
        if not self.value.strip() and not self.handoff:
            raise ValueError("value must hold the real reply unless handoff is true")

    def score(self, view: View) -> Finding:
        """The score is the likeness; the note says `exact` where nothing differs after normalisation."""
        if self.handoff:
            done = view.reply.handed_over
            return Finding(verdict(done), float(done), note="a person really took over here")
        said, real = plain(view.text), plain(self.value)
        likeness = fuzz.ratio(said, real)
        note = "exact" if said == real else f"{likeness:.0f}% like {self.value[:200]!r}"
        if view.reply.handed_over:
            return Finding("fail", likeness / 100, note=f"handed over where the agent went on; {note}")
        return Finding(verdict(likeness >= self.threshold), likeness / 100, note=note)
