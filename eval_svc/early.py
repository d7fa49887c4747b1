"""Whether a gate can still pass, whatever the dialogues that are left would show.

Only what is certain counts: the bounds assume that every dialogue left passes without an error. It knows no run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from eval_svc.result import Trial
from eval_svc.statistics import pass_hat_k
from eval_svc.transcript import Unit
from eval_svc.verdict import Gate


class Outlook:
    """What the best possible end of a run is, kept up to date dialogue by dialogue.

    Args:
        units: all that decide: the written wordings of scripted scenarios, of both sides.
        compared: there is a baseline.
    """

    def __init__(self, gate: Gate, units: Sequence[Unit], *, compared: bool) -> None:
        self.gate = gate.asked(compared=compared)
        self.compared = compared
        self._left: dict[str, int] = defaultdict(int)
        self._left_baseline: dict[str, int] = defaultdict(int)
        self._scored: dict[str, int] = defaultdict(int)
        self._passed: dict[str, int] = defaultdict(int)
        self._critical: set[str] = set()
        self._critical_baseline: set[str] = set()
        for unit in units:
            (self._left if unit.arm == "candidate" else self._left_baseline)[unit.scenario] += 1
        self._units = set(units)

    def add(self, trial: Trial) -> None:
        """A dialogue is done."""
        unit, score = trial.unit, trial.score
        if unit not in self._units:
            return
        name = unit.scenario
        if unit.arm == "baseline":
            self._left_baseline[name] -= 1
            if score.critical:
                self._critical_baseline.add(name)
            return
        self._left[name] -= 1
        if score.passed is None:
            return
        self._scored[name] += 1
        self._passed[name] += score.passed
        if score.critical:
            self._critical.add(name)

    def hopeless(self) -> str:
        """Why the gate can't pass any more; empty while it can."""
        return self._too_critical() or self._too_low()

    def _too_critical(self) -> str:
        if self.gate.max_critical is not None or not self.compared:
            allowed = self.gate.max_critical or 0
            if len(self._critical) > allowed:
                return f"critical errors in {len(self._critical)} scenarios, {allowed} allowed"
            return ""
        # as long as the baseline has dialogues left, it may still show the same error
        sure = sorted(n for n in self._critical - self._critical_baseline if not self._left_baseline[n])
        return f"a critical error in {sure[0]} that the baseline does not have" if sure else ""

    def _too_low(self) -> str:
        most = {n: self._scored[n] + left for n, left in self._left.items() if self._scored[n] + left}
        if not most:
            return ""
        best = {n: self._passed[n] + self._left[n] for n in most}
        rate = sum(best[n] / most[n] for n in most) / len(most)
        if self.gate.min_pass_rate is not None and rate < self.gate.min_pass_rate - 1e-9:
            return f"the pass rate can't be more than {rate:.1%}"
        if self.gate.min_pass_hat_k is not None:
            # a dialogue that can't be scored lowers k, and with it raises pass^k: only pass^1 bounds what is to come
            k = 1 if any(self._left.values()) else min(most.values())
            reliable = sum(pass_hat_k(most[n], best[n], k) for n in most) / len(most)
            if reliable < self.gate.min_pass_hat_k - 1e-9:
                return f"pass^k can't be more than {reliable:.1%}"
        return ""
