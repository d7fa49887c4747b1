"""Agreement against published tables and statsmodels, and what the corrected rate must obey."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.inter_rater import cohens_kappa

from eval_svc.people.agreement import Judged, agree, calibrate, kappa_interval

CELLS = [("pass", "pass"), ("pass", "fail"), ("fail", "pass"), ("fail", "fail")]
Counts = tuple[int, int, int, int]
counts = st.tuples(*[st.integers(0, 60)] * 4)


def pairs(table: Counts) -> list[tuple[str, str]]:
    return [cell for cell, count in zip(CELLS, table, strict=True) for _ in range(count)]


@pytest.mark.parametrize(
    ("table", "published"),
    [
        ((20, 5, 10, 15), 0.40),  # Cohen's example as told everywhere (Kilem Gwet's handbook, and many courses)
        ((45, 15, 25, 15), 0.1304),  # same raw agreement of 0.60 in both of these (Bakeman and Gottman 1997)
        ((25, 35, 5, 35), 0.2593),
        ((118, 5, 2, 0), -0.0234),  # high agreement, rare failures: kappa says there is none (Viera and Garrett 2005)
    ],
)
def test_kappa_is_that_of_published_tables(table: Counts, published: float) -> None:
    assert agree(pairs(table)).kappa == pytest.approx(published, abs=1e-3)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(counts)
def test_kappa_is_that_of_statsmodels(table: Counts) -> None:
    found = agree(pairs(table), resamples=50)  # type: ignore[arg-type]
    both = sum(table)
    assert found.items == both
    if found.kappa is None:
        one_answer = table in ((table[0], 0, 0, 0), (0, 0, 0, table[3]))
        assert one_answer
    else:
        oracle = cohens_kappa(np.array([table[:2], table[2:]]))
        assert found.kappa == pytest.approx(oracle.kappa, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(counts)
def test_kappa_does_not_care_who_is_first(table: Counts) -> None:
    turned = (table[0], table[2], table[1], table[3])
    one, two = agree(pairs(table), 50), agree(pairs(turned), 50)  # type: ignore[arg-type]
    assert one.kappa == pytest.approx(two.kappa, abs=1e-12) if one.kappa is not None else two.kappa is None


def test_the_interval_of_kappa_is_near_the_large_sample_one() -> None:
    table = (40, 5, 5, 50)
    oracle = cohens_kappa(np.array([table[:2], table[2:]]))
    found = kappa_interval(table)
    assert found is not None
    assert found.low == pytest.approx(oracle.kappa_low, abs=0.03)
    assert found.high == pytest.approx(oracle.kappa_upp, abs=0.03)
    assert kappa_interval((2, 0, 0, 2)) is None, "four items say nothing about the spread"


def test_who_can_not_tell_counts_nowhere_but_is_told() -> None:
    found = agree([("pass", "pass"), ("cannot_assess", "fail"), ("pass", "cannot_assess")])
    assert (found.items, found.not_assessed, found.kappa) == (1, 2, None)


def judged(stratum: str, table: Counts) -> list[Judged]:
    return [Judged(stratum, a == "pass", b == "pass") for a, b in pairs(table)]


def test_the_corrected_rate_undoes_a_kind_judge() -> None:
    # a judge of 0.96/0.25 reports 89.7% where 70% pass (reference, section 2)
    sample = judged("pass", (96, 75, 0, 0)) + judged("fail", (0, 0, 4, 25))
    found = calibrate(sample, {"pass": 171, "fail": 29}, {f"s{i}": [0.897] for i in range(40)})
    assert found.tpr == pytest.approx(0.96)
    assert found.tnr == pytest.approx(0.25)
    assert found.observed == pytest.approx(0.897)
    assert found.rate == pytest.approx(0.70, abs=0.001)
    assert found.interval is not None
    assert found.interval.low < 0.70 < found.interval.high


def test_strata_count_by_their_size_in_the_evaluation_and_not_in_the_sample() -> None:
    # all 20 failures are labelled and only 20 of 180 passes: unweighted, the machine would seem to miss half
    sample = judged("pass", (18, 2, 0, 0)) + judged("fail", (0, 0, 2, 18))
    found = calibrate(sample, {"pass": 180, "fail": 20}, None)
    assert found.tpr == pytest.approx(162 / 164)
    assert found.tnr == pytest.approx(18 / 36)


@pytest.mark.parametrize(
    ("sample", "population", "told"),
    [
        (judged("pass", (60, 10, 0, 0)), {"pass": 70}, "40 more that people fail"),
        (judged("pass", (49, 0, 0, 60)), {"pass": 109}, "1 more that people pass"),
        (judged("pass", (60, 60, 60, 60)), {"pass": 240}, "hardly better than chance"),
        (judged("pass", (60, 60, 0, 0)), {"pass": 200, "critical": 5}, "no label yet of a part"),
        ([], {}, "still missing"),
    ],
)
def test_without_enough_labels_there_is_no_corrected_rate_and_it_says_why(
    sample: list[Judged], population: dict[str, int], told: str
) -> None:
    found = calibrate(sample, population, {"s": [0.9], "t": [0.5]})
    assert found.rate is None
    assert told in found.note


@settings(max_examples=25, deadline=None)
@given(st.integers(50, 200), st.integers(50, 200), st.lists(st.floats(0, 1), min_size=3, max_size=12))
def test_a_machine_that_is_always_right_is_left_as_it_is(good: int, bad: int, rates: list[float]) -> None:
    sample = judged("pass", (good, 0, 0, 0)) + judged("fail", (0, 0, 0, bad))
    found = calibrate(sample, {"pass": good, "fail": bad}, {str(i): [r] for i, r in enumerate(rates)}, resamples=500)
    assert found.rate == pytest.approx(sum(rates) / len(rates))
    assert found.interval is not None
    assert 0 <= found.interval.low <= found.interval.high <= 1


def test_the_interval_of_the_corrected_rate_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    tpr, tnr, truth, held, runs = 0.9, 0.7, 0.6, 0, 40
    for _ in range(runs):
        human = rng.random(400) < truth
        machine = np.where(human, rng.random(400) < tpr, rng.random(400) >= tnr)
        sample = [
            Judged("pass" if m else "fail", bool(m), bool(h)) for m, h in zip(machine[:240], human[:240], strict=True)
        ]
        sizes = {"pass": int(machine[:240].sum()), "fail": int((~machine[:240]).sum())}
        found = calibrate(sample, sizes, {str(i): [float(m)] for i, m in enumerate(machine[240:])}, resamples=400)
        assert found.interval is not None
        held += found.interval.low <= truth <= found.interval.high
    assert held >= 34  # 95% of 40 is 38; fewer than 34 has a chance below 1%
