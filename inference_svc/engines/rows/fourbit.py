"""Several 4-bit layers of bitsandbytes that read the same input, as one product.

bitsandbytes scales blocks of a row of the weight, each by itself, so the codes and scales of layers lie side by side
as they are, and the product is the same. What is saved is calls: each costs some 60 microseconds of Python, and a model
of 24 layers makes 168 of them for a token. Where `nf4` can multiply, it does. This module knows no model.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import bitsandbytes
import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn

from inference_svc.engines.rows import nf4

log = logging.getLogger(__name__)


def fits(parts: list[Linear4bit]) -> bool:
    """Whether `FourBit` can stand in for these layers: equally quantised, scales not quantised again, and on a CPU,
    since it was not tried elsewhere."""
    states = [part.weight.quant_state for part in parts]
    first = states[0]
    return (
        first is not None
        and parts[0].weight.device.type == "cpu"
        and all(type(part) is Linear4bit and part.weight.dtype == torch.uint8 for part in parts)
        and all(not state.nested and len(state.shape) == 2 for state in states)
        and first.shape[1] % first.blocksize == 0
        and len({_kind(part) for part in parts}) == 1
        and len({part.bias is None for part in parts}) == 1
    )


def _kind(part: Linear4bit) -> tuple[object, ...]:
    state = part.weight.quant_state
    packed = bool(getattr(state, "packing_format_for_cpu", False))
    return state.quant_type, state.blocksize, state.shape[1], packed, part.compute_dtype, part.weight.device


class FourBit:
    """x times the weights of all `parts`, the results side by side.

    Args:
        parts: layers that `fits` accepts; their codes become views of the common ones.
    """

    def __init__(self, parts: list[Linear4bit]) -> None:
        first = parts[0].weight
        self._state = copy.copy(first.quant_state)
        self._weight: Tensor = first.data
        self._bias: Tensor | None = parts[0].bias
        self._dtype: torch.dtype | None = parts[0].compute_dtype
        if len(parts) > 1:
            self._join(parts)
        products = nf4.products() if _suits_own(parts[0]) else None
        self._own: Callable[[Tensor], Tensor] | None = None
        if products is not None:
            bias = None if self._bias is None else self._bias.to(torch.float32).contiguous()
            self._own = products.by(self._weight, self._state.absmax, bias)

    def _join(self, parts: list[Linear4bit]) -> None:
        states = [part.weight.quant_state for part in parts]
        self._state.shape = torch.Size([sum(state.shape[0] for state in states), states[0].shape[1]])
        # The layout for AVX-512 has rows of the weight in blocks, one after the other, and scales transposed.
        packed = bool(getattr(self._state, "packing_format_for_cpu", False))
        self._state.absmax = torch.cat([state.absmax for state in states], 1 if packed else 0)
        self._weight = torch.cat([part.weight.data for part in parts])
        start = 0
        for part in parts:
            stop = start + part.weight.data.shape[0]
            part.weight.data = self._weight[start:stop]
            # A product by itself, of `replace_products`, would keep the codes a second time.
            part.__dict__.pop("forward", None)
            start = stop
        if self._bias is not None:
            self._bias = torch.cat([part.bias.data for part in parts])

    def __call__(self, x: Tensor) -> Tensor:
        """Of x [..., in], in its own precision."""
        given = x.dtype
        if self._own is not None:
            return self._own(x if given == torch.bfloat16 else x.float()).to(given)
        if self._dtype is not None and self._dtype != given:
            x = x.to(self._dtype)
        bias = self._bias if self._bias is None else self._bias.to(x.dtype)
        out: Tensor = bitsandbytes.matmul_4bit(x, self._weight, bias=bias, quant_state=self._state)
        return out.to(given)


def _suits_own(part: Linear4bit) -> bool:
    """Whether `nf4` can multiply this layer's weight."""
    state = part.weight.quant_state
    return (
        state.quant_type == "nf4"
        and state.blocksize == nf4.BLOCK
        and state.absmax.dtype == torch.float32
        and not getattr(state, "packing_format_for_cpu", False)
    )


def replace_products(model: nn.Module) -> bool:
    """Let the 4-bit layers of a model on a CPU multiply by `FourBit`, each by itself, where that is faster.

    Returns:
        Whether there are any.
    """
    layers = [m for m in model.modules() if isinstance(m, Linear4bit) and m.weight.device.type == "cpu"]
    suited = [m for m in layers if fits([m]) and _suits_own(m)]
    slow = 0 if has_avx512bf16() else len(layers) - len(suited)
    if slow:
        log.warning(
            "%d of %d layers are quantised in a way for which there is no fast product on this processor (fast: nf4, "
            "blocks of 64, scales that are not quantised again)",
            slow,
            len(layers),
        )
    if not suited or nf4.products() is None:
        return False
    for module in suited:
        module.forward = FourBit([module])
    return True


def restore_products(model: nn.Module) -> None:
    """Undo `replace_products`."""
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), FourBit):
            del module.forward
