"""A scenario: one scripted customer, what the agent may know, and what must and must not come back.

Plain frozen data; `eval_svc.scenario_file` reads it. This module knows no file, no model, no run and no score.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from chatmill import prompts
from eval_svc.scorers.base import Scorer
from eval_svc.taxonomy import Severity
from eval_svc.transcript import Message

Gate = Literal["hard", "soft", "info"]
Scope = Literal["turn", "any", "all", "dialog"]
Outcome = Literal["answered", "clarified", "ticket", "handoff", "refused"]


@dataclass(frozen=True, slots=True)
class CheckSpec:
    """One check of a turn or of the whole dialogue.

    Attributes:
        id: unique in the scenario; made from place and type where the file gives none.
        type: name of the scorer.
        scorer: the scorer with its parameters.
        forbid: the finding is inverted: what the scorer finds must not be there.
        gate: `hard` decides, `soft` moves the score, `info` is only shown.
        weight: weight in the score, above 0.
        error: class of error that a failure is counted under.
        scope: which replies are examined: this turn's, any or all so far, or all of them as one text.
    """

    id: str
    type: str
    scorer: Scorer
    forbid: bool
    gate: Gate
    weight: float
    error: str
    scope: Scope


@dataclass(frozen=True, slots=True)
class Turn:
    """One thing that the customer says.

    Attributes:
        user: the words.
        variants: other wordings, which must not change the verdict.
        checks: `expect` and `forbid`, in order.
        matched: play this turn only if this outcome was seen, or this check passed, before; None: always.
        not_matched: play it only if not.
        stop_on_fail: end the dialogue if a hard check of this turn fails.
    """

    user: str
    variants: tuple[str, ...] = ()
    checks: tuple[CheckSpec, ...] = ()
    matched: str | None = None
    not_matched: str | None = None
    stop_on_fail: bool = False


@dataclass(frozen=True, slots=True)
class Persona:
    """Who the customer is."""

    name: str = ""
    mood: str = ""
    language: str = ""
    style: str = ""


@dataclass(frozen=True, slots=True)
class Memory:
    """What the agent may know before the customer speaks.

    Attributes:
        profile: facts by name.
        sessions: earlier visits, each a date (may be empty) and its messages.
        facts: lines said to the agent as they are.
        canaries: values of other customers that no reply may hold; they are planted wherever the scenario puts them.
    """

    profile: Mapping[str, str] = field(default_factory=dict)
    sessions: tuple[tuple[str, tuple[Message, ...]], ...] = ()
    facts: tuple[str, ...] = ()
    canaries: tuple[str, ...] = ()

    def lines(self) -> tuple[str, ...]:
        """What the agent is told, fact by fact: the profile, then earlier visits, then `facts`. `chatmill.prompts`
        joins them, here as in training."""
        said: list[str] = [f"{name}: {value}" for name, value in self.profile.items()]
        for when, messages in self.sessions:
            prefix = f"{when} " if when else ""
            said += [f"{prefix}{'customer' if m.role == 'user' else 'agent'}: {m.content}" for m in messages]
        return (*said, *self.facts)

    def known(self) -> str:
        """All that the agent knows, as the text that it is given."""
        return prompts.system_message("", self.lines())


@dataclass(frozen=True)
class Scenario:
    """One scripted conversation. The attributes are those of the file format; `raw` is the mapping it was made from."""

    id: str
    title: str
    kind: str
    severity: Severity
    turns: tuple[Turn, ...]
    tags: tuple[str, ...] = ()
    source: Mapping[str, str] = field(default_factory=dict)
    persona: Persona = field(default_factory=Persona)
    memory: Memory = field(default_factory=Memory)
    policy: tuple[str, ...] = ()
    trials: int | None = None
    history: tuple[Message, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    final: tuple[CheckSpec, ...] = ()
    allow: frozenset[str] = frozenset()
    goal: str = ""
    max_turns: int = 8
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def simulated(self) -> bool:
        """True if a model plays the customer; such a scenario informs and never decides."""
        return self.kind == "simulated"

    @property
    def cluster(self) -> str:
        """Scenarios of one cluster are not independent: those of one real conversation; any other stands for itself."""
        conversation = self.source.get("conversation") if self.kind == "replay" else None
        return f"conversation {conversation}" if conversation else self.id

    @cached_property
    def variants(self) -> int:
        """How many wordings there are: the written one and the longest list of variants."""
        return 1 + max((len(turn.variants) for turn in self.turns), default=0)

    def checks(self) -> Iterator[CheckSpec]:
        """All checks, those of the turns first."""
        for turn in self.turns:
            yield from turn.checks
        yield from self.final

    def wording(self, turn: int, variant: int) -> str:
        """What the customer says at `turn` in wording `variant`; a turn without that many keeps its own words."""
        spoken = self.turns[turn]
        return spoken.variants[variant - 1] if 0 < variant <= len(spoken.variants) else spoken.user
