"""The counting: intervals, pass^k, cluster bootstrap, McNemar, Holm, and how many scenarios a claim needs.

Pure functions on numbers. scipy does what it can; nothing here knows scenarios, models or verdicts. Trials of one
scenario are not independent, so whatever is said about a run resamples scenarios, never trials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 10_000
POWER = 0.80
DISCORDANT = 0.20
"""Share of scenarios on which two models differ, where nothing better is known."""

_BOOTSTRAP_SEED = 20_260_301
_CELLS = 1_000_000


class Interval(NamedTuple):
    """An interval of confidence."""

    low: float
    high: float


def wilson(passed: int, total: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson score interval of a proportion; (0, 1) without any observation."""
    if not 0 <= passed <= total:
        raise ValueError(f"passed must be from 0 to {total}, not {passed}")
    if total == 0:
        return Interval(0.0, 1.0)
    found = stats.binomtest(passed, total).proportion_ci(confidence, method="wilson")
    return Interval(float(found.low), float(found.high))


def upper_bound_of_zero(total: int, confidence: float = CONFIDENCE) -> float:
    """Exact one-sided upper bound of a rate of which `total` tries showed no case: 300 clean tries bound it by 1%."""
    return 1.0 if total == 0 else float(1 - (1 - confidence) ** (1 / total))


def pass_hat_k(trials: int, passed: int, k: int) -> float:
    """Unbiased estimate that k trials of one scenario all pass: C(passed, k) / C(trials, k) (arXiv 2406.12045)."""
    if not 1 <= k <= trials:
        raise ValueError(f"k must be from 1 to {trials}, not {k}")
    return math.comb(passed, k) / math.comb(trials, k)


