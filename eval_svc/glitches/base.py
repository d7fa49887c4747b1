"""What an always-on detector is, and what it may look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from eval_svc.result import Glitch
from eval_svc.taxonomy import ERROR_CLASSES
from eval_svc.transcript import Reply


@dataclass(frozen=True, slots=True)
class Budgets:
    """Times after which a reply counts as slow, in milliseconds from sending the request."""

    first_token_ms: float = 5_000.0
    total_ms: float = 30_000.0


@dataclass(frozen=True, slots=True)
class Scene:
    """One reply and what surrounds it.

    Attributes:
        reply: the reply.
        user: the words that it answers.
        earlier: the agent's replies before it.
        system: the system prompt, without the facts.
        known: all that the agent may rightly say about this customer: facts, and what was said in the dialogue.
        canaries: values of other customers, and marks planted in the prompt, that no reply may hold.
        language: ISO 639-1 code of the customer's language; empty: that of `user`, as far as its script tells.
        budgets: when a reply is slow.
    """

    reply: Reply
    user: str = ""
    earlier: tuple[str, ...] = ()
    system: str = ""
    known: str = ""
    canaries: tuple[str, ...] = ()
    language: str = ""
    budgets: Budgets = field(default_factory=Budgets)


@dataclass(frozen=True, slots=True)
class Hit:
    """What a detector found: the passage, and why it counts."""

    evidence: str = ""
    note: str = ""


Detect = Callable[[Scene], Hit | None]
_D = TypeVar("_D", bound=Detect)

DETECTORS: dict[str, Detect] = {}
"""Detector by the error class that it claims; each class has one."""


def detects(error: str) -> Callable[[_D], _D]:
    """Decorator: this function claims the class `error`."""

    def add(function: _D) -> _D:
        if error not in ERROR_CLASSES or error in DETECTORS:
            raise ValueError(f"{error!r} is no error class, or is claimed already")
        DETECTORS[error] = function
        return function

    return add


def glitches(
    scene: Scene, allow: frozenset[str] = frozenset(), gave_up: Callable[[str], None] = lambda _: None
) -> tuple[Glitch, ...]:
    """All that the detectors find in a reply, apart from the classes in `allow`.

    Args:
        gave_up: told of each detector that ran out of time; it has then found nothing, and cleared nothing.
    """
    found = []
    for error, detect in DETECTORS.items():
        if error in allow:
            continue
        try:
            hit = detect(scene)
        except TimeoutError:
            gave_up(error)
            continue
        if hit is not None:
            found.append(Glitch(error, ERROR_CLASSES[error].severity, hit.evidence[:500], hit.note))
    return tuple(found)
