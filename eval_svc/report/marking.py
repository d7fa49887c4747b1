"""Replies as HTML text with the evidence marked. Replies are untrusted: everything is escaped, nothing is rendered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape


@dataclass(frozen=True, slots=True)
class Mark:
    """A passage to be marked.

    Attributes:
        evidence: the passage as it stands in the reply.
        kind: `good` or `bad`.
        why: shown when the pointer rests on it.
    """

    evidence: str
    kind: str
    why: str


def marked(text: str, marks: Iterable[Mark]) -> Markup:
    """The text with every mark that is found in it; where two overlap, the bad one is kept, else the first."""
    spans: list[tuple[int, int, Mark]] = []
    for mark in sorted(marks, key=lambda m: m.kind != "bad"):
        start = text.find(mark.evidence) if mark.evidence else -1
        if start >= 0 and not any(start < e and s < start + len(mark.evidence) for s, e, _ in spans):
            spans.append((start, start + len(mark.evidence), mark))
    return Markup("").join(_pieces(text, sorted(spans, key=lambda span: span[0])))


def _pieces(text: str, spans: Sequence[tuple[int, int, Mark]]) -> Iterable[Markup]:
    position = 0
    for start, end, mark in spans:
        yield escape(text[position:start])
        yield Markup('<mark class="{}" title="{}">{}</mark>').format(mark.kind, mark.why, text[start:end])
        position = end
    yield escape(text[position:])