def cluster_bootstrap(
    values: Sequence[float],
    clusters: Sequence[str] | None = None,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = _BOOTSTRAP_SEED,
) -> Interval:
    """Percentile interval of the mean over clusters.

    Args:
        values: one value per scenario, for instance its pass rate or the difference between two models on it.
        clusters: which scenarios belong together and are drawn together, such as turns of one real conversation; None:
            each stands for itself.

    Fewer than two clusters tell nothing about the spread: the interval is then unbounded (-inf, inf). Clusters that are
    all alike show none either: the interval is then a point, and only their number says how far to trust it.
    """
    sums, sizes = _grouped(values, clusters)
    if sums.size < 2:
        return Interval(-math.inf, math.inf)
    rng = np.random.default_rng(seed)
    means: list[NDArray[np.float64]] = []
    rows = max(1, _CELLS // sums.size)  # bounds the memory for suites of thousands
    for done in range(0, resamples, rows):
        drawn = rng.integers(0, sums.size, (min(rows, resamples - done), sums.size), dtype=np.int32)
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def _grouped(
    values: Sequence[float], clusters: Sequence[str] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and size of each cluster, in order of first appearance."""
    data: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    if clusters is None:
        return data, np.ones(data.size)
    places = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    index = np.array([places[name] for name in clusters], dtype=np.int64)
    sums = np.bincount(index, weights=data, minlength=len(places)).astype(np.float64)
    return sums, np.bincount(index, minlength=len(places)).astype(np.float64)


def rate_interval(rates: Sequence[float], clusters: Sequence[str] | None = None) -> Interval:
    """Interval of a pass rate from one rate per scenario, within 0 and 1.

    Where all scenarios agree, resampling shows no spread at all; Wilson over scenarios then says what so few can tell.
    """
    if not rates:
        return Interval(0.0, 1.0)
    if len(rates) < 2 or max(rates) == min(rates):
        return wilson(round(sum(rates)), len(rates))
    found = cluster_bootstrap(rates, clusters)
    if math.isinf(found.low):
        return Interval(0.0, 1.0)
    return Interval(max(0.0, found.low), min(1.0, found.high))


def bootstrap_percentile_difference(
    candidate: Sequence[Sequence[float]],
    baseline: Sequence[Sequence[float]],
    quantile: float = 0.95,
    *,
    resamples: int = 1000,
    seed: int = _BOOTSTRAP_SEED,
) -> Interval:
    """Interval of the difference of a latency percentile; scenarios are resampled, paired by position."""
    if len(candidate) != len(baseline) or len(candidate) < 2:
        return Interval(-math.inf, math.inf)
    rng = np.random.default_rng(seed)
    left = [np.asarray(v, dtype=np.float64) for v in candidate]
    right = [np.asarray(v, dtype=np.float64) for v in baseline]
    found = []
    for _ in range(resamples):
        drawn = rng.integers(0, len(left), len(left))
        a, b = np.concatenate([left[i] for i in drawn]), np.concatenate([right[i] for i in drawn])
        if a.size and b.size:
            found.append(np.quantile(a, quantile) - np.quantile(b, quantile))
    if not found:
        return Interval(-math.inf, math.inf)
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(float(low), float(high))


@lru_cache(maxsize=4096)
def mcnemar(fixed: int, broken: int) -> float:
    """Two-sided exact p-value that as many scenarios were fixed as broken; 1 if none changed."""
    return 1.0 if fixed + broken == 0 else float(stats.binomtest(fixed, fixed + broken, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given; none above 1."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def mcnemar_power(scenarios: int, difference: float, discordant: float = DISCORDANT, alpha: float = 0.05) -> float:
    """Chance that the exact test shows a true difference, over the number of discordant scenarios there may be.

    Args:
        difference: share fixed minus share broken, 0 to `discordant`.
        discordant: share of scenarios whose verdict changes either way.
    """
    discordant = max(discordant, difference)
    if difference <= 0 or scenarios == 0:
        return 0.0
    share_fixed = (discordant + difference) / 2 / discordant
    low, high = stats.binom.ppf([1e-6, 1 - 1e-6], scenarios, discordant)
    counts = np.arange(max(int(low), 1), int(high) + 1)
    # the largest number of broken ones with which so many changes are still significant
    limit = stats.binom.ppf(alpha / 2, counts, 0.5)
    limit = np.where(2 * stats.binom.cdf(limit, counts, 0.5) <= alpha, limit, limit - 1)
    shown = np.where(limit >= 0, stats.binom.cdf(limit, counts, 1 - share_fixed), 0.0)
    return float(np.sum(stats.binom.pmf(counts, scenarios, discordant) * shown))


@lru_cache(maxsize=256)
def scenarios_needed(difference: float, discordant: float = DISCORDANT, power: float = POWER) -> int:
    """How many scenarios show such a difference with such a power; 0 if the difference is 0, which none can show."""
    size = abs(difference)
    if size < 1e-9:
        return 0
    discordant = max(discordant, size)
    # normal approximation (Connor 1987) as the starting point, then the exact power decides
    z = stats.norm.ppf(0.975) * math.sqrt(discordant) + stats.norm.ppf(power) * math.sqrt(max(discordant - size**2, 0))
    guess = max(6, math.ceil(float(z / size) ** 2))
    if guess > 2000:
        return guess
    low, high = max(5, guess // 2), guess * 2
    while mcnemar_power(high, size, discordant) < power:
        high *= 2
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        if mcnemar_power(middle, size, discordant) >= power:
            high = middle
        else:
            low = middle
    return high


@lru_cache(maxsize=256)
def detectable_difference(scenarios: int, discordant: float = DISCORDANT, power: float = POWER) -> float:
    """The smallest difference that so many scenarios show with such a power, to a point; 1 if they can't show any."""
    if scenarios < 6 or mcnemar_power(scenarios, 1.0, 1.0) < power:
        return 1.0
    low, high = 0.0, 1.0
    while high - low > 0.005:
        middle = (low + high) / 2
        if mcnemar_power(scenarios, middle, discordant) >= power:
            high = middle
        else:
            low = middle
    return high


def kappa(pairs: Sequence[tuple[object, object]]) -> float | None:
    """Cohen's kappa of two raters on the same items; None without items, or if both give one label throughout."""
    if not pairs:
        return None
    labels = sorted({label for pair in pairs for label in pair}, key=str)
    n = len(pairs)
    observed = sum(1 for a, b in pairs if a == b) / n
    expected = sum(sum(a == x for a, _ in pairs) * sum(b == x for _, b in pairs) for x in labels) / n**2
    return None if expected >= 1 else (observed - expected) / (1 - expected)


def percentile(values: Sequence[float], quantile: float) -> float:
    """Linear-interpolated percentile; 0 without values."""
    return float(np.quantile(np.asarray(values, dtype=np.float64), quantile)) if values else 0.0
