"""The semantic check: likeness of meaning by sentence embeddings, guarded where embeddings are blind.

"I will reset it" and "I will never reset it" have nearly the same embedding, and so have "3 days" and "thirty days".
The guards compare negation and numbers, in digits or words; a likeness that they contradict fails with a note. It stays
a soft check in any case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import regex

from eval_svc.numerals import numbers
from eval_svc.scorers.base import SCORERS, Finding, Stage, View, verdict
from eval_svc.scorers.words import Texts, listed
from eval_svc.text import plain, sentences

_NEGATION = regex.compile(
    r"\b(?:not|no|never|none|nothing|nobody|neither|nor|without|cannot|can't|won't|don't|doesn't|didn't|isn't|aren't|"
    r"wasn't|weren't|couldn't|shouldn't|wouldn't|unable|refuse[sd]?|decline[sd]?)\b"
    r"|不|没|无|未|别|勿|禁止|拒绝"
)


def conflict(value: str, said: str) -> str:
    """Why the two can't mean the same although they are alike; empty if nothing speaks against it."""
    left, right = plain(value), plain(said)
    if bool(_NEGATION.search(left)) != bool(_NEGATION.search(right)):
        return "one is negated and the other is not"
    wanted, given = ({value for _, _, value in numbers(text)} for text in (left, right))
    if wanted and not wanted <= given:
        told = [", ".join(f"{value:g}" for value in sorted(side)) or "none" for side in (wanted, given)]
        return f"numbers differ: {told[0]} and {told[1]}"
    return ""


@SCORERS.register("semantic")
@dataclass(frozen=True)
class Semantic:
    """Passes if the text, or one of its sentences, means much the same as one of the values.

    Attributes:
        value: the texts to compare with.
        threshold: least cosine, -1 to 1. What is right depends on the texts; calibrate it on labelled pairs of yours.
        guard: let a difference in negation or numbers overrule likeness.
    """

    value: Texts
    threshold: float = 0.6
    guard: bool = True

    stage: ClassVar[Stage] = "semantic"
    error: ClassVar[str] = "wrong_answer"
    forbidden_error: ClassVar[str] = "forbidden_content"

    def __post_init__(self) -> None:
        listed(self.value)
        if not -1 <= self.threshold <= 1:
            raise ValueError(f"threshold must be from -1 to 1, not {self.threshold}")

    def score(self, view: View) -> Finding:
        """The score is the best cosine that no guard contradicts; unscored without an embedder."""
        if view.services.embedder is None:
            return Finding("unscored", note="no embedder is installed; pip install 'chatmill[semantic]'")
        if not view.text.strip():
            return Finding("fail", 0.0, note="no text")
        values = listed(self.value)
        said = list(dict.fromkeys([view.text, *sentences(view.text)]))[:40]
        vectors = view.services.embedder([*values, *said])
        left, right = vectors[: len(values)], vectors[len(values) :]
        pairs = sorted(
            ((_dot(a, b), v, s) for a, v in zip(left, values, strict=True) for b, s in zip(right, said, strict=True)),
            reverse=True,
        )
        blocked = ""
        for cosine, value, sentence in pairs:
            against = conflict(value, sentence) if self.guard else ""
            if not against:
                note = f"cosine {cosine:.2f}" + (f"; a likelier sentence was ruled out: {blocked}" if blocked else "")
                hit = cosine >= self.threshold
                return Finding(verdict(hit), max(0.0, min(1.0, cosine)), sentence if hit else "", note)
            blocked = blocked or against
        return Finding("fail", 0.0, note=f"cosine {pairs[0][0]:.2f}, ruled out: {blocked}")


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return float(sum(x * y for x, y in zip(a, b, strict=True)))
