"""The result of an evaluation as a whole: both sides, their comparison, the gate. What reports and clients are
shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chatmill.errors import FailedPrecondition
from eval_svc.comparison import Comparison, compare
from eval_svc.result import Trial
from eval_svc.suite import Suite
from eval_svc.summary import ArmSummary, summarise
from eval_svc.target import TargetInfo
from eval_svc.timing import Timed
from eval_svc.verdict import Gate, GateResult, judge_run


@dataclass(frozen=True, slots=True)
class Board:
    """What an evaluation found.

    Attributes:
        baseline, comparison: None without a baseline; the comparison also where nothing can be compared.
        gate: what the gate says.
    """

    candidate: ArmSummary
    baseline: ArmSummary | None
    comparison: Comparison | None
    gate: GateResult


def make_board(
    suite: Suite,
    trials: Sequence[Trial],
    candidate: TargetInfo,
    baseline: TargetInfo | None,
    gate: Gate,
    incomplete: str = "",
    decided: str = "",
    timed: Sequence[Timed] = (),
) -> Board:
    """Count everything. Takes some tenths of a second for a large run; call it in a thread.

    Args:
        incomplete: why not all was played; empty if it was.
        decided: why the rest was left out: the gate could not pass any more.
        timed: replies that were timed one at a time.
    """
    ours = [t for t in trials if t.unit.arm == "candidate"]
    by_arm = {arm: [t for t in timed if t.arm == arm] for arm in ("candidate", "baseline")}
    left = summarise(suite, ours, candidate.name, candidate.priced_as, by_arm["candidate"])
    if baseline is None:
        return Board(left, None, None, judge_run(gate, left, None, None, incomplete=incomplete, decided=decided))
    theirs = [t for t in trials if t.unit.arm == "baseline"]
    right = summarise(suite, theirs, baseline.name, baseline.priced_as, by_arm["baseline"])
    try:
        comparison = compare(left, right)
    except FailedPrecondition:
        comparison = None
    return Board(
        left, right, comparison, judge_run(gate, left, right, comparison, incomplete=incomplete, decided=decided)
    )
