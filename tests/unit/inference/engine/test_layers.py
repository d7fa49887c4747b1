"""A step in one call gives what the same step gives operation by operation, adapters and all."""

from __future__ import annotations

import copy
import gc
import os
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from inference_svc.engines.rows import between, layers, lean
from inference_svc.engines.rows.adapters import AdapterBank, Lora, Mix, linear_shapes
from inference_svc.engines.rows.forward import Prefill, layer_shapes
from inference_svc.engines.rows.store import RowStore

from . import tiny
from .test_between import PAIRS, compiled_for

CPU = torch.device("cpu")
FAMILIES = ["llama", "llama-mha", "qwen2", "qwen3"]


def forwards(
    family: str | PreTrainedModel, dtype: torch.dtype = torch.float32, states: torch.dtype = torch.float32
) -> tuple[lean.LeanForward, lean.LeanForward]:
    """One that makes its steps in one call, and one that makes them with torch's operations, over equal states."""
    compiled_for(dtype, states)
    made = []
    for whole in (True, False):
        model = copy.deepcopy(tiny.model(family) if isinstance(family, str) else family).to(dtype)
        store = RowStore(
            layer_shapes(model), dtype=states, device=CPU, max_rows=32, max_columns=256, token_budget=32 * 256
        )
        store.reserve(24, 256)
        torch.manual_seed(7)
        for plane in store.planes:
            plane.normal_()
        with pytest.MonkeyPatch.context() as patch:
            if not whole:
                patch.setattr(between, "compiled", lambda *_: None)
            made.append(lean.LeanForward(model, store))
        if whole and made[0].whole is None:
            assert dtype == torch.bfloat16
            pytest.skip("this processor doesn't multiply bfloat16")
    assert made[1].whole is None
    return made[0], made[1]


def adapters(family: str | PreTrainedModel, indices: list[int]) -> Mix | None:
    """Rows with some of three adapters of other ranks and modules, by index; 0 is none."""
    model = tiny.model(family) if isinstance(family, str) else family
    bank = AdapterBank(model, 4)
    generator = torch.Generator().manual_seed(3)
    for rank, part in ((4, ""), (17, "mlp"), (1, "q_proj")):
        weights = {
            name: (
                torch.randn(rank, inputs, generator=generator) * 0.2,
                torch.randn(rank, outputs, generator=generator) * 0.2,
            )
            for name, (inputs, outputs) in linear_shapes(model).items()
            if part in name
        }
        bank.put(Lora({name: (a.t().contiguous().t(), b) for name, (a, b) in weights.items()}, rank))
    return bank.mix(indices)


def steps(forward: lean.LeanForward, mixes: tuple[Mix | None, Mix | None]) -> Tensor:
    """A chunk of three prompts, another behind it, a short one, and a decode step of all slots."""
    vocabulary = len(forward.embed)
    tokens = torch.arange(3 * 90).view(3, 90) % vocabulary
    slots = [2, 9, 5]
    with torch.inference_mode():
        return torch.cat(
            [
                forward.prefill(Prefill(slots, tokens, 0, torch.tensor([89, 40, 0]), mixes[0])),
                forward.prefill(
                    Prefill(slots, (tokens[:, :50] + 7) % vocabulary, 90, torch.tensor([49, 48, 16]), mixes[0])
                ),
                forward.prefill(Prefill([11, 0, 1], tokens[:, :1], 4, torch.tensor([0, 0, 0]), mixes[0])),
                forward.decode(
                    (torch.arange(24) + 30) % vocabulary, torch.tensor([140] * 12 + [3, 63, 64, 199] * 3), 200, mixes[1]
                ),
            ]
        ).float()


