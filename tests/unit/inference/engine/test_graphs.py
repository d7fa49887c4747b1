"""Steps of fixed shapes give what `generate()` gives. Here they run without graphs; `test_cuda` captures them."""

from __future__ import annotations

import pytest
import torch

from inference_svc.engines.rows.adapters import read_adapter
from inference_svc.engines.rows.graphs import GraphedForward, columns_covered, rows_covered
from inference_svc.engines.rows.parameters import RowsParameters
from inference_svc.generation import FinishReason, Sampling

from . import tiny
from .test_adapters import SHAPES, save_adapter
from .test_equals_generate import NOISE, cases, play


def sampling() -> Sampling:
    return Sampling(temperature=0, max_output_tokens=8, ignore_eos=True)


def graphed(bench: tiny.Bench) -> GraphedForward:
    """Put the fixed shapes in front of the bench's forward."""
    scheduler = bench.scheduler
    scheduler.forward = made = GraphedForward(scheduler.forward, scheduler._store, capture=False)
    return made


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_output_equals_generate(family: str, record_property) -> None:
    base = tiny.loaded(family, 5)
    bench = tiny.Bench(base, RowsParameters(quantization="none", max_rows=11, prefill_tokens=48))
    graphed(bench)
    made = cases(5)
    play(bench, made)
    ties = 0
    for number, case in enumerate(made):
        expected = tiny.generate(base.model, case.prompt, case.count, ignore_eos=number % 2 == 0)
        got = bench.ids(str(number))
        if bench.end(str(number)).finish_reason is FinishReason.CANCELLED:
            expected = expected[: len(got)]
        if got != expected:
            assert tiny.is_tie(base.model, case.prompt, expected, got, NOISE), (case, got, expected)
            ties += 1
    record_property("ties", ties)
    assert ties <= 1
    assert not bench.errors


@pytest.mark.parametrize("lean", [True, False])
def test_adapters_that_come_and_go_are_never_mixed_up(tmp_path, lean: bool) -> None:
    """Whatever stack and mask a shape was first met with, each row gets its own adapter's part."""
    # A model of its own: its forward keeps the hooks for adapters.
    bench = tiny.Bench(tiny.loaded("llama", 6), RowsParameters(quantization="none", max_rows=9, lean=lean))
    forward = graphed(bench)
    bank = bench.scheduler.bank
    names = ["plain", "wide", "part"]
    places = [0]
    for seed, name in enumerate(names):
        path = save_adapter(tmp_path / name, "llama", seed, **dict(SHAPES[name]))
        places.append(bank.put(read_adapter(path, bank.shapes, bank.device)))
    alone = {}
    for place in places:
        bench.add(f"alone {place}", [20, 30, 40], sampling(), adapter=place)
        bench.run()
        alone[place] = bench.ids(f"alone {place}")
    assert len(set(map(tuple, alone.values()))) == 4
    rounds = [(1,), (1, 1, 1), (0, 1), (1, 2, 3, 0, 1), (3, 2), (0, 0), (2, 2), (1, 2, 3, 0, 2, 3)]
    for number, batch in enumerate(rounds * 2):
        for row, place in enumerate(batch):
            bench.add(f"{number} {row}", [20, 30, 40], sampling(), adapter=places[place])
        bench.run()
        for row, place in enumerate(batch):
            assert bench.ids(f"{number} {row}") == alone[places[place]], (number, row)
    assert len({id(step.mix.stack) for step in forward._steps.values() if step.mix is not None}) == 1


def test_shapes_are_forgotten_when_the_store_moves() -> None:
    base = tiny.loaded("llama")
    bench = tiny.Bench(base, RowsParameters(quantization="none", max_rows=20))
    forward = graphed(bench)
    bench.add("first", [20, 30, 40], sampling())
    bench.run()
    assert [key[:2] for key in forward._steps] == [(1, 128)]
    prompts = [[20 + n, 30, 40] for n in range(12)]
    for number, prompt in enumerate(prompts):
        bench.add(str(number), prompt, sampling())
    bench.run()
    assert {key[:2] for key in forward._steps} == {(16, 128)}
    for number, prompt in enumerate(prompts):
        assert bench.ids(str(number)) == tiny.generate(base.model, prompt, 8, ignore_eos=True)


def test_a_step_that_cannot_be_captured_runs_as_it_is(caplog) -> None:
    """Without CUDA each capture fails: that is said once, and nothing else changes."""
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    base = tiny.loaded("llama")
    bench = tiny.Bench(base, RowsParameters(quantization="none"))
    forward = graphed(bench)
    forward._capture = True
    for number in range(2):
        bench.add(str(number), [20, 30, 40], sampling())
        bench.run()
        assert bench.ids(str(number)) == tiny.generate(base.model, [20, 30, 40], 8, ignore_eos=True)
    assert forward.captured == forward.replays == 0
    assert sum("CUDA graphs" in record.message for record in caplog.records) == 1


def test_sizes() -> None:
    assert [rows_covered(n, 60) for n in (1, 2, 3, 5, 8, 9, 33, 57, 60)] == [1, 2, 4, 8, 8, 16, 40, 60, 60]
    assert [columns_covered(n, 5000) for n in (1, 128, 129, 1000, 1024, 1025, 2049, 4999)] == [
        128, 128, 256, 1024, 1024, 1280, 2560, 5000,
    ]  # fmt: skip
    for width in range(1, 9000):
        assert width <= columns_covered(width, 10_000) <= max(width + 127, 1.25 * width + 1)
