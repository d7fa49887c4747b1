"""One step of a model over the rows of a store: the model's own forward, for any architecture.

A `Forward` writes the new keys and values into the store and answers with logits; it knows no request, no sampling
and no schedule. `ModelForward` works for every causal model whose cache is keys and values; `lean.LeanForward` does
the same with fewer operations for the architectures it knows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from chatmill.errors import FailedPrecondition
from inference_svc.engines.rows.adapters import Mix, linear_shapes
from inference_svc.engines.rows.store import LayerShape, RowStore


@dataclass(frozen=True, slots=True)
class Prefill:
    """A chunk of prompt for several rows, all starting at the same position.

    Attributes:
        slots: [m] slots of the rows.
        tokens: [m, q] ids; short rows are filled up at the right with anything.
        start: position of the first column.
        last: [m] column of each row's last true token, whose logits are wanted.
        mix: which adapter each row has; None if none has one.
    """

    slots: list[int]
    tokens: Tensor
    start: int
    last: Tensor
    mix: Mix | None = None


class Forward(Protocol):
    """A model that reads and writes a `RowStore`."""

    def decode(self, tokens: Tensor, positions: Tensor, width: int, mix: Mix | None) -> Tensor:
        """Logits [n, vocabulary] of the next token for slots 0 to n-1.

        Args:
            tokens: [n] last token of each slot.
            positions: [n] where it stands; its keys and values are written there.
            width: at least one more than the highest position of the slots that are read; others may be passed over.
            mix: which adapter each slot has; None if none has one.
        """
        ...

    def prefill(self, chunk: Prefill) -> Tensor:
        """Logits [m, vocabulary] after each row's last token of the chunk."""
        ...


