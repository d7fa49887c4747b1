"""The engine on CUDA: what `generate()` gives there, with graphs and without, and nothing kept after a cancel."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from inference_svc.engines.base import AdapterSpec, BaseInfo, BaseSpec
from inference_svc.engines.rows import loading
from inference_svc.engines.rows.adapters import read_adapter
from inference_svc.engines.rows.engine import RowsEngine
from inference_svc.engines.rows.graphs import GraphedForward
from inference_svc.engines.rows.lean import LeanForward
from inference_svc.engines.rows.parameters import RowsParameters
from inference_svc.generation import AdapterKey, FinishReason, Sampling

from . import tiny
from .streams import LONG, first_delta, read, request
from .test_equals_generate import cases, play

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
NOISE = {"float32": 1e-3, "bfloat16": 0.25}
"""Sums are taken in another order than `generate()` takes them; logits are of the order of 10."""
GREEDY = Sampling(temperature=0, max_output_tokens=12, ignore_eos=True)


def on_cuda(family: str, dtype: str) -> loading.Loaded:
    made = tiny.model.__wrapped__(family).to("cuda", getattr(torch, dtype))
    info = BaseInfo(context_length=tiny.CONTEXT, vocabulary_size=tiny.VOCABULARY, end_token_ids=(2,))
    return loading.Loaded(made, tiny.tokenizer(), info)


def check(base, prompt: list[int], expected: list[int], got: list[int], noise: float) -> int:
    """1 if the two part at a tie, 0 if they are equal."""
    if got == expected:
        return 0
    assert tiny.is_tie(base, prompt, expected, got, noise), (prompt, expected, got)
    return 1


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt-neox"])
def test_output_equals_generate(family: str, dtype: str, graphs: bool, record_property) -> None:
    base = on_cuda(family, dtype)
    made = [case for case in cases(3) if case.cancelled is None]
    expected = [
        tiny.generate(base.model, case.prompt, case.count, ignore_eos=n % 2 == 0) for n, case in enumerate(made)
    ]
    bench = tiny.Bench(base, RowsParameters(quantization="none", max_rows=5, prefill_tokens=48, graphs=graphs))
    play(bench, made)
    assert not bench.errors
    forward = bench.scheduler.forward
    assert isinstance(forward, GraphedForward) is graphs
    if isinstance(forward, GraphedForward):
        assert forward.captured
        assert forward.replays
        forward = forward.inner
    assert isinstance(forward, LeanForward) is (family in ("llama", "qwen3"))
    bench.scheduler.forward = None
    ties = sum(
        check(base.model, case.prompt, wanted, bench.ids(str(number)), NOISE[dtype])
        for number, (case, wanted) in enumerate(zip(made, expected, strict=True))
    )
    record_property("ties", ties)
    assert ties <= (1 if dtype == "float32" else len(made) // 2)


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mixed_adapters_give_what_peft_gives(adapter_folders: dict[str, Path], dtype: str, graphs: bool) -> None:
    prompts = [[20 + n, 30, 40] * (n + 1) for n in range(3)]
    expected = {0: [tiny.generate(on_cuda("llama", dtype).model, prompt, 12, ignore_eos=True) for prompt in prompts]}
    judges = {0: on_cuda("llama", dtype).model}
    bench = tiny.Bench(on_cuda("llama", dtype), RowsParameters(quantization="none", max_rows=9, graphs=graphs))
    bank = bench.scheduler.bank
    for path in adapter_folders.values():
        place = bank.put(read_adapter(path, bank.shapes, bank.device))
        judges[place] = PeftModel.from_pretrained(on_cuda("llama", dtype).model, path).eval()
        expected[place] = [tiny.generate(judges[place], prompt, 12, ignore_eos=True) for prompt in prompts]
    for turn in range(2):
        for place in expected:
            for number, prompt in enumerate(prompts):
                bench.add(f"{turn} {place} {number}", prompt, GREEDY, adapter=place, root=(place, str(turn)))
        bench.run()
    assert not bench.errors
    if graphs:
        assert bench.scheduler.forward.replays
    ties = 0
    for turn in range(2):
        for place, wanted in expected.items():
            for number, prompt in enumerate(prompts):
                got = bench.ids(f"{turn} {place} {number}")
                ties += check(judges[place], prompt, wanted[number], got, NOISE[dtype])
    assert ties <= (1 if dtype == "float32" else 9)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantised_bases_serve(folder: Path, quantization: str) -> None:
    parameters = RowsParameters(
        quantization=quantization, smallest_quantized_mib=0, dtype="bfloat16", device="cuda", max_rows=4
    )
    base = loading.load(folder, parameters)
    assert base.info.quantisation == quantization
    assert base.info.device == "cuda"
    prompts = [[20 + n, 30, 40] * (n + 1) for n in range(4)]
    expected = [tiny.generate(base.model, prompt, 12, ignore_eos=True) for prompt in prompts]
    bench = tiny.Bench(base, parameters)
    for number, prompt in enumerate(prompts):
        bench.add(str(number), prompt, GREEDY)
    bench.run()
    assert not bench.errors
    assert isinstance(bench.scheduler.forward, GraphedForward) is (quantization == "nf4")
    if quantization == "nf4":
        assert bench.scheduler.forward.captured
    bench.scheduler.forward = None
    for number, prompt in enumerate(prompts):
        check(base.model, prompt, expected[number], bench.ids(str(number)), 0.5)


@pytest.mark.parametrize("graphs", [True, False])
def test_a_cancel_frees_the_row_and_adapters_load_meanwhile(
    folder: Path, adapter_folders: dict[str, Path], graphs: bool
) -> None:
    async def scenario() -> None:
        engine = RowsEngine(
            RowsParameters(quantization="none", max_rows=4, max_waiting=4, device="cuda", graphs=graphs)
        )
        info = await engine.load_base(BaseSpec("tiny", "1", folder))
        assert info.device == "cuda"
        streams = [await engine.submit(request(str(n), LONG)) for n in range(3)]
        for stream in streams:
            await first_delta(stream)
        for name, path in adapter_folders.items():
            await engine.load_adapter(AdapterSpec(AdapterKey("a", name), path))
        streams[1].cancel()
        *_, last = [event async for event in streams[1]]
        assert last.finish_reason is FinishReason.CANCELLED
        assert engine.load().running == 2
        tuned = await engine.submit(request("tuned", adapter=AdapterKey("a", "r1")))
        assert len((await read(tuned))[1]) == 8
        for stream in (streams[0], streams[2]):
            stream.cancel()
            async for _ in stream:
                pass
        load = engine.load()
        assert load.running == load.waiting == load.cached_tokens == 0
        _, first, _ = await read(await engine.submit(request("again")))
        _, second, _ = await read(await engine.submit(request("and again")))
        assert first == second
        await engine.close()

    asyncio.run(scenario())


def test_a_step_that_cannot_be_captured_is_run_as_it_is(caplog) -> None:
    """The last test here, since what it does to the device is not to meet another."""
    base = on_cuda("llama", "float32")
    expected = [tiny.generate(base.model, [20 + n, 30, 40], 12, ignore_eos=True) for n in range(3)]
    bench = tiny.Bench(base, RowsParameters(quantization="none"))
    forward = bench.scheduler.forward
    inner = forward.inner.decode

    def waits(*arguments: object) -> torch.Tensor:
        logits = inner(*arguments)
        logits.sum().item()
        return logits

    forward.inner.decode = waits
    for number, wanted in enumerate(expected):
        bench.add(str(number), [20 + number, 30, 40], GREEDY)
        bench.run()
        assert bench.ids(str(number)) == wanted
    assert forward.captured == 0
    assert sum("CUDA graphs" in record.message for record in caplog.records) == 1
