"""How far raters agree, and what a machine's pass rate says once its mistakes are known.

Pure functions on verdicts and counts; no database, no session, no scenario.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eval_svc.people.records import Verdict
from eval_svc.statistics import Interval, kappa

RESAMPLES = 10_000
NEEDED = 50
"""Labels of each verdict from which on a corrected rate is given (reference: eval design, human testing)."""
MIN_ITEMS = 5
"""Items below which an interval of kappa says nothing."""
_SEED = 20_260_301


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two raters on the same items, pass or fail.

    Attributes:
        raw: share of items on which they agree; 0 without items.
        kappa: Cohen's; None without items, or if both gave one answer throughout.
        interval: of kappa, 95%, by bootstrap over items; None with fewer than `MIN_ITEMS`.
        counts: both pass, only the first passes, only the second passes, both fail.
        not_assessed: items left out because one of the two could not tell.
    """

    items: int
    raw: float
    kappa: float | None
    interval: Interval | None
    counts: tuple[int, int, int, int]
    not_assessed: int


def agree(pairs: Sequence[tuple[Verdict, Verdict]], resamples: int = RESAMPLES) -> Agreement:
    """How far the first and the second of each pair agree."""
    told = [(a, b) for a, b in pairs if a in ("pass", "fail") and b in ("pass", "fail")]
    cells = [("pass", "pass"), ("pass", "fail"), ("fail", "pass"), ("fail", "fail")]
    counts = tuple(sum(1 for pair in told if pair == cell) for cell in cells)
    assert len(counts) == 4
    raw = (counts[0] + counts[3]) / len(told) if told else 0.0
    return Agreement(len(told), raw, kappa(told), kappa_interval(counts, resamples), counts, len(pairs) - len(told))


def kappa_interval(counts: Sequence[int], resamples: int = RESAMPLES) -> Interval | None:
    """Percentile interval of Cohen's kappa by bootstrap over items.

    Args:
        counts: both pass, only the first passes, only the second passes, both fail.

    Resamples in which both raters gave one answer throughout have no kappa and are left out; None if too few are left
    to speak of (fewer than half), or with fewer than `MIN_ITEMS` items.
    """
    total = sum(counts)
    if total < MIN_ITEMS:
        return None
    rng = np.random.default_rng(_SEED)
    drawn = rng.multinomial(total, np.asarray(counts) / total, size=resamples) / total
    observed = drawn[:, 0] + drawn[:, 3]
    first, second = drawn[:, 0] + drawn[:, 1], drawn[:, 0] + drawn[:, 2]
    expected = first * second + (1 - first) * (1 - second)
    defined = expected < 1 - 1e-12
    if defined.sum() < resamples / 2:
        return None
    values = (observed[defined] - expected[defined]) / (1 - expected[defined])
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(low), float(high))


class Judged(NamedTuple):
    """A machine's verdict beside a person's.

    Attributes:
        stratum: why the item is in the sample.
        machine: True if the machine passes it.
        human: True if the person does.
    """

    stratum: str
    machine: bool
    human: bool


@dataclass(frozen=True, slots=True)
class Calibration:
    """How well a machine's verdict finds what people see; rates 0 to 1.

    Attributes:
        tpr: of what people pass, the share that the machine passes, weighted to the population; None without such.
        tnr: of what people fail, the share that the machine fails.
        observed: the machine's own pass rate; None where it was not asked for.
        rate: the pass rate corrected by both; None where `note` says why.
        interval: of the corrected rate, 95%.
    """

    tpr: float | None
    tnr: float | None
    human_pass: int
    human_fail: int
    observed: float | None
    rate: float | None
    interval: Interval | None
    note: str


