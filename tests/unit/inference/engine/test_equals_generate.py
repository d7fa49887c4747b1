"""Greedy output is what `generate()` gives, whatever runs beside it and however it was scheduled."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch

from inference_svc.engines.rows.lean import LeanForward
from inference_svc.engines.rows.parameters import RowsParameters
from inference_svc.generation import FinishReason, Sampling

from . import tiny

CASES_PER_SEED = 12
NOISE = 1e-4
"""Float32 logits of these models are of the order of 10; sums taken in another order differ by less than this."""


@dataclass
class Case:
    prompt: list[int]
    count: int
    arrives: int
    cancelled: int | None


def cases(seed: int) -> list[Case]:
    """Short and long prompts, some with a common beginning, arriving one by one, some cancelled on the way."""
    chance = random.Random(seed)
    shared = [chance.randrange(10, tiny.VOCABULARY) for _ in range(chance.choice([40, 70, 130]))]
    made = []
    for _ in range(CASES_PER_SEED):
        length = chance.choice([1, 2, 5, 17, 33, 64, 100, 180])
        prompt = [chance.randrange(10, tiny.VOCABULARY) for _ in range(length)]
        if chance.random() < 0.4:
            prompt = shared + prompt
        made.append(
            Case(
                prompt,
                chance.choice([1, 3, 12, 30]),
                chance.randrange(25),
                chance.randrange(1, 40) if chance.random() < 0.2 else None,
            )
        )
    return made


def play(bench: tiny.Bench, made: list[Case]) -> None:
    """Add and cancel the cases at their steps."""
    step = 0
    while step < 60 or not bench.scheduler.idle:
        for number, case in enumerate(made):
            if case.arrives == step:
                sampling = Sampling(temperature=0, max_output_tokens=case.count, ignore_eos=number % 2 == 0)
                bench.add(str(number), case.prompt, sampling)
            if case.cancelled is not None and step == case.arrives + case.cancelled:
                bench.scheduler.cancel(str(number))
        bench.scheduler.step()
        step += 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_output_equals_generate(family: str, seed: int, record_property) -> None:
    base = tiny.loaded(family, seed)
    parameters = RowsParameters(
        quantization="none", max_rows=5, prefill_tokens=[16, 48, 4096][seed], prefix_cache_tokens=[4096, 96, 0][seed]
    )
    bench = tiny.Bench(base, parameters)
    made = cases(seed)
    play(bench, made)
    ties = 0
    for number, case in enumerate(made):
        name = str(number)
        expected = tiny.generate(base.model, case.prompt, case.count, ignore_eos=number % 2 == 0)
        got = bench.ids(name)
        if bench.end(name).finish_reason is FinishReason.CANCELLED:
            assert case.cancelled is not None
            expected = expected[: len(got)]
        if got != expected:
            assert tiny.is_tie(base.model, case.prompt, expected, got, NOISE), (case, got, expected)
            ties += 1
    record_property("ties", ties)
    assert ties <= 1
    assert not bench.errors


@pytest.mark.parametrize("family", ["llama", "llama-mha", "qwen2", "qwen3"])
def test_known_families_take_the_lean_forward(family: str) -> None:
    scheduler = tiny.Bench(tiny.loaded(family)).scheduler
    assert isinstance(scheduler.forward, LeanForward)


def test_model_forward_and_lean_forward_agree() -> None:
    base = tiny.loaded("llama")
    made = cases(7)
    outputs = []
    for lean in (True, False):
        bench = tiny.Bench(base, RowsParameters(quantization="none", lean=lean, prefill_tokens=64))
        play(bench, made)
        outputs.append([bench.ids(str(number)) for number, case in enumerate(made) if case.cancelled is None])
    assert outputs[0] == outputs[1]


def test_prefix_cache_is_hit_and_changes_nothing() -> None:
    base = tiny.loaded("llama")
    bench = tiny.Bench(base)
    prompt = [11 + n % 300 for n in range(100)]
    for name in ("first", "second"):
        bench.add(name, [*prompt, 20], Sampling(temperature=0, max_output_tokens=8, ignore_eos=True))
        bench.run()
    assert bench.end("first").usage.cached_prompt_tokens == 0
    assert bench.end("second").usage.cached_prompt_tokens == 96
    assert bench.ids("first") == bench.ids("second")


def test_another_root_never_finds_a_prefix() -> None:
    """A new revision of an adapter, or another salt, is another root."""
    bench = tiny.Bench(tiny.loaded("llama"))
    prompt = [11 + n % 300 for n in range(100)]
    for name, root in (("old", (1, "")), ("new", (2, "")), ("salted", (1, "tenant"))):
        bench.add(name, prompt, Sampling(temperature=0, max_output_tokens=2), root=root)
        bench.run()
        assert bench.end(name).usage.cached_prompt_tokens == 0


def test_rows_move_together_when_one_leaves() -> None:
    """After the others end, the last one runs in slot 0 alone, and its output is not touched by the move."""
    base = tiny.loaded("llama")
    bench = tiny.Bench(base)
    for number in range(4):
        bench.add(str(number), [20 + number, 30, 40], Sampling(temperature=0, max_output_tokens=3, ignore_eos=True))
    long = bench.add("long", [50, 60, 70], Sampling(temperature=0, max_output_tokens=20, ignore_eos=True))
    for _ in range(8):
        bench.scheduler.step()
    assert long.slot == 0
    bench.run()
    assert bench.ids("long") == tiny.generate(base.model, [50, 60, 70], 20, ignore_eos=True)


def test_a_step_reads_no_more_prompt_than_allowed() -> None:
    base = tiny.loaded("llama")
    bench = tiny.Bench(base, RowsParameters(quantization="none", prefill_tokens=32, prefix_cache_tokens=0))
    seen = []
    inner = bench.scheduler.forward.prefill

    def prefill(chunk):
        seen.append(chunk.tokens.numel())
        return inner(chunk)

    bench.scheduler.forward.prefill = prefill
    running = bench.add("running", [20], Sampling(temperature=0, max_output_tokens=40, ignore_eos=True))
    bench.scheduler.step()
    bench.add("newcomer", list(range(20, 220)), Sampling(temperature=0, max_output_tokens=2, ignore_eos=True))
    for _ in range(6):
        before = len(running.output)
        bench.scheduler.step()
        assert len(running.output) == before + 1
    bench.run()
    assert max(seen) <= 32
    assert sum(seen) >= 201


def test_torch_is_not_imported_by_the_package() -> None:
    import subprocess
    import sys

    code = "import sys, inference_svc.engines.rows, inference_svc.engines.base; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_threads_are_left_alone_at_import() -> None:
    before = torch.get_num_threads()
    import inference_svc.engines.rows.engine  # noqa: F401

    assert torch.get_num_threads() == before
