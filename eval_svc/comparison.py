"""Two sides paired by scenario: difference, interval, p-value, what was fixed and broken, and a verdict in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from chatmill.errors import FailedPrecondition
from eval_svc.statistics import (
    Interval,
    cluster_bootstrap,
    detectable_difference,
    holm,
    mcnemar,
    scenarios_needed,
)
from eval_svc.summary import ArmSummary

VerdictWord = Literal["better", "worse", "no clear difference", "too few scenarios"]

ALPHA = 0.05
FEWEST = 6
"""With fewer scenarios not even six fixed and none broken could be significant."""

WORTH_SEEING = 0.25
"""Scenarios that can't show a difference of so many points are too few to say that there is none."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Candidate beside baseline.

    Attributes:
        difference: candidate minus baseline in pass rate, over the scenarios that both have scored.
        interval: its 95% interval, scenarios resampled.
        p_value: exact McNemar on the majority verdict of each scenario, two-sided.
        detectable: the smallest difference that this many scenarios show with 80% power.
        needed: how many scenarios would show the difference seen, beyond those there are; 0 if it is shown.
        unpaired: scenarios that only one side has scored; they are left out.
    """

    difference: float
    interval: Interval
    p_value: float
    verdict: VerdictWord
    fixed: tuple[str, ...]
    broken: tuple[str, ...]
    both_fail: tuple[str, ...]
    both_pass: int
    detectable: float
    needed: int
    scenarios: int
    unpaired: tuple[str, ...]


def compare(candidate: ArmSummary, baseline: ArmSummary) -> Comparison:
    """Compare two sides of the same suite. Raises FailedPrecondition if they share no scored scenario."""
    left = {s.id: s for s in candidate.scenarios if s.rate is not None}
    right = {s.id: s for s in baseline.scenarios if s.rate is not None}
    shared = [name for name in left if name in right]
    if not shared:
        raise FailedPrecondition("the two sides have no scored scenario in common; nothing can be compared")
    rates_left: Mapping[str, float] = {n: left[n].rate or 0.0 for n in shared}
    rates_right: Mapping[str, float] = {n: right[n].rate or 0.0 for n in shared}
    differences = [rates_left[n] - rates_right[n] for n in shared]
    fixed = tuple(n for n in shared if left[n].majority and not right[n].majority)
    broken = tuple(n for n in shared if right[n].majority and not left[n].majority)
    difference = sum(differences) / len(shared)
    low, high = cluster_bootstrap(differences, [left[n].cluster for n in shared])
    interval = Interval(max(low, -1.0), min(high, 1.0))
    p_value = mcnemar(len(fixed), len(broken))
    detectable = detectable_difference(len(shared))
    word = _verdict(len(shared), difference, interval, p_value, detectable)
    discordant = (len(fixed) + len(broken)) / len(shared)
    needed = (
        0
        if word in ("better", "worse")
        else scenarios_needed(round(difference, 3), round(max(discordant, abs(difference)), 3))
    )
    return Comparison(
        difference=difference,
        interval=interval,
        p_value=p_value,
        verdict=word,
        fixed=fixed,
        broken=broken,
        both_fail=tuple(n for n in shared if not left[n].majority and not right[n].majority),
        both_pass=sum(1 for n in shared if left[n].majority and right[n].majority),
        detectable=detectable,
        needed=max(0, needed - len(shared)),
        scenarios=len(shared),
        unpaired=tuple(sorted(set(left) ^ set(right))),
    )


@dataclass(frozen=True, slots=True)
class Part:
    """The scenarios of one kind, candidate beside baseline.

    Attributes:
        p_value: McNemar's, adjusted after Holm for as many kinds as are looked at.
    """

    kind: str
    scenarios: int
    candidate: float
    baseline: float
    fixed: int
    broken: int
    p_value: float


def by_kind(candidate: ArmSummary, baseline: ArmSummary) -> tuple[Part, ...]:
    """Each kind by itself, in order of appearance; none if there is only one, which the whole tells already."""
    other = {s.id: s for s in baseline.scenarios if s.rate is not None}
    paired = [(s, other[s.id]) for s in candidate.scenarios if s.rate is not None and s.id in other]
    kinds = list(dict.fromkeys(left.kind for left, _ in paired))
    found = []
    for kind in kinds if len(kinds) > 1 else ():
        mine = [(left, right) for left, right in paired if left.kind == kind]
        fixed = sum(1 for left, right in mine if left.majority and not right.majority)
        broken = sum(1 for left, right in mine if right.majority and not left.majority)
        rates = [sum(s.rate or 0.0 for s in side) / len(mine) for side in zip(*mine, strict=True)]
        found.append(Part(kind, len(mine), rates[0], rates[1], fixed, broken, mcnemar(fixed, broken)))
    adjusted = holm([part.p_value for part in found])
    return tuple(replace(part, p_value=p) for part, p in zip(found, adjusted, strict=True))


def _verdict(scenarios: int, difference: float, interval: Interval, p_value: float, detectable: float) -> VerdictWord:
    """Better or worse needs both: an interval off zero and McNemar's p below 5%.

    The interval sees how much changed and the test on majorities how many scenarios did. Asking for both keeps a model
    that is compared with itself from looking different more often than either test alone would.
    """
    if scenarios >= FEWEST and p_value < ALPHA:
        if interval.low > 0 and difference > 0:
            return "better"
        if interval.high < 0 and difference < 0:
            return "worse"
    if scenarios < FEWEST or detectable > WORTH_SEEING:
        return "too few scenarios"
    return "no clear difference"


__all__ = ["Comparison", "Part", "VerdictWord", "by_kind", "compare"]