def calibrate(
    judged: Sequence[Judged],
    population: Mapping[str, int],
    rates: Mapping[str, Sequence[float]] | None,
    needed: int = NEEDED,
    resamples: int = RESAMPLES,
) -> Calibration:
    """Rates of agreement weighted to the population, and the machine's pass rate corrected by them.

    The sample holds all critical failures and only some of the passes, so each stratum counts by its size in the
    population, not in the sample. The correction is (observed + TNR - 1) / (TPR + TNR - 1), cut to 0 and 1 (Rogan and
    Gladen 1978); its interval resamples labels within their stratum, and scenarios.

    Args:
        judged: one item each.
        population: how many items each stratum has in all.
        rates: the machine's pass rates of the scenarios of each cluster; None: no corrected rate is asked for.
        needed: labels of each verdict that a corrected rate takes.
    """
    strata = [name for name in population if any(item.stratum == name for item in judged)]
    cells = np.array([_cells([item for item in judged if item.stratum == name]) for name in strata]).reshape(-1, 4)
    sizes = np.array([population[name] for name in strata], dtype=np.float64)
    tpr, tnr = _rates(cells[None, :, :].astype(np.float64), sizes)
    passed, failed = int(sum(item.human for item in judged)), int(sum(not item.human for item in judged))
    known = (_known(tpr[0]), _known(tnr[0]))
    observed = _observed(rates) if rates else None
    note = _why_not(passed, failed, known, population, strata, needed) if rates else "asked of no evaluation"
    if note or rates is None or observed is None:
        return Calibration(*known, passed, failed, observed, None, None, note)
    spread = _bootstrap(cells, sizes, rates, resamples)
    rate = float(_corrected(np.array([observed]), tpr, tnr)[0])
    return Calibration(*known, passed, failed, observed, rate, spread, "")


def _cells(items: Sequence[Judged]) -> list[int]:
    """Machine and person: both pass, machine only, person only, both fail."""
    found = [0, 0, 0, 0]
    for item in items:
        found[(0 if item.machine else 2) + (0 if item.human else 1)] += 1
    # order: (pass, pass), (pass, fail), (fail, pass), (fail, fail)
    return found


def _rates(cells: NDArray[np.float64], sizes: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """TPR and TNR of each resample, shape (resamples,); NaN where people passed, or failed, nothing.

    Args:
        cells: shape (resamples, strata, 4).
        sizes: shape (strata,).
    """
    totals = np.maximum(cells.sum(axis=2, keepdims=True), 1)
    both, machine_only, human_only, neither = np.moveaxis((cells / totals * sizes[None, :, None]).sum(axis=1), 1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return both / (both + human_only), neither / (neither + machine_only)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _observed(rates: Mapping[str, Sequence[float]]) -> float:
    every = [rate for cluster in rates.values() for rate in cluster]
    return sum(every) / len(every)


def _corrected(
    observed: NDArray[np.float64], tpr: NDArray[np.float64], tnr: NDArray[np.float64]
) -> NDArray[np.float64]:
    corrected: NDArray[np.float64] = np.clip((observed + tnr - 1) / (tpr + tnr - 1), 0.0, 1.0)
    return corrected


def _why_not(
    passed: int,
    failed: int,
    known: tuple[float | None, float | None],
    population: Mapping[str, int],
    strata: Sequence[str],
    needed: int,
) -> str:
    missing = []
    if passed < needed:
        missing.append(f"{needed - passed} more that people pass")
    if failed < needed:
        missing.append(f"{needed - failed} more that people fail")
    if missing:
        return f"a corrected rate takes {needed} labels of each verdict; still missing: {' and '.join(missing)}"
    if unseen := [name for name, size in population.items() if size and name not in strata]:
        return f"no label yet of a part of the evaluation: {', '.join(unseen)}"
    tpr, tnr = known
    if tpr is None or tnr is None or tpr + tnr - 1 <= 0.05:
        return "the machine's verdict is hardly better than chance, so there is nothing to correct it by; mend it first"
    return ""


def _bootstrap(
    cells: NDArray[np.int64], sizes: NDArray[np.float64], rates: Mapping[str, Sequence[float]], resamples: int
) -> Interval:
    rng = np.random.default_rng(_SEED)
    totals = cells.sum(axis=1)
    drawn = np.stack(
        [rng.multinomial(total, row / total, size=resamples) for row, total in zip(cells, totals, strict=True)], axis=1
    )
    tpr, tnr = _rates(drawn.astype(np.float64), sizes)
    sums = np.array([sum(cluster) for cluster in rates.values()], dtype=np.float64)
    lengths = np.array([len(cluster) for cluster in rates.values()], dtype=np.float64)
    picked = rng.multinomial(sums.size, np.full(sums.size, 1 / sums.size), size=resamples)
    observed = (picked @ sums) / (picked @ lengths)
    usable = tpr + tnr - 1 > 0  # NaN compares false, too
    low, high = np.quantile(_corrected(observed[usable], tpr[usable], tnr[usable]), [0.025, 0.975])
    return Interval(float(low), float(high))