class _RowLayer(CacheLayerMixin):  # type: ignore[misc]
    """What a model sees of one layer of the store: the rows of this step as one batch."""

    is_sliding = False
    is_croppable = False

    def __init__(self, cache: RowCache, number: int) -> None:
        super().__init__()
        self._cache, self._number = cache, number
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the store owns the memory."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the new states and give those of all rows up to the step's width."""
        return self._cache.write(self._number, key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Masks cover columns 0 to width - 1."""
        return self._cache.width, 0

    def get_seq_length(self) -> int:
        """Column of the first query of the step."""
        return self._cache.start

    def get_max_length(self) -> int:
        """No bound of its own."""
        return -1


class RowCache(Cache):  # type: ignore[misc]
    """A Transformers cache over a `RowStore`. `aim` says which rows and columns the next forward is about."""

    def __init__(self, store: RowStore) -> None:
        super().__init__(layers=[_RowLayer(self, number) for number in range(len(store.layers))])
        self.store = store
        self.width = self.start = 0
        self._rows: Tensor | None = None
        self._count = 0
        self._at: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))

    def aim(self, rows: Tensor | None, count: int, positions: Tensor, start: int, width: int) -> None:
        """Prepare a step.

        Args:
            rows: [m] slots, or None for the first `count` slots.
            count: rows of the step.
            positions: [m, q] columns to write.
            start: what the model takes for the number of cached tokens.
            width: columns that attention covers.
        """
        index = torch.arange(count, device=positions.device) if rows is None else rows
        self._rows, self._count, self.start, self.width = rows, count, start, width
        self._at = (index[:, None], positions)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store [m, heads, q, size] states at the aimed columns; returns [m, heads, width, size]."""
        row, column = self._at
        out = []
        for plane, new in ((self.store.keys[layer], keys), (self.store.values[layer], values)):
            plane[row, :, column] = new.transpose(1, 2)
            seen = plane[: self._count] if self._rows is None else plane[self._rows]
            out.append(seen[:, :, : self.width])
        return out[0], out[1]


class ModelForward:
    """The model's own forward over the store.

    Full attention gets a boolean mask [m, 1, q, width] made from positions alone. Architectures that want the padding
    mask instead (ALiBi, models without `position_ids`) get [m, width] and build what they need.

    Args:
        model: in eval mode.
        store: its states.
    """

    def __init__(self, model: PreTrainedModel, store: RowStore) -> None:
        self.model, self.store = model, store
        self.cache = RowCache(store)
        parameters = inspect.signature(model.forward).parameters
        config = model.config.get_text_config(decoder=True)
        self._window: int | None = getattr(config, "sliding_window", None)
        usual = "full_attention" if self._window is None else "sliding_attention"
        self._kinds = sorted(set(getattr(config, "layer_types", None) or [usual]))
        if strange := set(self._kinds) - {"full_attention", "sliding_attention"}:
            raise FailedPrecondition(
                f"{config.model_type!r} has layers of kind {', '.join(sorted(strange))}, which the rows engine can't "
                "batch; serve it through the openai engine instead.",
                reason="UNSUPPORTED_ARCHITECTURE",
            )
        self._mix: Mix | None = None
        self._hooks = [
            model.get_submodule(name).register_forward_hook(self._adapt(name, size))
            for name, (_, size) in linear_shapes(model).items()
        ]
        self._takes_positions = "position_ids" in parameters
        self._keeps = "logits_to_keep" in parameters
        self._plain_mask = (
            self._takes_positions
            and bool(getattr(model, "_supports_attention_backend", False))
            and not getattr(config, "alibi", False)
        )

    def detach(self) -> None:
        """Take the hooks for adapters off the model, before something else runs it."""
        for hook in self._hooks:
            hook.remove()

    def decode(self, tokens: Tensor, positions: Tensor, width: int, mix: Mix | None) -> Tensor:
        """See `Forward.decode`."""
        count = tokens.shape[0]
        at = positions[:, None]
        self.cache.aim(None, count, at, width - 1, width)
        return self._run(tokens[:, None], at, width, None, mix)

    def prefill(self, chunk: Prefill) -> Tensor:
        """See `Forward.prefill`."""
        count, length = chunk.tokens.shape
        device = chunk.tokens.device
        rows = torch.tensor(chunk.slots, device=device)
        at = torch.arange(chunk.start, chunk.start + length, device=device).expand(count, length)
        width = chunk.start + length
        self.cache.aim(rows, count, at, chunk.start, width)
        return self._run(chunk.tokens, at, width, chunk.last, chunk.mix)

    def _run(self, tokens: Tensor, at: Tensor, width: int, last: Tensor | None, mix: Mix | None) -> Tensor:
        self._mix = mix
        mask = self._mask(at, torch.arange(width, device=tokens.device))
        extra: dict[str, Any] = {}
        if self._takes_positions:
            extra["position_ids"] = at
        if last is None and self._keeps:
            extra["logits_to_keep"] = 1
        elif last is not None and self._keeps:
            extra["logits_to_keep"] = wanted = torch.unique(last)
            last = torch.searchsorted(wanted, last)
        out = self.model(tokens, attention_mask=mask, past_key_values=self.cache, use_cache=True, **extra)
        logits: Tensor = out.logits
        if last is None:
            return logits[:, -1]
        return logits[torch.arange(len(last), device=last.device), last]

    def _adapt(self, name: str, size: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        """A hook that adds the rows' adapters to what a module gives."""

        def hook(_: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
            return None if self._mix is None else self._mix.add(out, inputs[0], (name,), (size,))

        return hook

    def _mask(self, at: Tensor, columns: Tensor) -> Tensor | dict[str, Tensor]:
        seen = columns <= at[:, :, None]
        if not self._plain_mask:
            return seen[:, -1].to(torch.long)
        masks = {"full_attention": self._formed(seen)}
        if self._window is not None:
            masks["sliding_attention"] = self._formed(seen & (columns > at[:, :, None] - self._window))
        return masks[self._kinds[0]] if len(self._kinds) == 1 else {kind: masks[kind] for kind in self._kinds}

    def _formed(self, seen: Tensor) -> Tensor:
        """The mask [m, 1, q, width] as the attention implementation wants it: eager adds it to the scores."""
        if self.model.config.get_text_config(decoder=True)._attn_implementation != "eager":
            return seen[:, None]
        dtype = self.model.dtype
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)[
            :, None
        ]


def layer_shapes(model: PreTrainedModel) -> list[LayerShape]:
    """What the model keeps per layer, found by running it on one token.

    Raises:
        FailedPrecondition: reason `UNSUPPORTED_ARCHITECTURE`, if it keeps anything but keys and values.
    """
    config = model.config.get_text_config(decoder=True)
    cache = DynamicCache(config=config)
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    with torch.inference_mode():
        model(token, attention_mask=torch.ones_like(token), past_key_values=cache, use_cache=True)
    shapes = []
    for layer in cache.layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) or layer.keys is None:
            raise FailedPrecondition(
                f"{config.model_type!r} keeps a {type(layer).__name__} beside keys and values, which the rows engine "
                "can't hold; serve it through the openai engine instead.",
                reason="UNSUPPORTED_ARCHITECTURE",
            )
        shapes.append(
            LayerShape(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[1], layer.values.shape[3])
        )
    return shapes
