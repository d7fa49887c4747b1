"""Products with NF4 weights on a CPU.

bitsandbytes multiplies codes as they are only where there is AVX-512 with bfloat16; elsewhere it unpacks the whole
weight, one code at a time, for each product. `nf4.c` does it with AVX2, which nearly every x86 processor since 2013
has, or AVX-512; where it can't be compiled, bitsandbytes does the work. ADR 0015 has the reasons. This module knows no
model.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import threading
from collections.abc import Callable

import torch
from bitsandbytes.functional import get_4bit_type, has_avx512bf16
from torch import Tensor

from inference_svc.engines.rows import native

log = logging.getLogger(__name__)

BLOCK = 64
"""Weights that share a scale."""
LARGEST = 16383
"""Of the whole numbers that codes stand for; so eight products of two, the most that are added up, fit into 32 bits."""
EPSILON = 2.0**-13
"""What rounding to those numbers may change of a product, relative to the largest x of its block."""
MOST_ROWS = 192
"""With more rows it is faster to unpack the weight and let torch multiply."""
MOST_HALF_ROWS = 24
"""The same for x in bfloat16, where the processor multiplies that itself. The unpacked weight is rounded to bfloat16
there, so a row's result may differ in its last bits with so many neighbours."""


class Products:
    """The compiled products, for any number of threads.

    Args:
        library: `nf4.c`, loaded.
        multiplies_half: whether the processor multiplies bfloat16 itself.
    """

    def __init__(self, library: ctypes.CDLL, *, multiplies_half: bool) -> None:
        self.multiplies_half = multiplies_half
        self._values = get_4bit_type("nf4", device="cpu").to(torch.float32).contiguous()
        self._numbers, self._unit = _whole_numbers(self._values)
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self._product, self._unpack = library.nf4_product, library.nf4_unpack
        self._product.argtypes = [pointer, ctypes.c_float, *[pointer] * 5, ctypes.c_int, *[size] * 3]
        self._product.restype = ctypes.c_int
        self._unpack.argtypes = [*[pointer] * 4, ctypes.c_int, *[size] * 2]
        self._unpack.restype = None
        self._own = threading.local()

    def by(self, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        """The product with a weight, transposed, plus a bias: a function of x [..., in], float32 or bfloat16, as is the
        result.

        Args:
            codes: uint8, as bitsandbytes packs a weight [out, in] row by row; `in` is a multiple of `BLOCK`. They must
                stay where they are.
            scales: float32, one for each block of codes.
            bias: float32 [out] or None.

        Raises:
            MemoryError: the function, where there is none for a copy of x.
        """
        # Each of these takes longer than a call of the library, and a token makes a hundred calls.
        product, unit, numbers = self._product, self._unit, self._numbers.data_ptr()
        where = codes.data_ptr(), scales.data_ptr(), None if bias is None else bias.data_ptr()

        def multiply(x: Tensor) -> Tensor:
            inputs = x.shape[-1]
            outputs = codes.numel() * 2 // inputs
            flat = x.reshape(-1, inputs).contiguous()
            rows, half = flat.shape[0], flat.dtype == torch.bfloat16
            quick_half = half and self.multiplies_half
            if rows > (MOST_HALF_ROWS if quick_half else MOST_ROWS):
                dtype = torch.bfloat16 if quick_half else torch.float32
                weight = self.unpack(codes, scales, inputs, dtype)
                own_bias = None if bias is None else bias.to(dtype)
                out = torch.nn.functional.linear(flat.to(dtype), weight, own_bias).to(x.dtype)
            else:
                out = torch.empty(rows, outputs, dtype=x.dtype)
                if product(numbers, unit, flat.data_ptr(), *where, out.data_ptr(), half, rows, outputs, inputs):
                    raise MemoryError(f"no memory for {rows} rows of {inputs} inputs")
            return out if x.dim() == 2 else out.view(*x.shape[:-1], outputs)

        return multiply

    def unpack(self, codes: Tensor, scales: Tensor, inputs: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [out, in], exact in float32 or rounded to bfloat16, in memory that the thread's next call takes
        again."""
        size = codes.numel() * 2
        memory: Tensor | None = getattr(self._own, "memory", None)
        if memory is None or memory.numel() < size * dtype.itemsize:
            memory = self._own.memory = torch.empty(size * dtype.itemsize, dtype=torch.uint8)
        weight = memory[: size * dtype.itemsize].view(dtype).view(-1, inputs)
        half = dtype == torch.bfloat16
        self._unpack(
            self._values.data_ptr(), codes.data_ptr(), scales.data_ptr(), weight.data_ptr(), half, *weight.shape
        )
        return weight


def _whole_numbers(values: Tensor) -> tuple[Tensor, float]:
    """The values as int16 multiples of a unit, below 2^14, and the unit that leaves the smallest relative error."""
    scales = torch.arange(8192, LARGEST + 1, dtype=torch.float64)[:, None]
    exact = values.double()[values != 0]
    errors = ((exact * scales).round() / scales / exact - 1).abs().amax(-1)
    best = float(scales[errors.argmin(), 0])
    return (values.double() * best).round().to(torch.int16), 1 / best


@functools.cache
def products() -> Products | None:
    """The products, compiled on the first call; None where they can't be had, and the log says why."""
    try:
        return _compile()
    except OSError as error:
        if not has_avx512bf16():
            log.warning(
                "%s: NF4 saves memory here, but a step takes several times as long as without it "
                "(inference.quantization: none)",
                error,
            )
        else:
            log.warning("%s: NF4 takes the products of bitsandbytes, which are slower for a few rows", error)
        return None


def _compile() -> Products:
    """The products.

    Raises:
        OSError: they can't be had; the message says why.
    """
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        raise OSError("this processor has no AVX2")
    return Products(native.load("nf4", "-march=native"), multiplies_half=has_avx512bf16())
