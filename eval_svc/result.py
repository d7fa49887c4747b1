"""What scoring yields: results of checks, turns and dialogues, as plain data that goes to the store and to reports.

It knows no scorer and no statistics.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from eval_svc.scorers.base import Verdict
from eval_svc.taxonomy import Severity
from eval_svc.transcript import Failure, Transcript, Unit

GRADER_VERSION = "3"
"""Raised whenever the same transcript could get another verdict; scores of different graders are not compared."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What one check found, after inversion by `forbid` and joining over its scope.

    Attributes:
        error: class of error that a failure is counted under.
        severity: how bad a failure is here; it says nothing unless the verdict is `fail`.
        evidence: the passage that decided, as it stands in the reply.
    """

    id: str
    type: str
    gate: Literal["hard", "soft", "info"]
    forbid: bool
    verdict: Verdict
    score: float | None
    weight: float
    error: str
    severity: Severity
    evidence: str = ""
    note: str = ""
    votes: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """True if it failed and is more than information."""
        return self.verdict == "fail" and self.gate != "info"


@dataclass(frozen=True, slots=True)
class Glitch:
    """What an always-on detector found; `error` is its class."""

    error: str
    severity: Severity
    evidence: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class ErrorFound:
    """One error of a turn or dialogue, whoever found it.

    Attributes:
        turn: index of the scenario's turn, or None if it belongs to the dialogue as a whole.
    """

    error: str
    severity: Severity
    turn: int | None
    evidence: str
    source: str


@dataclass(frozen=True, slots=True)
class TurnScore:
    """How one turn did.

    Attributes:
        index: which turn of the scenario.
        passed: all hard checks hold and no major or critical glitch was found; None if nothing could be scored.
        score: weighted mean over hard and soft checks, 0 to 100; None if there were none.
    """

    index: int
    checks: tuple[CheckResult, ...]
    glitches: tuple[Glitch, ...]
    passed: bool | None
    score: float | None

    def errors(self) -> Iterator[ErrorFound]:
        """Every error of this turn, worst detectors first in order of finding."""
        for glitch in self.glitches:
            yield ErrorFound(glitch.error, glitch.severity, self.index, glitch.evidence, "detector")
        for check in self.checks:
            if check.failed:
                yield ErrorFound(check.error, check.severity, self.index, check.evidence, check.id)


Handover = Literal["must", "must_not", "may"]


@dataclass(frozen=True, slots=True)
class TrialScore:
    """How one dialogue did.

    Attributes:
        passed: every turn and every final check passed; None if it is not scored, because infrastructure failed or
            because nothing could be judged.
        score_mean: mean of the turns' scores, 0 to 100.
        score_min: the weakest turn's score.
        outcome: answered, clarified, ticket, handoff or refused; empty if not scored, or broken off.
        handover: whether a person had to, must not, or might take over here.
        handed_over: whether one did.
        infra: the failure of infrastructure that keeps it from being scored.
    """

    unit: Unit
    seed: int
    passed: bool | None
    score_mean: float | None
    score_min: float | None
    outcome: str
    turns: tuple[TurnScore, ...]
    final: tuple[CheckResult, ...]
    handover: Handover
    handed_over: bool
    infra: Failure | None = None

    def errors(self) -> Iterator[ErrorFound]:
        """Every error of the dialogue."""
        for turn in self.turns:
            yield from turn.errors()
        for check in self.final:
            if check.failed:
                yield ErrorFound(check.error, check.severity, None, check.evidence, check.id)

    def checks(self) -> Iterator[CheckResult]:
        """Every check, those of the turns first."""
        for turn in self.turns:
            yield from turn.checks
        yield from self.final

    @property
    def critical(self) -> bool:
        """True if it holds a critical error."""
        return any(e.severity == "critical" for e in self.errors())


@dataclass(frozen=True, slots=True)
class Trial:
    """A dialogue with its score."""

    transcript: Transcript
    score: TrialScore

    @property
    def unit(self) -> Unit:
        """The key under which it is kept."""
        return self.transcript.unit
