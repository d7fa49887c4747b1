"""Threads are chosen by what a step takes on them, and chosen anew when that changes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import chain, cycle, repeat
from pathlib import Path

import pytest
import torch

from inference_svc.engines.rows import loading, steps
from inference_svc.engines.rows.forward import Prefill
from inference_svc.engines.rows.parameters import RowsParameters
from inference_svc.engines.rows.threads import LONG_STEP, Pace


def play(pace: Pace, seconds: Callable[[int], float], steps: int) -> Counter[int]:
    chosen: Counter[int] = Counter()
    for _ in range(steps):
        threads = pace.choose()
        chosen[threads] += 1
        pace.took(threads, seconds(threads))
    return chosen


def test_the_faster_number_is_taken_and_trying_costs_little() -> None:
    for slower, seconds in (1, {2: 0.010, 1: 0.015}), (2, {2: 0.200, 1: 0.010}):
        pace = Pace(2)
        assert play(pace, seconds.__getitem__, 250)[slower] < 20
        assert play(pace, seconds.__getitem__, 1000)[slower] < 40 * seconds[3 - slower] / seconds[slower] + 1


def test_the_first_step_does_not_count() -> None:
    times = iter([5.0, 0.010, 0.015, 0.015])
    pace = Pace(2)
    play(pace, lambda threads: next(times), 4)
    assert pace.choose() == 2


def test_it_follows_what_else_the_machine_does() -> None:
    pace = Pace(2)
    play(pace, {2: 0.010, 1: 0.015}.__getitem__, 100)
    assert play(pace, {2: 0.150, 1: 0.015}.__getitem__, 100)[2] <= 8
    assert play(pace, {2: 0.010, 1: 0.015}.__getitem__, 2000)[2] > 1000


def test_one_bad_moment_is_soon_forgotten() -> None:
    pace = Pace(2)
    play(pace, {2: 0.010, 1: 0.015}.__getitem__, 100)
    play(pace, {2: 0.150, 1: 0.015}.__getitem__, 40)
    assert play(pace, {2: 0.010, 1: 0.015}.__getitem__, 300)[2] > 200


def test_a_bad_start_is_soon_forgotten() -> None:
    times = chain([5.0, 0.150], repeat(0.010))
    pace = Pace(2)
    assert play(pace, lambda threads: next(times) if threads == 2 else 0.015, 300)[2] > 150


def test_a_disturbed_step_at_the_start_rules_no_number_out() -> None:
    steps = iter([5.0, 0.010, 0.012, 1.0])
    chosen = play(Pace(4), lambda threads: next(steps, 0.010 if threads == 1 else 0.020), 500)
    assert chosen[1] > 400


def test_a_number_that_is_quicker_half_of_the_time_and_slower_on_the_whole_is_left_alone() -> None:
    pace, chance, spent = Pace(2), random.Random(5), 0.0

    def seconds(threads: int) -> float:
        nonlocal spent
        spent += (taken := 0.015 if threads == 1 else chance.choice((0.010, 0.060)))
        return taken

    play(pace, seconds, 4000)
    assert spent < 1.1 * 4000 * 0.015


@pytest.mark.parametrize(("disturbed", "every"), [(0.011, 24), (0.06, 100)])
def test_steps_that_are_disturbed_now_and_then_stay_on_the_number_that_is_faster_on_the_whole(
    disturbed: float, every: int
) -> None:
    pace = Pace(2)
    times = cycle([0.003] * (every - 1) + [disturbed])
    chosen = play(pace, lambda threads: next(times) if threads == 2 else 0.0046, 2400)
    assert chosen[2] > 2250


def test_long_steps_on_many_cores_are_never_tried_on_one() -> None:
    assert set(play(Pace(16), lambda threads: 4 * LONG_STEP / threads**0.5, 2000)) == {16, 8}
    assert set(play(Pace(16), lambda threads: 0.001, 2000)) == {16, 8, 1}


@pytest.mark.parametrize("lean", [True, False])
def test_any_number_gives_the_same_up_to_rounding(folder: Path, lean: bool) -> None:
    parameters = RowsParameters(quantization="none", dtype="float32", device="cpu", lean=lean)
    forward, store = steps.choose_forward(loading.load(folder, parameters), parameters)
    store.reserve(32, 64)
    before = torch.get_num_threads()
    seen = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            with torch.inference_mode():
                chunk = Prefill(list(range(32)), torch.arange(32 * 30).view(32, 30) % 50, 0, torch.full((32,), 29))
                first = forward.prefill(chunk)
                seen.append((first, forward.decode(first.argmax(-1), torch.full((32,), 30), 31, None)))
    finally:
        torch.set_num_threads(before)
    for other in seen[1:]:
        assert all((one - two).abs().max() < 1e-5 for one, two in zip(seen[0], other, strict=True))
