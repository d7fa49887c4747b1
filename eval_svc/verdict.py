"""The gate: whether a model may go live, condition by condition, with the exit code of a command line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from eval_svc.comparison import Comparison
from eval_svc.runner import MAX_INFRA_SHARE
from eval_svc.summary import ArmSummary

State = Literal["passed", "failed", "invalid"]
EXIT_CODES: dict[State, int] = {"passed": 0, "failed": 1, "invalid": 2}

DEFAULT_MARGIN = 0.05
"""Against a baseline a candidate may be this much worse at most, and that with 95% confidence."""


DEFAULT_PASS_RATE = 0.8
"""Asked of a candidate where there is no baseline and nothing else is said of its quality: a gate that asks for
nothing would pass a model that knows nothing."""


@dataclass(frozen=True, slots=True)
class Gate:
    """What is asked for. None: not asked for.

    Attributes:
        min_pass_rate: of the candidate, 0 to 1; `DEFAULT_PASS_RATE` if there is no baseline and neither it nor
            `min_difference` nor `min_pass_hat_k` is given.
        min_difference: the lower end of the interval of candidate minus baseline must be above it; -0.05 if there is a
            baseline and nothing else is said.
        min_pass_hat_k: of the candidate, k being the number of trials.
        max_p95_ms: of a whole reply.
        max_critical: scenarios with a critical error; without it none that the baseline does not have.
    """

    min_pass_rate: float | None = None
    min_difference: float | None = None
    min_pass_hat_k: float | None = None
    max_p95_ms: float | None = None
    max_critical: int | None = None

    def asked(self, *, compared: bool) -> Gate:
        """The gate that holds, with a pass rate where no quality is asked for; `compared`: there is a baseline."""
        said = (self.min_pass_rate, self.min_difference, self.min_pass_hat_k)
        if compared or any(bound is not None for bound in said):
            return self
        return replace(self, min_pass_rate=DEFAULT_PASS_RATE)


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition with what was seen."""

    condition: str
    seen: str
    passed: bool


@dataclass(frozen=True, slots=True)
class GateResult:
    """What the gate says."""

    state: State
    conditions: tuple[Condition, ...]

    @property
    def exit_code(self) -> int:
        """0 passed, 1 failed, 2 invalid."""
        return EXIT_CODES[self.state]


def judge_run(
    gate: Gate,
    candidate: ArmSummary,
    baseline: ArmSummary | None,
    comparison: Comparison | None,
    *,
    incomplete: str = "",
    decided: str = "",
) -> GateResult:
    """Apply the gate. A run that did not end, or lost too much to infrastructure, is invalid whatever its numbers say.

    Args:
        incomplete: why the run did not end; empty if it did.
        decided: why it was ended early, although nothing went wrong: the gate could not pass any more.
    """
    validity = list(_validity(candidate, baseline, incomplete))
    conditions = [*validity, *_conditions(gate, candidate, baseline, comparison)]
    if decided:
        conditions.append(Condition("the gate could still pass when the run was ended", decided, False))
    if not all(c.passed for c in validity):
        return GateResult("invalid", tuple(conditions))
    return GateResult("passed" if all(c.passed for c in conditions) else "failed", tuple(conditions))


def _validity(candidate: ArmSummary, baseline: ArmSummary | None, incomplete: str) -> list[Condition]:
    found = []
    if incomplete:
        found.append(Condition("the run ended", incomplete, False))
    for arm in (candidate, baseline):
        if arm is None:
            continue
        lost = f"{arm.infra} of {arm.played} ({arm.infra_rate:.1%})"
        told = f"at most {MAX_INFRA_SHARE:.0%} of the dialogues of {arm.target} lost to infrastructure"
        found.append(Condition(told, lost, arm.infra_rate <= MAX_INFRA_SHARE))
        if arm.trials == 0:
            found.append(Condition(f"something of {arm.target} was scored", "nothing", False))
    return found


def _conditions(
    gate: Gate, candidate: ArmSummary, baseline: ArmSummary | None, comparison: Comparison | None
) -> list[Condition]:
    found = [_critical(gate, candidate, baseline)]
    least = gate.asked(compared=baseline is not None).min_pass_rate
    if least is not None:
        rate = candidate.pass_rate
        why = "" if gate.min_pass_rate is not None else " (asked where nothing else is)"
        found.append(Condition(f"pass rate >= {least:.0%}{why}", f"{rate:.1%}", rate >= least - 1e-9))
    if comparison is not None:
        margin = -DEFAULT_MARGIN if gate.min_difference is None else gate.min_difference
        low, high = comparison.interval
        seen = f"{comparison.difference:+.1%} (95% {low:+.1%} to {high:+.1%})"
        found.append(Condition(f"candidate - baseline surely above {margin:+.0%}", seen, low > margin))
    elif baseline is not None or gate.min_difference is not None:
        margin = -DEFAULT_MARGIN if gate.min_difference is None else gate.min_difference
        seen = "no baseline" if baseline is None else "no scenario that both sides have scored"
        found.append(Condition(f"candidate - baseline surely above {margin:+.0%}", seen, False))
    if gate.min_pass_hat_k is not None and candidate.pass_hat_k:
        k, value = len(candidate.pass_hat_k), candidate.pass_hat_k[-1]
        found.append(
            Condition(f"pass^{k} >= {gate.min_pass_hat_k:.0%}", f"{value:.1%}", value >= gate.min_pass_hat_k - 1e-9)
        )
    if gate.max_p95_ms is not None:
        seen_ms = candidate.latency.p95
        told = f"{seen_ms:.0f} ms with {candidate.latency.concurrency} at once"
        found.append(Condition(f"p95 of a reply <= {gate.max_p95_ms:.0f} ms", told, seen_ms <= gate.max_p95_ms))
    return found


def _critical(gate: Gate, candidate: ArmSummary, baseline: ArmSummary | None) -> Condition:
    critical = candidate.critical_scenarios
    if gate.max_critical is not None:
        seen = _named(critical)
        return Condition(
            f"critical errors in at most {gate.max_critical} scenarios", seen, len(critical) <= gate.max_critical
        )
    if baseline is None:
        return Condition("no critical error", _named(critical), not critical)
    new = tuple(name for name in critical if name not in baseline.critical_scenarios)
    return Condition("no critical error that the baseline does not have", _named(new), not new)


def _named(scenarios: tuple[str, ...]) -> str:
    if not scenarios:
        return "none"
    more = f" and {len(scenarios) - 3} more" if len(scenarios) > 3 else ""
    return f"{len(scenarios)}: {', '.join(scenarios[:3])}{more}"
