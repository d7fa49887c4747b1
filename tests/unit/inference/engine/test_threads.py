"""Threads are chosen by what a step takes on them, and chosen anew when that changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import cycle
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
    assert play(pace, {2: 0.150, 1: 0.015}.__getitem__, 100)[2] <= 8
    assert play(pace, {2: 0.010, 1: 0.015}.__getitem__, 2000)[2] > 1000


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
