"""The products of a decoder layer: linear layers of one input side by side, with what adapters add to them.

Weights are the model's own: fused matrices replace them, so memory stays the same. This module knows no architecture.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn

from inference_svc.engines.rows import fourbit
from inference_svc.engines.rows.adapters import Mix

_PACKED_ROWS = 32
"""Rows that the packed layout is chosen for."""
PACKED_BYTES = 256 << 20
"""Models of more weights than this are not kept twice; their products wait for memory in either layout."""


class Product:
    """x times the weights of modules that share an input, transposed, plus their biases, side by side.

    Args:
        parts: the modules, by name. Those of a kind are fused, their weights become views of the fused one.
        packed: keep a second copy of a weight that is not quantised in oneDNN's own layout (what `torch.compile` does
            when it freezes a model). On a CPU: up to twice as fast for a few rows, and each row's result does not
            depend on how many there are.

    Attributes:
        names: of the modules.
        sizes: output size of each.
        shape: (out, in).
        packed: that copy, or None.
        bias: [out] or None, of a weight that is not quantised.
    """

    def __init__(self, parts: dict[str, nn.Linear], *, packed: bool) -> None:
        modules = list(parts.values())
        self.names, self.sizes = tuple(parts), tuple(module.out_features for module in modules)
        self.shape = sum(self.sizes), modules[0].in_features
        self.packed: Tensor | None = None
        self.bias: Tensor | None = None
        self._multiply: Callable[[Tensor], Tensor] | None = None
        if all(isinstance(module, Linear4bit) for module in modules) and fourbit.fits(modules):
            self._multiply = fourbit.FourBit(modules)
        elif any(type(module) is not nn.Linear for module in modules):
            # Each is quantised on its own.
            apart = [_alone(module) for module in modules]
            self._multiply = apart[0] if len(apart) == 1 else lambda x: torch.cat([part(x) for part in apart], -1)
        else:
            self._weight, self.bias = _fused(modules)
            if packed:
                self.packed = torch.ops.mkldnn._reorder_linear_weight(self._weight, _PACKED_ROWS)

    def __call__(self, x: Tensor, mix: Mix | None) -> Tensor:
        """[rows, out] of x [rows, in] and the rows' adapters."""
        out: Tensor
        if self._multiply is not None:
            out = self._multiply(x)
        elif self.packed is not None:
            out = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        else:
            out = F.linear(x, self._weight, self.bias)
        return out if mix is None else mix.add(out, x, self.names, self.sizes)


def _alone(part: nn.Linear) -> Callable[[Tensor], Tensor]:
    """The product of one layer, quantised or not."""
    return fourbit.FourBit([part]) if isinstance(part, Linear4bit) and fourbit.fits([part]) else part


def _fused(parts: list[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """One weight and bias for all parts, whose own become views of them."""
    if len(parts) == 1:
        return parts[0].weight, parts[0].bias
    weight = torch.cat([part.weight.data for part in parts])
    bias = None if parts[0].bias is None else torch.cat([part.bias.data for part in parts])
    start = 0
    for part in parts:
        stop = start + part.out_features
        part.weight.data = weight[start:stop]
        if bias is not None:
            part.bias.data = bias[start:stop]
        start = stop
    return weight, bias
