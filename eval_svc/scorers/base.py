"""What a scorer is: a frozen dataclass of its parameters with a `score` method, registered under its YAML type.

Third parties add theirs by an entry point in the group `chatmill.scorers`. A scorer sees a `View` and returns a
`Finding`; it knows nothing of gates, weights, scenarios or storage.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

from chatmill.plugins import Registry
from eval_svc.transcript import Message, Reply

Verdict = Literal["pass", "fail", "unscored", "n/a"]
"""`unscored`: it should have been judged and could not be. `n/a`: there was nothing to judge. Neither counts as a
failure."""

Stage = Literal["deterministic", "semantic", "judge"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a scorer found.

    Attributes:
        verdict: see `Verdict`.
        score: 0 to 1, higher is better; None where there is only a verdict.
        evidence: the passage that decided, as it stands in the text; the report marks it.
        note: why, in a few words; always given with `unscored` and `n/a`.
        votes: the single answers of a judge.
        error: class of error of a failure, where it is another one than the check's own.
    """

    verdict: Verdict
    score: float | None = None
    evidence: str = ""
    note: str = ""
    votes: tuple[str, ...] = ()
    error: str = ""


class Embedder(Protocol):
    """Turns texts into vectors of length one."""

    def __call__(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """One vector per text, in order."""


class Judge(Protocol):
    """A model that answers a question about a dialogue."""

    async def ask(self, prompt: str, seed: int) -> str:
        """The judge's answer. Raises a ChatmillError if it can't be had."""


@dataclass(frozen=True, slots=True)
class Services:
    """What scorers beyond the deterministic ones need; None means that it is not set up, and such checks stay
    unscored."""

    judge: Judge | None = None
    embedder: Embedder | None = None


@dataclass(frozen=True, slots=True)
class View:
    """What a scorer may look at.

    Attributes:
        text: the text under examination; which replies it holds follows from the scope of the check.
        reply: the reply that `text` belongs to, or the last one where there are several.
        user: the customer's words that the reply answers.
        earlier: the agent's replies before this one, oldest first.
        dialogue: everything said so far, the reply included; without the system prompt.
        system: the system prompt as sent.
        known: facts that the agent has in memory, by name.
        memory: all that it has in memory, as the text that it is given.
        language: ISO 639-1 code of the language in which the customer expects an answer, or empty.
        policies: id to text of the policies that the scenario names.
        seed: of the trial; a judge's votes derive theirs from it.
        services: judge and embedder.
    """

    text: str
    reply: Reply
    user: str = ""
    earlier: tuple[str, ...] = ()
    dialogue: tuple[Message, ...] = ()
    system: str = ""
    known: Mapping[str, str] = field(default_factory=dict)
    memory: str = ""
    language: str = ""
    policies: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    services: Services = field(default_factory=Services)


@runtime_checkable
class Scorer(Protocol):
    """One check with its parameters.

    `stage` orders the work: what costs nothing comes first. `error` is the class of a failure when the scenario
    names none. `forbidden_error` is that of the inverted check.
    """

    stage: ClassVar[Stage]
    error: ClassVar[str]
    forbidden_error: ClassVar[str]

    def score(self, view: View) -> Finding | Awaitable[Finding]:
        """Judge the view."""


class Check:
    """Defaults for built-in scorers, which are deterministic unless they say otherwise."""

    stage: ClassVar[Stage] = "deterministic"
    error: ClassVar[str] = "wrong_answer"
    forbidden_error: ClassVar[str] = "forbidden_content"


SCORERS: Registry[type[Scorer]] = Registry("scorer", "chatmill.scorers")
"""All check types by the name that stands in YAML."""


def verdict(passed: bool) -> Verdict:
    """`pass` or `fail`."""
    return "pass" if passed else "fail"
