"""The same step as the model's own forward, with a fraction of the operations, for the Llama family.

At a few million parameters a step costs what dispatching its operations costs, and Transformers' decoder layer is
about 55 of them. Here a layer is four products and what `between` makes of the rest: three calls where it is compiled,
else about 16 operations of torch; attention works on the store's memory without copies. Where a model is small enough
to be kept twice, `layers` makes the whole step one call. Weights are the model's own, and `steps` compares the two
forwards on loading and keeps the model's own where they differ.

Not for: sliding windows, dynamic rotary scaling, biases in the MLP. `supports` says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name
from torch import Tensor
from transformers import PreTrainedModel

from inference_svc.engines.rows import between, layers
from inference_svc.engines.rows.adapters import Mix
from inference_svc.engines.rows.forward import Prefill
from inference_svc.engines.rows.products import PACKED_BYTES, Product
from inference_svc.engines.rows.store import RowStore

FAMILIES = frozenset({"llama", "qwen2", "qwen3", "mistral"})
"""`config.model_type` of the architectures that share this shape."""


def supports(model: PreTrainedModel) -> bool:
    """Whether `LeanForward` can stand in for this model's forward."""
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        config.model_type in FAMILIES
        and kinds == {"full_attention"}
        and (getattr(config, "sliding_window", None) is None or config.model_type.startswith("qwen"))
        and rope.get("rope_type", "default") in ("default", "linear", "llama3")
        and not getattr(config, "mlp_bias", False)
        and config.hidden_act in ("silu", "swish")
    )


SPAN = 8
"""Rows that share one width in attention when rows differ much in length."""


def _spans(positions: Tensor, width: int) -> list[tuple[int, int, int]]:
    """(first row, last row, width) of the pieces that attention runs in: one, unless a few long rows would make the
    short ones pay for theirs. On a CUDA device always one, since launching costs more there than masked columns."""
    count = len(positions)
    if positions.device.type != "cpu" or count <= SPAN:
        return [(0, count, width)]
    at = positions.tolist()
    pieces = [
        (start, min(start + SPAN, count), min(width, max(at[start : start + SPAN]) + 1))
        for start in range(0, count, SPAN)
    ]
    needed = sum((stop - start) * wide for start, stop, wide in pieces)
    return pieces if needed < 0.7 * count * width else [(0, count, width)]


