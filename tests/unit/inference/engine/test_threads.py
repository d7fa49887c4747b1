"""Threads are chosen by what a step takes on them, and chosen anew when that changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from inference_svc.engines.rows.threads import LONG_STEP, Pace


def play(pace: Pace, seconds: Callable[[int], float], steps: int) -> Counter[int]:
    chosen: Counter[int] = Counter()
    for _ in range(steps):
        threads = pace.choose()
        chosen[threads] += 1
        pace.took(threads, seconds(threads))
    return chosen


def test_the_faster_number_is_taken_and_trying_costs_little() -> None:
    chosen = play(Pace(2), {2: 0.010, 1: 0.015}.__getitem__, 1000)
    assert chosen[2] > 960
    chosen = play(Pace(2), {2: 0.200, 1: 0.010}.__getitem__, 1000)
    assert chosen[1] > 990


def test_the_first_step_does_not_count() -> None:
    times = iter([5.0, 0.010, 0.015, 0.015])
    pace = Pace(2)
    play(pace, lambda threads: next(times), 4)
    assert pace.choose() == 2


def test_it_follows_what_else_the_machine_does() -> None:
    pace = Pace(2)
    play(pace, {2: 0.010, 1: 0.015}.__getitem__, 100)
    assert play(pace, {2: 0.150, 1: 0.015}.__getitem__, 100)[2] <= 4
    assert play(pace, {2: 0.010, 1: 0.015}.__getitem__, 2000)[2] > 1000


def test_long_steps_on_many_cores_are_never_tried_on_one() -> None:
    assert set(play(Pace(16), lambda threads: 4 * LONG_STEP / threads**0.5, 2000)) == {16, 8}
    assert set(play(Pace(16), lambda threads: 0.001, 2000)) == {16, 8, 1}
