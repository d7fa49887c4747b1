"""The counting, against statsmodels, published tables, brute force and properties."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar as oracle_mcnemar
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from eval_svc import statistics as s

counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts)
@settings(max_examples=30, deadline=None)
def test_wilson_agrees_with_statsmodels(case: tuple[int, int]) -> None:
    passed, total = case
    assert s.wilson(passed, total) == pytest.approx(proportion_confint(passed, total, method="wilson"), abs=1e-9)


@pytest.mark.parametrize(
    ("passed", "total", "low", "high"),
    [(18, 20, 0.70, 0.97), (45, 50, 0.79, 0.96), (90, 100, 0.83, 0.94), (180, 200, 0.85, 0.93), (360, 400, 0.87, 0.93)],
)
def test_wilson_table(passed: int, total: int, low: float, high: float) -> None:
    assert s.wilson(passed, total) == pytest.approx((low, high), abs=0.005)


@pytest.mark.parametrize(("total", "bound"), [(30, 0.095), (59, 0.05), (100, 0.03), (300, 0.01)])
def test_zero_failures_bound(total: int, bound: float) -> None:
    assert s.upper_bound_of_zero(total) == pytest.approx(bound, abs=0.001)
    assert s.upper_bound_of_zero(total) == pytest.approx(proportion_confint(0, total, 0.10, method="beta")[1], abs=1e-9)


def test_pass_hat_k_counts_the_subsets() -> None:
    for n, c, k in itertools.product(range(1, 7), range(7), range(1, 7)):
        if c > n or k > n:
            continue
        outcomes = [True] * c + [False] * (n - c)
        subsets = list(itertools.combinations(outcomes, k))
        assert s.pass_hat_k(n, c, k) == pytest.approx(sum(all(x) for x in subsets) / len(subsets))


def test_pass_hat_k_is_unbiased() -> None:
    rng = random.Random(5)
    drawn = [sum(rng.random() < 0.8 for _ in range(6)) for _ in range(20_000)]
    assert sum(s.pass_hat_k(6, c, 3) for c in drawn) / len(drawn) == pytest.approx(0.8**3, abs=0.01)


@given(st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=40, deadline=None)
def test_mcnemar_agrees_with_statsmodels(fixed: int, broken: int) -> None:
    expected = 1.0 if fixed + broken == 0 else oracle_mcnemar([[3, fixed], [broken, 4]], exact=True).pvalue
    assert s.mcnemar(fixed, broken) == pytest.approx(expected)


@pytest.mark.parametrize(("fixed", "broken"), [(6, 0), (8, 1), (10, 2), (12, 3)])
def test_smallest_significant_tables(fixed: int, broken: int) -> None:
    assert s.mcnemar(fixed, broken) < 0.05
    assert s.mcnemar(fixed - 1, broken) >= 0.05


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=30, deadline=None)
def test_holm_agrees_with_statsmodels(p_values: list[float]) -> None:
    assert s.holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=60))
@settings(max_examples=30, deadline=None)
def test_kappa_agrees_with_statsmodels(pairs: list[tuple[int, int]]) -> None:
    table = np.zeros((3, 3))
    for a, b in pairs:
        table[a, b] += 1
    found = s.kappa(pairs)
    if found is None:
        assert len({label for pair in pairs for label in pair}) == 1
    else:
        assert found == pytest.approx(cohens_kappa(table, return_results=False))


def test_ninety_percent_agreement_can_be_a_poor_kappa() -> None:
    pairs = [("pass", "pass")] * 88 + [("fail", "fail")] * 2 + [("pass", "fail")] * 5 + [("fail", "pass")] * 5
    assert s.kappa(pairs) == pytest.approx(0.23, abs=0.01)


def test_the_bootstrap_resamples_clusters_and_not_trials() -> None:
    rng = np.random.default_rng(1)
    chances = rng.beta(2, 1, size=40)
    rates = [rng.binomial(10, p) / 10 for p in chances]
    low, high = s.cluster_bootstrap(rates)
    naive = s.wilson(round(sum(rates) * 10), 400)
    assert high - low > 1.4 * (naive.high - naive.low)


def test_the_bootstrap_agrees_with_the_normal_approximation_where_that_holds() -> None:
    values = np.random.default_rng(2).normal(0.1, 0.4, size=400)
    low, high = s.cluster_bootstrap(list(values))
    half = 1.96 * values.std() / math.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.004)


def test_the_bootstrap_is_seeded_and_fast() -> None:
    values = [float(i % 3 == 0) for i in range(100)]
    assert s.cluster_bootstrap(values) == s.cluster_bootstrap(list(values))


def test_named_clusters_are_drawn_together() -> None:
    values = [1.0] * 50 + [0.0] * 50
    alone = s.cluster_bootstrap(values)
    together = s.cluster_bootstrap(values, [f"c{i // 10}" for i in range(100)])
    assert together.high - together.low > 2 * (alone.high - alone.low)
    assert together.low <= 0.5 <= together.high


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
@settings(max_examples=40, deadline=None)
def test_an_interval_holds_the_mean(rates: list[float]) -> None:
    low, high = s.rate_interval(rates)
    assert 0 <= low <= high <= 1
    if max(rates) > min(rates):
        assert low - 1e-9 <= sum(rates) / len(rates) <= high + 1e-9


def test_a_perfect_score_is_not_certain() -> None:
    assert s.rate_interval([1.0] * 40) == s.wilson(40, 40)
    assert s.rate_interval([]) == (0.0, 1.0)


@pytest.mark.parametrize(("scenarios", "difference"), [(40, 0.2), (100, 0.12), (160, 0.1)])
def test_power_agrees_with_simulation(scenarios: int, difference: float) -> None:
    rng = np.random.default_rng(3)
    fixed_share = (0.2 + difference) / 2
    hits = 0
    for _ in range(3000):
        drawn = rng.multinomial(scenarios, [fixed_share, 0.2 - fixed_share, 0.8])
        hits += s.mcnemar(int(drawn[0]), int(drawn[1])) < 0.05 and drawn[0] > drawn[1]
    assert s.mcnemar_power(scenarios, difference) == pytest.approx(hits / 3000, abs=0.03)


def test_needed_scenarios_have_the_power_and_fewer_do_not() -> None:
    for difference in (0.2, 0.15, 0.1):
        needed = s.scenarios_needed(difference)
        assert s.mcnemar_power(needed, difference) >= 0.8
        assert s.mcnemar_power(int(needed * 0.93), difference) < 0.8
    assert s.scenarios_needed(0.0) == 0
    assert s.scenarios_needed(-0.1) == s.scenarios_needed(0.1)


def test_the_detectable_difference_shrinks_with_scenarios() -> None:
    found = [s.detectable_difference(n) for n in (5, 10, 20, 40, 100, 200)]
    assert found[0] == 1.0
    assert found == sorted(found, reverse=True)
    assert s.mcnemar_power(100, s.detectable_difference(100)) == pytest.approx(0.8, abs=0.03)


def test_the_difference_of_p95_is_seen() -> None:
    rng = np.random.default_rng(4)
    slow = [list(rng.exponential(300, 6)) for _ in range(60)]
    fast = [list(rng.exponential(100, 6)) for _ in range(60)]
    low, high = s.bootstrap_percentile_difference(slow, fast)
    assert 300 < low < high < 900
    same = s.bootstrap_percentile_difference(slow, [list(v) for v in slow])
    assert same == (0.0, 0.0)


def test_percentiles_interpolate() -> None:
    assert s.percentile([1, 2, 3, 4], 0.5) == 2.5
    assert s.percentile([], 0.5) == 0.0