def filled_up(tokens: int) -> int:
    """How many tokens a prefill of so many is computed as: sixteen sizes up to 128, then eight for each doubling.

    oneDNN compiles a kernel for every size that a product meets, which takes a millisecond, and keeps a thousand of
    them, which take 150 MB; so there must not be many sizes.
    """
    step = max(8, 1 << max(0, (tokens - 1).bit_length() - 4))
    return -(-tokens // step) * step


PRODUCTS_FROM = 16
"""Rows from which attention of one query each is faster on a CPU as two products than as torch's blocked one, where
`between` is not compiled."""


def _attend_in_products(q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor, scale: float) -> Tensor:
    """`F.scaled_dot_product_attention` in plain products."""
    weights = torch.matmul(q, k.transpose(-1, -2)).mul_(scale).add_(attn_mask)
    return torch.matmul(torch.softmax(weights, -1), v)


class _Layer:
    """The weights of one decoder layer, as the step uses them."""

    def __init__(self, layer: Any, name: str, *, packed: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.norm_in, self.norm_out = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        self.epsilon: float = layer.input_layernorm.variance_epsilon
        self.qkv, self.out, self.gate_up, self.down = self.products = (
            self._product(attention, f"{name}.self_attn", ("q_proj", "k_proj", "v_proj"), packed),
            self._product(attention, f"{name}.self_attn", ("o_proj",), packed),
            self._product(mlp, f"{name}.mlp", ("gate_proj", "up_proj"), packed),
            self._product(mlp, f"{name}.mlp", ("down_proj",), packed),
        )
        self.q_norm = attention.q_norm.weight if hasattr(attention, "q_norm") else None
        self.k_norm = attention.k_norm.weight if hasattr(attention, "k_norm") else None

    @staticmethod
    def _product(module: Any, name: str, parts: tuple[str, ...], packed: bool) -> Product:
        return Product({f"{name}.{part}": getattr(module, part) for part in parts}, packed=packed)


class LeanForward:
    """A Llama-shaped decoder over a `RowStore`.

    Args:
        model: one that `supports` accepts; its linear weights become views of fused ones.
        store: its states, in the precision that attention is to be computed in.

    Attributes:
        whole: the step in one call, or None where it is not for this model.
    """

    def __init__(self, model: PreTrainedModel, store: RowStore) -> None:
        self.store = store
        self.embed: Tensor = model.model.embed_tokens.weight
        packed = (
            store.device.type == "cpu"
            and model.get_memory_footprint() <= PACKED_BYTES
            and (model.dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
        )
        self.head = Product({"lm_head": model.lm_head}, packed=packed)
        self.norm: Tensor = model.model.norm.weight
        self.layers = [
            _Layer(layer, f"model.layers.{number}", packed=packed) for number, layer in enumerate(model.model.layers)
        ]
        self._rotary = model.model.rotary_emb
        self._compiled = between.compiled(self.embed.dtype, store.dtype) if self._compiles(model) else None
        self._between: between.Between = self._compiled or between.Plain()
        attention = model.model.layers[0].self_attn
        self.size: int = attention.head_dim
        self.kv_heads: int = attention.k_proj.out_features // self.size
        self.heads: int = attention.q_proj.out_features // self.size
        self.scale: float = attention.scaling
        self.whole = self._in_one_call() if packed and self._compiled is not None else None
        self._generation = -1
        self._refresh()

    def _refresh(self) -> None:
        """Take new views and tables after the store moved."""
        store = self.store
        at = torch.arange(store.columns, device=store.device)[None]
        dtype = store.dtype if self._compiled is None else torch.float32
        cos, sin = self._rotary(torch.empty(0, dtype=dtype, device=store.device), at)
        half = self.size // 2
        self._cos = cos[0]
        # rotate_half(x) * sin equals roll(x, half) * signed: one operation less than Transformers' form.
        self._sin = torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)
        self._row_base = torch.arange(store.rows, device=store.device) * (self.kv_heads * store.columns)
        self._head_base = torch.arange(self.kv_heads, device=store.device) * store.columns
        self._columns = torch.arange(store.columns, device=store.device)
        self._keys = [keys.view(-1, self.size) for keys in store.keys]
        self._values = [values.view(-1, self.size) for values in store.values]
        self._generation = store.generation
        if self.whole is not None:
            self.whole.use(store, self._cos, self._sin)

    def _in_one_call(self) -> layers.Layers | None:
        """The step in one call where that is for this model; the rest of this class does the same without."""
        norms = {norm.dtype for own in self.layers for norm in (own.q_norm, own.k_norm) if norm is not None}
        products = [self.head, *(product for layer in self.layers for product in layer.products)]
        if any(product.packed is None for product in products) or self.size % 4 or not norms <= {self.embed.dtype}:
            return None
        return layers.made(
            self.embed.dtype,
            self.store.dtype,
            self.layers,
            self.norm,
            self.head,
            heads=self.heads,
            kv_heads=self.kv_heads,
            size=self.size,
            epsilon=self.layers[0].epsilon,
            scale=self.scale,
        )

    def _compiles(self, model: PreTrainedModel) -> bool:
        """Whether `between.Compiled` is for this model and its states."""
        store = self.store
        return (
            store.device.type == "cpu"
            and self.embed.dtype in (torch.float32, torch.bfloat16)
            and store.dtype in (torch.float32, self.embed.dtype)
            and {self.norm.dtype, *(norm.dtype for own in self.layers for norm in (own.norm_in, own.norm_out))}
            == {self.embed.dtype}
            and model.model.layers[0].self_attn.head_dim <= between.MOST_SIZE
        )

    def decode(self, tokens: Tensor, positions: Tensor, width: int, mix: Mix | None) -> Tensor:
        """See `Forward.decode`."""
        if self._generation != self.store.generation:
            self._refresh()
        if self.whole is not None and self.whole.takes(mix):
            return self.whole.decode(F.embedding(tokens, self.embed), positions, width, mix)
        attend = self._attention(positions, width)
        x, added = F.embedding(tokens, self.embed), None
        for number, layer in enumerate(self.layers):
            x, normal = self._between.add_norm(x, added, layer.norm_in, layer.epsilon)
            mixed = attend(number, layer, layer.qkv(normal, mix))
            x, added = self._after_attention(layer, x, mixed, mix)
        return self._logits(x, added, mix)

    def _attention(self, positions: Tensor, width: int) -> Callable[[int, _Layer, Tensor], Tensor]:
        """The attention of a decode step: number of a layer, the layer and its projection to [rows, heads * size]."""
        store, count, size = self.store, len(positions), self.size
        if (compiled := self._compiled) is not None:
            positions = positions.contiguous()

            def attend(number: int, layer: _Layer, flat: Tensor) -> Tensor:
                flat = self._heads(layer, flat).reshape(count, -1)
                keys, values = store.keys[number], store.values[number]
                return compiled.attend(
                    flat, self._cos, self._sin, positions, keys, values, self.heads, width, self.scale
                )

            return attend

        cos, sin = self._cos[positions].view(count, 1, size), self._sin[positions].view(count, 1, size)
        at = ((self._row_base[:count] + positions)[:, None] + self._head_base).view(-1)
        hidden_by = self._columns[:width] > positions[:, None]
        mask = torch.zeros(count, width, dtype=store.dtype, device=store.device)
        mask = mask.masked_fill_(hidden_by, float("-inf")).view(count, 1, 1, width)
        spans = _spans(positions, width)

        def attend_plainly(number: int, layer: _Layer, flat: Tensor) -> Tensor:
            q, k, v = self._rotated(layer, flat, cos, sin)
            self._keys[number].index_copy_(0, at, k.reshape(-1, size))
            self._values[number].index_copy_(0, at, v.reshape(-1, size))
            q = q.reshape(count, self.kv_heads, self.heads // self.kv_heads, size)
            return self._attend(number, q, mask, spans).reshape(count, -1)

        return attend_plainly

    def prefill(self, chunk: Prefill) -> Tensor:
        """See `Forward.prefill`."""
        store = self.store
        if self._generation != store.generation:
            self._refresh()
        count, length = chunk.tokens.shape
        kv, size, start = self.kv_heads, self.size, chunk.start
        width = start + length
        rows = torch.tensor(chunk.slots, device=store.device)
        tokens = count * length
        filled = filled_up(tokens) if store.device.type == "cpu" else tokens
        x = F.embedding(F.pad(chunk.tokens.reshape(-1), (0, filled - tokens)), self.embed)
        if self.whole is not None and self.whole.takes(chunk.mix):
            return self.whole.prefill(x, rows, length, start, chunk.last, chunk.mix)
        cos = F.pad(self._cos[start:width].repeat(count, 1), (0, 0, 0, filled - tokens)).view(-1, 1, size)
        sin = F.pad(self._sin[start:width].repeat(count, 1), (0, 0, 0, filled - tokens)).view(-1, 1, size)
        at = (self._row_base[rows, None] + self._columns[start:width])[:, :, None] + self._head_base
        at = at.view(-1)
        mask = None if start == 0 else self._columns[:width] <= self._columns[start:width, None]
        mix = chunk.mix.spread(length, filled) if chunk.mix is not None else None
        added = None
        for number, layer in enumerate(self.layers):
            x, normal = self._between.add_norm(x, added, layer.norm_in, layer.epsilon)
            q, k, v = (part[:tokens] for part in self._rotated(layer, layer.qkv(normal, mix), cos, sin))
            self._keys[number].index_copy_(0, at, k.reshape(-1, size))
            self._values[number].index_copy_(0, at, v.reshape(-1, size))
            q = q.reshape(count, length, self.heads, size).transpose(1, 2)
            if start == 0:
                k = k.reshape(count, length, kv, size).transpose(1, 2)
                v = v.reshape(count, length, kv, size).transpose(1, 2)
            else:
                k, v = store.keys[number][rows, :, :width], store.values[number][rows, :, :width]
            mixed = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=start == 0, scale=self.scale, enable_gqa=kv != self.heads
            )
            mixed = mixed.transpose(1, 2).reshape(tokens, -1)
            x, added = self._after_attention(layer, x, F.pad(mixed, (0, 0, 0, filled - tokens)), mix)
        wanted = torch.arange(count, device=store.device) * length + chunk.last
        return self._logits(x[wanted], None if added is None else added[wanted], chunk.mix)

    def _heads(self, layer: _Layer, flat: Tensor) -> Tensor:
        """The same by heads, [tokens, all heads, size], with the norms that some families have for each."""
        heads, kv, size = self.heads, self.kv_heads, self.size
        qkv = flat.view(-1, heads + 2 * kv, size)
        if layer.q_norm is None or layer.k_norm is None:
            return qkv
        q = F.rms_norm(qkv[:, :heads], (size,), layer.q_norm, layer.epsilon)
        k = F.rms_norm(qkv[:, heads : heads + kv], (size,), layer.k_norm, layer.epsilon)
        return torch.cat([q, k, qkv[:, heads + kv :]], 1)

    def _rotated(self, layer: _Layer, flat: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, [tokens, heads, size] each."""
        heads, both = self.heads, self.heads + self.kv_heads
        qkv = self._heads(layer, flat)
        qk = qkv[:, :both].to(cos.dtype)
        qk = torch.addcmul(qk * cos, qk.roll(self.size // 2, -1), sin).to(self.store.dtype)
        return qk[:, :heads], qk[:, heads:], qkv[:, both:].to(self.store.dtype)

    def _attend(self, number: int, q: Tensor, mask: Tensor, spans: list[tuple[int, int, int]]) -> Tensor:
        """Attention [rows, kv heads, group, size] of one query per head over the states of its row."""
        keys, values = self.store.keys[number], self.store.values[number]
        plain = q.device.type == "cpu" and q.dtype == torch.float32 and len(q) >= PRODUCTS_FROM
        attention = _attend_in_products if plain else F.scaled_dot_product_attention
        parts = [
            attention(
                q[start:stop],
                keys[start:stop, :, :width],
                values[start:stop, :, :width],
                attn_mask=mask[start:stop, ..., :width],
                scale=self.scale,
            )
            for start, stop, width in spans
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _after_attention(self, layer: _Layer, x: Tensor, mixed: Tensor, mix: Mix | None) -> tuple[Tensor, Tensor]:
        """Hidden states after attention, and what the feed-forward part adds to them, not yet added."""
        out = layer.out(mixed.to(x.dtype), mix)
        x, normal = self._between.add_norm(x, out, layer.norm_out, layer.epsilon)
        return x, layer.down(self._between.gated(layer.gate_up(normal, mix)), mix)

    def _logits(self, x: Tensor, added: Tensor | None, mix: Mix | None) -> Tensor:
        _, normal = self._between.add_norm(x, added, self.norm, self.layers[0].epsilon)
        return self.head(normal, mix)
