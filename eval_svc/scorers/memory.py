"""Checks of what the agent knows and what it must still ask: fact_recall and asks_for."""

from __future__ import annotations

from dataclasses import dataclass

import regex

from eval_svc.scorers.base import SCORERS, Check, Finding, View
from eval_svc.scorers.words import Texts, listed, occurrences
from eval_svc.text import normalise

_REQUEST = regex.compile(
    r"[?？]"
    r"|\b(please (?:provide|share|send|give|tell|enter|confirm)|could you|can you|may i|what(?:'s| is)|which"
    r"|let me know|i(?:'ll| will)? need)\b"
    r"|请(?:提供|问|告诉|告知|给|发|输入|确认)|麻烦|能否|可以告诉|需要您"
)


@SCORERS.register("fact_recall")
@dataclass(frozen=True)
class FactRecall(Check):
    """Passes if the text shows a fact from the scenario's memory.

    Attributes:
        fact: name of a profile entry of the memory whose value must appear; or
        value: the texts of which one must appear, each part of the memory. One of the two is given.
    """

    fact: str = ""
    value: Texts = ()

    error = "context_lost"
    forbidden_error = "mixed_customers"

    def __post_init__(self) -> None:
        if bool(self.fact) == bool(self.value):
            raise ValueError("fact_recall needs either fact (a name in memory.profile) or value")
        if self.value:
            listed(self.value)

    def score(self, view: View) -> Finding:
        """Evidence is the fact as the reply has it."""
        wanted = (view.known.get(self.fact, ""),) if self.fact else listed(self.value)
        if not any(w.strip() for w in wanted):
            return Finding("unscored", note=f"the memory has no {self.fact!r}")
        text = normalise(view.text)
        for needle in wanted:
            for start, end in occurrences(text, needle):
                return Finding("pass", 1.0, text.quote(start, end))
        return Finding("fail", 0.0, note="not recalled: " + ", ".join(wanted))


@SCORERS.register("asks_for")
@dataclass(frozen=True)
class AsksFor(Check):
    """Passes if the text asks the customer for something.

    Attributes:
        value: names of what is missing, such as `order number`; one of them must occur beside a question or a request.
    """

    value: Texts

    error = "wrong_answer"
    forbidden_error = "asked_again"

    def __post_init__(self) -> None:
        listed(self.value)

    def score(self, view: View) -> Finding:
        """Evidence is the name found."""
        text = normalise(view.text)
        if not _REQUEST.search(text.text):
            return Finding("fail", 0.0, note="asks nothing")
        for needle in listed(self.value):
            for start, end in occurrences(text, needle):
                return Finding("pass", 1.0, text.quote(start, end))
        return Finding("fail", 0.0, note="asks, but for none of: " + ", ".join(listed(self.value)))
