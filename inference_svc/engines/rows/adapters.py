"""LoRA adapters of many tenants in one batch.

PEFT's mixed forward goes through the adapters of a batch one by one in every layer. Here the adapters that a batch
uses are laid side by side: one product with all their A, a mask that leaves each row its own adapter's part, one
product with all their B. What the mask zeroes adds nothing, so a row gets what PEFT gives it, in the same precision
(that of the saved weights, at least float32).

This module knows no request and no architecture; modules are known by name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from chatmill.errors import FailedPrecondition, NotFound, ResourceExhausted

_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Lora:
    """One adapter in memory.

    Attributes:
        weights: per module name, A [rank, in] and B [rank, out], B scaled.
        rank: the highest of all modules.
    """

    weights: dict[str, tuple[Tensor, Tensor]]
    rank: int

    @property
    def nbytes(self) -> int:
        """Memory of the weights."""
        return sum(a.nbytes + b.nbytes for a, b in self.weights.values())


def linear_shapes(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """(in, out) of every module that can carry an adapter, by name."""
    shapes = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            shapes[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            shapes[name] = (module.nx, module.nf)
    return shapes


def read_adapter(path: Path, shapes: dict[str, tuple[int, int]], device: torch.device) -> Lora:
    """Read a PEFT folder and check it against the base.

    Args:
        path: folder with adapter_config.json and adapter_model.safetensors.
        shapes: of the base, from `linear_shapes`.
        device: where the weights shall lie.

    Raises:
        NotFound: no such folder.
        FailedPrecondition: reason `UNSAFE_WEIGHTS` (no safetensors), `CORRUPT_WEIGHTS`, `ADAPTER_KIND` (not plain
            LoRA on linear layers) or `ADAPTER_MISMATCH` (made for another base).
    """
    if not path.is_dir():
        raise NotFound(f"there is no adapter folder {path.name!r}.", reason="NO_ADAPTER_FOLDER")
    file = path / "adapter_model.safetensors"
    if not file.is_file():
        raise FailedPrecondition(
            f"{path.name}: has no adapter_model.safetensors; other formats can run code and are never opened.",
            reason="UNSAFE_WEIGHTS",
        )
    try:
        config = PeftConfig.from_pretrained(str(path))
        tensors = load_file(file)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise FailedPrecondition(f"{path.name}: can't be read: {error}", reason="CORRUPT_WEIGHTS") from error
    _check_kind(path.name, config)
    return _assemble(path.name, config, tensors, shapes, device)


def _check_kind(name: str, config: Any) -> None:
    unsupported = [
        ("peft_type", getattr(config.peft_type, "value", config.peft_type), "LORA"),
        ("bias", getattr(config, "bias", "none"), "none"),
        *(
            (key, bool(getattr(config, key, None)), False)
            for key in (
                "use_dora",
                "lora_bias",
                "modules_to_save",
                "trainable_token_indices",
                "target_parameters",
                "layer_replication",
                "alora_invocation_tokens",
            )
        ),
    ]
    for key, value, served in unsupported:
        if value != served:
            raise FailedPrecondition(
                f"{name}: {key} is {value!r}; the rows engine mixes plain LoRA on linear layers only. Merge this "
                "adapter into its base and serve it as a base.",
                reason="ADAPTER_KIND",
            )


def _assemble(
    name: str, config: Any, tensors: dict[str, Tensor], shapes: dict[str, tuple[int, int]], device: torch.device
) -> Lora:
    weights: dict[str, tuple[Tensor, Tensor]] = {}
    modules = sorted({key.removeprefix(_PREFIX).rsplit(".lora_", 1)[0] for key in tensors})
    for module in modules:
        a = tensors.get(f"{_PREFIX}{module}.lora_A.weight")
        b = tensors.get(f"{_PREFIX}{module}.lora_B.weight")
        if a is None or b is None:
            raise FailedPrecondition(
                f"{name}: {module} has no pair of lora_A and lora_B weights; only plain LoRA is mixed.",
                reason="ADAPTER_KIND",
            )
        if module not in shapes or shapes[module] != (a.shape[1], b.shape[0]) or a.shape[0] != b.shape[1]:
            there = f"is {shapes[module][0]} by {shapes[module][1]}" if module in shapes else "does not exist"
            raise FailedPrecondition(
                f"{name}: made for another base: {module} is {a.shape[1]} by {b.shape[0]} in the adapter and {there} "
                "in the base.",
                reason="ADAPTER_MISMATCH",
            )
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise FailedPrecondition(f"{name}: {module} has weights that are no numbers.", reason="CORRUPT_WEIGHTS")
        rank = a.shape[0]
        alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), module), config.lora_alpha)
        scale = alpha / math.sqrt(rank) if config.use_rslora else alpha / rank
        weights[module] = (a.float().to(device), (b.float().t() * scale).contiguous().to(device))
    if not weights:
        raise FailedPrecondition(f"{name}: holds no weights.", reason="CORRUPT_WEIGHTS")
    return Lora(weights, max(a.shape[0] for a, _ in weights.values()))


class Stack:
    """The adapters of one batch side by side, per group of modules that share an input.

    Attributes:
        places: of each adapter's index in the bank, its place here.
        rank: the highest of all adapters, which each of them is given here.
    """

    def __init__(self, loras: dict[int, Lora]) -> None:
        self.places = {index: place for place, index in enumerate(loras)}
        self._loras = list(loras.values())
        self.rank = max(lora.rank for lora in self._loras)
        self._built: dict[tuple[str, ...], tuple[Tensor, Tensor] | None] = {}

    def matrices(self, modules: tuple[str, ...], sizes: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """A [modules * adapters * rank, in] and B [modules * adapters * rank, sum of out]; None if nobody has them."""
        if modules not in self._built:
            self._built[modules] = self._build(modules, sizes)
        return self._built[modules]

    def _build(self, modules: tuple[str, ...], sizes: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        present = [lora.weights[m] for lora in self._loras for m in modules if m in lora.weights]
        if not present:
            return None
        block = len(self._loras) * self.rank
        a = present[0][0].new_zeros(len(modules) * block, present[0][0].shape[1])
        b = a.new_zeros(len(modules) * block, sum(sizes))
        column = 0
        for number, (module, size) in enumerate(zip(modules, sizes, strict=True)):
            for place, lora in enumerate(self._loras):
                if module in lora.weights:
                    own_a, own_b = lora.weights[module]
                    row = number * block + place * self.rank
                    a[row : row + own_a.shape[0]] = own_a
                    b[row : row + own_a.shape[0], column : column + size] = own_b
            column += size
        return a.t().contiguous(), b


@dataclass(slots=True)
class Mix:
    """Which adapter each row of one step has.

    Attributes:
        stack: the adapters of the step.
        places: int64 [n] place of each row's adapter in the stack, -1 for none.
        mask: [n, adapters * rank] 1 where a row's own adapter is, 0 elsewhere; None if all rows have the only one.
    """

    stack: Stack
    places: Tensor
    mask: Tensor | None

    def spread(self, times: int, filled: int) -> Mix:
        """The same for `times` tokens per row, rows of x in row-major order, and nothing for those up to `filled`; for
        `add`, since places stay those of rows."""
        if self.mask is None:
            return self
        mask = self.mask.repeat_interleave(times, 0)
        return Mix(self.stack, self.places, nn.functional.pad(mask, (0, 0, 0, filled - len(mask))))

    def add(self, out: Tensor, x: Tensor, modules: tuple[str, ...], sizes: Sequence[int]) -> Tensor:
        """`out` plus what the adapters make of `x`.

        Args:
            out: [..., sum of sizes] what the base's modules gave, side by side.
            x: [..., in] their common input; the leading dimensions hold the rows of the mask, or rows and tokens.
            modules: names.
            sizes: output size of each.
        """
        found = self.stack.matrices(modules, sizes)
        if found is None:
            return out
        a, b = found
        inner = x.to(a.dtype) @ a
        if self.mask is not None:
            mask = self.mask if len(modules) == 1 else self.mask.repeat(1, len(modules))
            inner = inner * (mask[:, None] if x.dim() == 3 else mask)
        if out.dtype == b.dtype and out.dim() == 2:
            return torch.addmm(out, inner, b)
        return out + (inner @ b).to(out.dtype)


class AdapterBank:
    """The adapters in memory, by small index; index 0 is the base as it is.

    Args:
        model: the base.
        capacity: most adapters.
    """

    def __init__(self, model: PreTrainedModel, capacity: int) -> None:
        self.shapes = linear_shapes(model)
        self.device: torch.device = model.device
        self._capacity = capacity
        self._loras: dict[int, Lora] = {}
        self._stack: Stack | None = None
        self._last: tuple[tuple[int, ...], Mix] | None = None

    def put(self, lora: Lora) -> int:
        """Keep an adapter; returns its index.

        Raises:
            ResourceExhausted: the bank is full.
        """
        if len(self._loras) >= self._capacity:
            raise ResourceExhausted(
                f"{self._capacity} adapters are loaded already; unload one first.", quota="engine adapters"
            )
        index = next(i for i in range(1, self._capacity + 1) if i not in self._loras)
        self._loras[index] = lora
        return index

    def drop(self, index: int) -> None:
        """Forget an adapter that no row uses."""
        del self._loras[index]
        self._stack = self._last = None

    @property
    def nbytes(self) -> int:
        """Memory of all adapters."""
        return sum(lora.nbytes for lora in self._loras.values())

    def mix(self, indices: Sequence[int]) -> Mix | None:
        """What a step over rows with these adapters needs; None if all are the base."""
        wanted = {index for index in indices if index}
        if not wanted:
            return None
        if self._last is None or self._last[0] != tuple(indices):
            self._last = tuple(indices), self._mix(indices, wanted)
        return self._last[1]

    def _mix(self, indices: Sequence[int], wanted: set[int]) -> Mix:
        stack = self._stack
        # A stack with a few adapters too many is cheaper than a new one whenever a row comes or goes.
        if stack is None or not wanted <= stack.places.keys() or len(stack.places) > 2 * len(wanted):
            stack = self._stack = Stack({index: self._loras[index] for index in sorted(wanted)})
        places = torch.tensor([stack.places.get(index, -1) for index in indices], device=self.device)
        if len(stack.places) == 1 and all(indices):
            return Mix(stack, places, None)
        mask = places[:, None] == torch.arange(len(stack.places), device=self.device)
        return Mix(stack, places, mask.repeat_interleave(stack.rank, 1).float())
