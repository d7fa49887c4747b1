"""The own products with NF4 weights give what bitsandbytes' weights give."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import bitsandbytes.functional as bnb
import pytest
import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor

from inference_svc.engines.rows import fourbit, native, nf4

EMULATED = Path(__file__).parent / "avx512"
FLAGS = {
    "native": ("-march=native",),
    "AVX2": ("-mavx2", "-mfma"),
    "AVX-512, emulated": ("-D__AVX512BW__", "-D__AVX512VL__", "-D__AVX512VNNI__", f"-I{EMULATED}"),
}


def needs_compiler() -> None:
    """Skip where `nf4.c` can't be compiled."""
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this processor has no AVX2")
    if not shutil.which((os.environ.get("CC") or "cc").split()[0]):
        pytest.skip("needs a C compiler")


@pytest.fixture(scope="module", params=FLAGS)
def products(request: pytest.FixtureRequest) -> nf4.Products:
    """As on this processor, and as on others."""
    needs_compiler()
    if "emulated" in request.param and not Path("/usr/include/simde/x86/avx512.h").exists():
        pytest.skip("needs SIMDe (Debian: libsimde-dev)")
    # As where there is AVX-512 with bfloat16, or neither.
    return nf4.Products(native.load("nf4", *FLAGS[request.param]), multiplies_half="emulated" in request.param)


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


@pytest.mark.parametrize("inputs", [64, 1088])
def test_products_of_bfloat16(products: nf4.Products, inputs: int) -> None:
    torch.manual_seed(inputs)
    codes, scales, weight = quantised(33, inputs)
    rounded = products.unpack(codes, scales, inputs, torch.bfloat16)
    assert torch.equal(rounded, weight.to(torch.bfloat16))
    bias = torch.randn(33)
    most = nf4.MOST_HALF_ROWS if products.multiplies_half else nf4.MOST_ROWS
    for rows in (1, 4, 5, most, most + 1):
        x = torch.randn(rows, inputs).to(torch.bfloat16)
        got = products.by(codes, scales, bias)(x)
        assert got.dtype == torch.bfloat16
        # bfloat16 has 8 bits; above `MOST_HALF_ROWS` the weight may be rounded as well
        expected = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
        noise = 2**-8 * float(expected.abs().max()) + (2**-8 * inputs**0.5 if rows > most else 0)
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=noise)
    x[1, 3] = float("nan")
    got = products.by(codes, scales, None)(x[:2])
    assert got[0].isfinite().all()
    assert got[1].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_its_neighbours(products: nf4.Products, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    most = nf4.MOST_HALF_ROWS if dtype == torch.bfloat16 and products.multiplies_half else nf4.MOST_ROWS
    codes, scales, _ = quantised(48, 256)
    x = torch.randn(most, 256).to(dtype)
    alone = torch.cat([products.by(codes, scales, None)(row[None]) for row in x])
    for rows in range(1, most + 1):
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


def test_another_model_that_is_loading_changes_no_memory(products: nf4.Products) -> None:
    torch.manual_seed(5)
    codes, scales, _ = quantised(64, 128)
    x = torch.randn(nf4.MOST_ROWS + 1, 128)
    expected = [products.by(codes, scales, None)(part) for part in (x[:1], x)]
    torch.set_default_dtype(torch.bfloat16)  # as Transformers does while it loads, for all threads
    try:
        got = [products.by(codes, scales, None)(part) for part in (x[:1], x)]
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, got, expected))


def layers_of(sizes: tuple[int, ...], dtype: torch.dtype, *, nested: bool = False) -> torch.nn.ModuleList:
    """Quantised layers of 128 inputs."""
    layers = torch.nn.ModuleList()
    for size in sizes:
        layer = Linear4bit(128, size, bias=True, compute_dtype=dtype, compress_statistics=nested, quant_type="nf4")
        weight = torch.randn(size, 128)
        layer.weight = Params4bit(weight, requires_grad=False, compress_statistics=nested, quant_type="nf4")
        layer.support_avx512bf16_for_cpu = False
        layers.append(layer)
    return layers.to("cpu").requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_of_one_input_and_layers_in_place(
    products: nf4.Products, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(nf4, "products", lambda: products)
    near = {"rtol": 0, "atol": 3e-3 if dtype == torch.float32 else 0.5}
    torch.manual_seed(3)
    layers = layers_of((64, 32), dtype)
    x = torch.randn(5, 128, dtype=dtype)
    expected = [layer(x) for layer in layers]
    assert fourbit.replace_products(layers)
    for layer, wanted in zip(layers, expected, strict=True):
        torch.testing.assert_close(layer(x), wanted, **near)
    together = fourbit.FourBit(list(layers))(x)
    torch.testing.assert_close(together, torch.cat(expected, -1), **near)
    assert not any("forward" in vars(layer) for layer in layers), "would keep the codes a second time"
    assert fourbit.replace_products(layers)
    assert all(isinstance(vars(layer)["forward"], fourbit.FourBit) for layer in layers)
    fourbit.restore_products(layers)
    for layer, wanted in zip(layers, expected, strict=True):
        assert torch.equal(layer(x), wanted)


def test_scales_that_are_quantised_again_are_left_to_bitsandbytes(
    products: nf4.Products, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(nf4, "products", lambda: products)
    monkeypatch.setattr(fourbit, "has_avx512bf16", lambda: False)
    torch.manual_seed(6)
    with caplog.at_level(logging.WARNING):
        assert not fourbit.replace_products(layers_of((64,), torch.float32, nested=True))
    assert "1 of 1 layers are quantised in a way" in caplog.text


@pytest.mark.parametrize(
    ("compiler", "said"), [("no-such-compiler", "no C compiler 'no-such-compiler'"), ("false", "false -O3")]
)
@pytest.mark.parametrize("bitsandbytes_is_fast", [False, True])
def test_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    compiler: str,
    said: str,
    bitsandbytes_is_fast: bool,
) -> None:
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this processor has no AVX2")
    monkeypatch.setattr(nf4, "has_avx512bf16", lambda: bitsandbytes_is_fast)
    monkeypatch.setenv("CC", compiler)
    nf4.products.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert nf4.products() is None
    nf4.products.cache_clear()
    assert said in caplog.text
    assert ("inference.quantization: none" in caplog.text) is not bitsandbytes_is_fast