@pytest.mark.parametrize(("dtype", "states"), PAIRS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mixed", [False, True])
def test_a_step_in_one_call(family: str, dtype: torch.dtype, states: torch.dtype, mixed: bool) -> None:
    mixes = (adapters(family, [3, 1, 0]), adapters(family, [0, 1, 2, 3] * 6)) if mixed else (None, None)
    whole, apart = forwards(family, dtype, states)
    got, expected = steps(whole, mixes), steps(apart, mixes)
    near = 2e-4 if dtype == torch.float32 else 0.06 * float(expected.abs().max())
    torch.testing.assert_close(got, expected, rtol=near, atol=near)
    for mine, theirs in zip(whole.store.planes, apart.store.planes, strict=True):
        torch.testing.assert_close(mine.float(), theirs.float(), rtol=near, atol=max(near, 0.1 * (near > 0.01)))
    if mixed:
        base = steps(forwards(family, dtype, states)[0], (None, None))
        # Of the chunks the last row has none; of the decode step every fourth, and the first of those is behind a
        # prompt that had.
        changed = (got - base).abs().amax(-1) > 0.01
        assert changed.tolist() == [True, True, False] * 3 + [True] * 4 + [False, True, True, True] * 5


def odd(heads: int, kv_heads: int, size: int, hidden: int, inner: int, vocabulary: int) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=2, head_dim=size,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=256,
    )  # fmt: skip
    torch.manual_seed(5)
    made = LlamaForCausalLM(config).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.12)
    return made


@pytest.mark.parametrize(
    "shape",
    [
        (5, 5, 4, 20, 7, 131), (4, 2, 20, 36, 33, 130), (2, 1, 64, 48, 33, 77), (3, 3, 128, 39, 50, 100),
        (2, 2, 256, 30, 31, 59),
    ],
)  # fmt: skip
def test_odd_shapes(shape: tuple[int, ...]) -> None:
    model = odd(*shape)
    mixes = adapters(model, [3, 1, 0]), adapters(model, [0, 1, 2, 3] * 6)
    whole, apart = forwards(model)
    torch.testing.assert_close(steps(whole, mixes), steps(apart, mixes), rtol=2e-4, atol=2e-4)


def small_store(model: PreTrainedModel) -> RowStore:
    return RowStore(layer_shapes(model), dtype=torch.float32, device=CPU, max_rows=4, max_columns=64, token_budget=256)


def test_heads_that_are_no_multiple_of_four_go_the_other_way() -> None:
    compiled_for(torch.float32)
    model = odd(4, 2, 6, 24, 32, 64)
    assert lean.LeanForward(model, small_store(model)).whole is None


def test_norms_of_another_precision_go_the_other_way() -> None:
    compiled_for(torch.float32)
    model = copy.deepcopy(tiny.model("qwen3"))
    store = small_store(model)
    for layer in model.model.layers:
        layer.self_attn.q_norm.double()
    assert lean.LeanForward(model, store).whole is None


def test_what_torch_refuses_is_an_error_and_the_next_step_runs() -> None:
    whole, _ = forwards("llama")
    assert whole.whole is not None
    before = steps(whole, (None, None))
    head = whole.whole._model.head
    inputs, head.inputs = head.inputs, 3
    with pytest.raises(RuntimeError, match="torch failed in a step"):
        steps(whole, (None, None))
    head.inputs = inputs
    assert torch.equal(steps(whole, (None, None)), before)


def test_an_adapter_that_was_unloaded_is_gone() -> None:
    whole, apart = forwards("llama")
    mix = adapters("llama", [1, 2, 3])
    assert mix is not None
    steps(whole, (mix, None))
    stack = weakref.ref(mix.stack)
    del mix
    assert stack() is None
    again = adapters("llama", [3, 2, 1])
    torch.testing.assert_close(steps(whole, (again, None)), steps(apart, (again, None)), rtol=2e-4, atol=2e-4)


def test_one_adapter_for_all_rows() -> None:
    mix = adapters("llama", [2, 2, 2])
    assert mix is not None
    assert mix.mask is None
    whole, apart = forwards("llama")
    got, expected = steps(whole, (mix, None)), steps(apart, (mix, None))
    torch.testing.assert_close(got, expected, rtol=2e-4, atol=2e-4)


