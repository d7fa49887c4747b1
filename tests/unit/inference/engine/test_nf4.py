"""The own products with NF4 weights give what bitsandbytes' weights give."""

from __future__ import annotations

import logging
import shutil

import bitsandbytes.functional as bnb
import pytest
import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor

from inference_svc.engines.rows import fourbit, nf4


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> nf4.Products:
    """As on a processor without AVX-512, whatever this one is."""
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this processor has no AVX2")
    if not shutil.which("cc"):
        pytest.skip("needs a C compiler")
    monkeypatch.setattr(nf4, "has_avx512bf16", lambda: False)
    nf4.products.cache_clear()
    found = nf4.products()
    nf4.products.cache_clear()
    assert found is not None
    return found


def quantised(outputs: int, inputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales, and the weight that they stand for."""
    codes, state = bnb.quantize_4bit(torch.randn(outputs, inputs), blocksize=nf4.BLOCK, quant_type="nf4")
    return codes, state.absmax, bnb.dequantize_4bit(codes, state)


@pytest.mark.parametrize("inputs", [64, 192, 1024])
@pytest.mark.parametrize("outputs", [1, 7, 64])
def test_products_equal_those_of_the_unpacked_weight(products: nf4.Products, outputs: int, inputs: int) -> None:
    torch.manual_seed(outputs * inputs)
    codes, scales, weight = quantised(outputs, inputs)
    assert torch.equal(products.unpack(codes, scales, inputs), weight)
    for rows in (1, 2, 3, 4, 5, 8, nf4.MOST_ROWS, nf4.MOST_ROWS + 1):
        x = torch.randn(rows, inputs)
        for bias in (None, torch.randn(outputs)):
            expected = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
            got = products.by(codes, scales, bias)(x)
            # codes and x are rounded to 15 bits each, x by the largest of its block
            torch.testing.assert_close(got.double(), expected, rtol=0, atol=8e-4 * inputs**0.5)


def test_a_row_does_not_depend_on_its_neighbours(products: nf4.Products) -> None:
    torch.manual_seed(1)
    codes, scales, _ = quantised(48, 256)
    x = torch.randn(nf4.MOST_ROWS, 256)
    alone = torch.cat([products.by(codes, scales, None)(row[None]) for row in x])
    for rows in range(1, nf4.MOST_ROWS + 1):
        assert torch.equal(products.by(codes, scales, None)(x[:rows]), alone[:rows]), rows


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_stays_none_and_in_its_row(products: nf4.Products, bad: float) -> None:
    torch.manual_seed(4)
    codes, scales, _ = quantised(8, 128)
    x = torch.randn(3, 128)
    x[2] = 0
    good = products.by(codes, scales, None)(x)
    x[1, 77] = bad
    got = products.by(codes, scales, None)(x)
    assert not got[1].isfinite().any()
    assert torch.equal(got[0], good[0])
    assert torch.equal(got[2], torch.zeros(8))


def test_shapes_and_strides_of_x(products: nf4.Products) -> None:
    torch.manual_seed(2)
    codes, scales, weight = quantised(16, 128)
    x = torch.randn(2, 3, 256)[..., ::2]
    got = products.by(codes, scales, None)(x)
    assert got.shape == (2, 3, 16)
    torch.testing.assert_close(got, x @ weight.T, rtol=0, atol=3e-3)
    assert products.by(codes, scales, None)(torch.empty(0, 128)).shape == (0, 16)


def test_layers_of_one_input_and_layers_in_place(products: nf4.Products, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nf4, "products", lambda: products)
    torch.manual_seed(3)
    layers = torch.nn.ModuleList(
        Linear4bit(128, size, bias=True, compute_dtype=torch.float32, compress_statistics=False, quant_type="nf4")
        for size in (64, 32)
    )
    for layer in layers:
        assert isinstance(layer, Linear4bit)
        layer.weight = Params4bit(
            torch.randn(layer.out_features, 128), requires_grad=False, compress_statistics=False, quant_type="nf4"
        )
        layer.support_avx512bf16_for_cpu = False
    layers.to("cpu").requires_grad_(False)
    x = torch.randn(5, 128)
    expected = [layer(x) for layer in layers]
    together = fourbit.FourBit(list(layers))(x)
    torch.testing.assert_close(together, torch.cat(expected, -1), rtol=0, atol=3e-3)
    fourbit.replace_products(layers)
    assert all(isinstance(layer.forward, fourbit.FourBit) for layer in layers)
    for layer, wanted in zip(layers, expected, strict=True):
        torch.testing.assert_close(layer(x), wanted, rtol=0, atol=3e-3)
    fourbit.restore_products(layers)
    for layer, wanted in zip(layers, expected, strict=True):
        assert torch.equal(layer(x), wanted)


@pytest.mark.parametrize(
    ("compiler", "said"), [("no-such-compiler", "no C compiler 'no-such-compiler'"), ("false", "false -O3")]
)
def test_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, compiler: str, said: str
) -> None:
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this processor has no AVX2")
    monkeypatch.setattr(nf4, "has_avx512bf16", lambda: False)
    monkeypatch.setenv("CC", compiler)
    nf4.products.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert nf4.products() is None
    nf4.products.cache_clear()
    assert said in caplog.text
    assert "inference.quantization: none" in caplog.text
