"""The compiled steps between products give what torch's operations give."""

from __future__ import annotations

import copy
import itertools
import logging
import os
import shutil

import pytest
import torch
from torch import Tensor

from inference_svc.engines.rows import between, layers, lean, native
from inference_svc.engines.rows.forward import Prefill, layer_shapes
from inference_svc.engines.rows.store import RowStore

from . import tiny

PRECISIONS = [torch.float32, torch.bfloat16]
PAIRS = [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)]
"""Of hidden states, and of keys and values."""


def compiled_for(dtype: torch.dtype, states: torch.dtype = torch.float32) -> between.Compiled:
    if not shutil.which((os.environ.get("CC") or "cc").split()[0]):
        pytest.skip("needs a C compiler")
    found = between.compiled(dtype, states)
    assert found is not None
    return found


def close(got: Tensor, expected: Tensor) -> None:
    """Within rounding of the precision of `got`."""
    epsilon = torch.finfo(got.dtype).eps
    torch.testing.assert_close(got.double(), expected, rtol=4 * epsilon, atol=4 * epsilon)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("shape", [(1, 8), (3, 100), (200, 256)])
def test_add_norm(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    x, addend = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    weight = torch.randn(shape[1]).to(dtype)
    for added, between_ in itertools.product((None, addend), (compiled_for(dtype), between.Plain())):
        total = x if added is None else x + added
        got, normal = between_.add_norm(x.clone(), added, weight, 1e-5)
        assert torch.equal(got, total)
        exact = total.double()
        close(normal, exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + 1e-5) * weight.double())


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_gated(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    gate_up = (torch.randn(77, 2 * 36) * 30).to(dtype)
    gate_up[0, :4] = torch.tensor([200.0, -200.0, 88.0, -88.0])
    gate, up = gate_up.double().chunk(2, -1)
    expected = torch.nn.functional.silu(gate) * up
    close(compiled_for(dtype).gated(gate_up), expected)
    torch.testing.assert_close(between.Plain().gated(gate_up).double(), expected, rtol=2e-2, atol=1e-2)


class States:
    """Random states and tables of rotation for `rows` rows."""

    def __init__(
        self, rows: int, heads: int, kv_heads: int, size: int, columns: int, dtype: torch.dtype = torch.float32,
        states: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.compiled = compiled_for(dtype, states)
        self.heads, self.kv_heads, self.size, self.width = heads, kv_heads, size, columns
        self.flat = torch.randn(rows, (heads + 2 * kv_heads) * size).to(dtype)
        angles = torch.rand(columns, size // 2) * 6
        self.cos = angles.cos().repeat(1, 2)
        self.sin = torch.cat([-angles.sin(), angles.sin()], -1)
        self.positions = torch.randint(0, columns, (rows,))
        self.keys, self.values = torch.randn(2, rows + 2, kv_heads, columns, size).to(states).unbind()

    def attend(self, rows: slice = slice(None)) -> Tensor:
        return self.compiled.attend(
            self.flat[rows], self.cos, self.sin, self.positions[rows], self.keys[rows], self.values[rows],
            self.heads, self.width, 0.2,
        )  # fmt: skip

    def expected(self) -> Tensor:
        """With torch; states stay as they are."""
        rows, both = len(self.flat), self.heads + self.kv_heads
        qkv = self.flat.double().view(rows, -1, self.size)
        cos, sin = self.cos.double()[self.positions, None], self.sin.double()[self.positions, None]
        qk = qkv[:, :both] * cos + qkv[:, :both].roll(self.size // 2, -1) * sin
        keys, values, every = self.keys.double(), self.values.double(), torch.arange(rows)
        keys[every, :, self.positions], values[every, :, self.positions] = qk[:, self.heads :], qkv[:, both:]
        out = torch.empty(rows, self.heads, self.size, dtype=torch.float64)
        for row, position in enumerate(self.positions.tolist()):
            for head in range(self.heads):
                group = head // (self.heads // self.kv_heads)
                seen = slice(position + 1)
                weights = torch.softmax(keys[row, group, seen] @ qk[row, head] * 0.2, -1)
                out[row, head] = weights @ values[row, group, seen]
        return out.view(rows, -1)


@pytest.mark.parametrize(("dtype", "of_states"), PAIRS)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"), [(2, 2, 8), (4, 2, 32), (6, 1, 48), (4, 4, 64), (2, 1, 128), (2, 2, 256)]
)
def test_attend(heads: int, kv_heads: int, size: int, dtype: torch.dtype, of_states: torch.dtype) -> None:
    torch.manual_seed(3)
    states = States(19, heads, kv_heads, size, 150, dtype, of_states)
    states.positions[:6] = torch.tensor([0, 1, 63, 64, 127, 149])
    expected, old_keys, old_values = states.expected(), states.keys.clone(), states.values.clone()
    got = states.attend()
    tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-5
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=tolerance)
    # Nothing but the new token's column was written.
    every, written = torch.arange(19), torch.zeros(states.keys.shape[0], 150, dtype=torch.bool)
    written[every, states.positions] = True
    for new, old in ((states.keys, old_keys), (states.values, old_values)):
        changed = (new != old).any(-1).any(1)
        assert torch.equal(changed, written)


def test_rows_beyond_the_width_are_passed_over() -> None:
    torch.manual_seed(6)
    states = States(3, 4, 2, 32, 100)
    states.positions[:] = torch.tensor([49, 50, 3])
    every, states.width = states.attend(), 50
    old = states.keys.clone()
    got = states.attend()
    assert torch.equal(got[[0, 2]], every[[0, 2]])
    assert not got[1].any()
    assert torch.equal(states.keys[1], old[1])


@pytest.mark.parametrize(("dtype", "of_states"), PAIRS)
@pytest.mark.parametrize("family", ["llama", "llama-mha", "qwen3"])
def test_a_step_of_the_lean_forward_is_the_same_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, family: str, dtype: torch.dtype, of_states: torch.dtype
) -> None:
    """Rows enough for attention in products, of such different lengths that it runs in several spans."""
    monkeypatch.setattr(layers, "made", lambda *_, **__: None)
    model = copy.deepcopy(tiny.loaded(family).model).to(dtype)
    logits = []
    for found in (compiled_for(dtype, of_states), None):
        monkeypatch.setattr(between, "compiled", lambda *_, found=found: found)
        store = RowStore(
            layer_shapes(model), dtype=of_states, device=torch.device("cpu"), max_rows=32, max_columns=256,
            token_budget=32 * 256,
        )  # fmt: skip
        store.reserve(24, 256)
        torch.manual_seed(7)
        for plane in store.planes:
            plane.normal_()
        forward = lean.LeanForward(model, store)
        assert (forward._compiled is None) is (found is None)
        positions = torch.tensor([3] * 16 + [200] * 8)
        chunk = Prefill([2, 5], torch.arange(14).view(2, 7), 4, torch.tensor([6, 3]))
        with torch.inference_mode():
            read = forward.prefill(chunk)
            logits.append(torch.cat([read, forward.decode(torch.arange(24), positions, 201, None)]).float())
    near = 1e-4 if dtype == torch.float32 else 0.05 * float(logits[0].abs().max())
    torch.testing.assert_close(logits[0], logits[1], rtol=near, atol=near)


def test_a_row_does_not_depend_on_its_neighbours_or_on_threads() -> None:
    torch.manual_seed(4)
    states = States(40, 4, 2, 32, 300)
    alone = torch.cat([states.attend(slice(row, row + 1)) for row in range(40)])
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for rows in (1, 2, 7, 40):
                assert torch.equal(states.attend(slice(rows)), alone[:rows])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_what_is_no_number_stays_none_and_in_its_row(dtype: torch.dtype, bad: float) -> None:
    compiled = compiled_for(dtype)
    torch.manual_seed(5)
    x = torch.randn(3, 64).to(dtype)
    x[1, 5] = bad
    _, normal = compiled.add_norm(x.clone(), None, torch.ones(64, dtype=dtype), 1e-6)
    assert normal[1].isnan().any()
    assert normal[[0, 2]].isfinite().all()
    inner = compiled.gated(torch.cat([x, torch.ones_like(x)], -1))
    assert not inner[1].isfinite().all()
    assert inner[[0, 2]].isfinite().all()
    states = States(3, 2, 1, 16, 100, dtype)
    states.positions[:] = 99
    states.keys[1, 0, 42, 3] = bad
    mixed = states.attend()
    assert mixed[1].isnan().any()
    assert mixed[[0, 2]].isfinite().all()


def test_without_a_compiler_there_is_a_word_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", "/nowhere/cc")
    for cache in (between.library, between.compiled):
        cache.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert between.compiled(torch.float32, torch.float32) is None
    finally:
        between.compiled.cache_clear()
    assert "there is no C compiler '/nowhere/cc' (Debian: gcc)" in caplog.text


def test_what_does_not_compile_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")
    with pytest.raises(OSError, match=r"^false .*between\.c.* failed"):
        native.load("between")