def test_an_adapter_of_too_high_a_rank_goes_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "MOST_RANK", 16)
    mixes = adapters("llama", [3, 2, 0]), adapters("llama", [0, 1, 2, 3] * 6)
    whole, apart = forwards("llama")
    assert not whole.whole.takes(mixes[1])  # type: ignore[union-attr]
    monkeypatch.setattr(layers.Layers, "_step", None)
    with pytest.raises(TypeError):
        steps(whole, (None, None))
    torch.testing.assert_close(steps(whole, mixes), steps(apart, mixes), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_its_neighbours(dtype: torch.dtype) -> None:
    """Nor, but for the rounding of products on some processors (ADR 0013), on the number of threads."""
    whole, _ = forwards("llama", dtype)
    tokens = torch.randint(0, tiny.VOCABULARY, (6, 70), generator=torch.Generator().manual_seed(1))
    last, positions = torch.full((6,), 69), torch.full((6,), 70)
    before = torch.get_num_threads()
    results = []
    try:
        for threads, count in ((1, 1), (1, 6), (1, 3), (2, 6), (2, 1)):
            torch.set_num_threads(threads)
            with torch.inference_mode():
                read = whole.prefill(Prefill(list(range(count)), tokens[:count], 0, last[:count]))
                results.append((read[0], whole.decode(tokens[:count, 3], positions[:count], 71, None)[0]))
    finally:
        torch.set_num_threads(before)
    for number, both in enumerate(results):
        for got, expected in zip(both, results[0 if number < 3 else 3], strict=True):
            assert torch.equal(got, expected)
    near = 1e-4 if dtype == torch.float32 else 0.05
    for got, expected in zip(results[3], results[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=near, atol=near)


def test_what_is_no_number_stays_in_its_row() -> None:
    whole, _ = forwards("llama")
    tokens = torch.arange(60).view(3, 20)
    last = torch.tensor([19, 19, 19])
    with torch.inference_mode():
        whole.prefill(Prefill([0, 1, 2], tokens, 0, last))
        whole.store.keys[0][1, :, 5] = float("nan")
        chunk = whole.prefill(Prefill([0, 1, 2], tokens, 20, last))
        said = whole.decode(torch.tensor([1, 2, 3]), torch.tensor([40, 40, 40]), 41, None)
    for logits in (chunk, said):
        assert logits[1].isnan().all()
        assert logits[[0, 2]].isfinite().all()


def test_a_torch_without_the_interface_does_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiled_for(torch.float32)
    monkeypatch.setitem(layers._TORCH, "linear", "aoti_torch_of_another_time")
    layers._interface.cache_clear()
    model = copy.deepcopy(tiny.model("llama"))
    try:
        forward = lean.LeanForward(model, small_store(model))
    finally:
        layers._interface.cache_clear()
    assert forward.whole is None
    assert forward._compiled is not None
    assert "has no aoti_torch_of_another_time" in caplog.text


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_steps_leave_nothing() -> None:
    whole, _ = forwards("llama")
    sizes = []
    for _ in range(3):
        for _ in range(100):
            steps(whole, (None, None))
        sizes.append(resident())
    # What one product gives for the largest chunk is 70 kB and more, so 200 rounds would leave 14 MB.
    assert sizes[2] - sizes[0] < 4 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_model_that_goes_leaves_no_packed_weights() -> None:
    compiled_for(torch.float32)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=512, intermediate_size=512, num_hidden_layers=1, num_attention_heads=8
    )
    model: Any = LlamaForCausalLM(config).eval().requires_grad_(False)

    grown = []
    for _ in range(12):
        store = RowStore(
            layer_shapes(model), dtype=torch.float32, device=CPU, max_rows=1, max_columns=64, token_budget=64
        )
        assert lean.LeanForward(model, store).whole is not None
        gc.collect()
        grown.append(resident())
    # A copy of the head alone is 16 MiB.
    assert grown[-1] - grown[3] < 48 << 20
