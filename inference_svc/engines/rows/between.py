"""What lies between the products of a decoder layer: norms, the gate, the attention of one new token per row.

At a few million parameters these are most of a step, and each of torch's operations costs more to dispatch than to
compute. `between.c` does each in one call and one pass over memory. `Plain` does the same with torch, for devices,
precisions and machines (without a C compiler) that `Compiled` is not for; attention then is the caller's. ADR 0016 has
the reasons. This module knows no model.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name
from torch import Tensor

from inference_svc.engines.rows import native

log = logging.getLogger(__name__)

MOST_SIZE = 256
"""Largest head that `Compiled.attend` takes."""


class Between(Protocol):
    """What `Plain` and `Compiled` have in common."""

    def add_norm(self, x: Tensor, addend: Tensor | None, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        """The sum of x and `addend`, which may be x itself, changed, and its root mean square norm.

        Args:
            x: [rows, width], contiguous.
            addend: [rows, width], or None for nothing.
            weight: [width] of the norm.
            epsilon: of the norm.
        """
        ...

    def gated(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up [rows, width] of what lies side by side in `gate_up` [rows, 2 * width]."""
        ...


class Plain:
    """With torch's operations, on any device and in any precision."""

    def add_norm(self, x: Tensor, addend: Tensor | None, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        """See `Between`."""
        if addend is not None:
            x = x + addend
        if x.device.type != "cpu" or x.dtype != torch.float32:
            return x, F.rms_norm(x, (x.shape[-1],), weight, epsilon)
        # torch's own is eight operations on a CPU, of which some make copies; this is five.
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = torch.addcmul(_scalar(epsilon), length, length, value=1 / x.shape[-1]).rsqrt_()
        return x, (x * inverse).mul_(weight)

    def gated(self, gate_up: Tensor) -> Tensor:
        """See `Between`."""
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate) * up


class Compiled:
    """With `between.c`, on a CPU, for one pair of precisions: that of hidden states, weights and results of products,
    and that of keys and values. Tensors of another are read as if they were of it.

    Args:
        library: what holds `between.c`, loaded.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
        self._add_norm, self._gated, self._attend = library.add_norm, library.gated, library.attend
        self._add_norm.argtypes = [*[pointer] * 4, *[size] * 2, number]
        self._gated.argtypes = [*[pointer] * 2, *[size] * 2]
        self._attend.argtypes = [*[pointer] * 7, *[size] * 6, number]
        for function in (self._add_norm, self._gated, self._attend):
            function.restype = None

    def add_norm(self, x: Tensor, addend: Tensor | None, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        """See `Between`."""
        normal = torch.empty_like(x)
        addend = None if addend is None else addend.contiguous()
        more = None if addend is None else addend.data_ptr()
        self._add_norm(x.data_ptr(), more, weight.data_ptr(), normal.data_ptr(), *x.shape, epsilon)
        return x, normal

    def gated(self, gate_up: Tensor) -> Tensor:
        """See `Between`."""
        gate_up = gate_up.contiguous()
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        inner = gate_up.new_empty(rows, width)
        self._gated(gate_up.data_ptr(), inner.data_ptr(), rows, width)
        return inner

    def attend(
        self,
        flat: Tensor,
        cos: Tensor,
        sin: Tensor,
        positions: Tensor,
        keys: Tensor,
        values: Tensor,
        heads: int,
        width: int,
        scale: float,
    ) -> Tensor:
        """Attention [rows, heads * size] of one new token per row, whose keys and values are written first.

        Args:
            flat: [rows, (heads + 2 * kv_heads) * size] queries, keys and values before the rotation.
            cos: float32 [columns, size].
            sin: the same, negative in its first half.
            positions: int64 [rows] column of the new token, contiguous.
            keys: [at least rows, kv_heads, columns, size], contiguous.
            values: the same.
            heads: of the queries.
            width: rows whose position is not below it are passed over, and their result is 0.
            scale: of the scores.
        """
        flat = flat.contiguous()
        rows = flat.shape[0]
        _, kv_heads, columns, size = keys.shape
        mixed = flat.new_empty(rows, heads * size)
        self._attend(
            flat.data_ptr(), cos.data_ptr(), sin.data_ptr(), positions.data_ptr(), keys.data_ptr(), values.data_ptr(),
            mixed.data_ptr(), rows, heads, kv_heads, size, columns, width, scale,
        )  # fmt: skip
        return mixed


@functools.cache
def library(dtype: torch.dtype, states: torch.dtype) -> ctypes.CDLL:
    """`layers.c`, which holds `between.c`, compiled on the first call.

    Args:
        dtype: of hidden states, float32 or bfloat16.
        states: of keys and values, likewise.

    Raises:
        OSError: it can't be had; the message says why.
    """
    halves = [int(precision == torch.bfloat16) for precision in (dtype, states)]
    return native.load("layers", "-march=native", *map("-D{}={}".format, ("HALF", "HALF_STATES"), halves))


@functools.cache
def compiled(dtype: torch.dtype, states: torch.dtype) -> Compiled | None:
    """The compiled operations, or None where they can't be had, and the log says why. For the arguments see
    `library`."""
    try:
        return Compiled(library(dtype, states))
    except OSError as error:
        log.warning("%s: small models take up to half as long again for a step as they could", error)
        return None


@functools.cache
def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)
