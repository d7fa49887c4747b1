"""The same step as the model's own forward, with a fraction of the operations, for the Llama family.

At a few million parameters a step costs what dispatching its operations costs, and Transformers' decoder layer is
about 55 of them. Here a layer is four products and what `between` makes of the rest: three calls where it is compiled,
else about 16 operations of torch; attention works on the store's memory without copies. Weights are the model's own
(the fused matrices replace them, so memory stays the same), and `loading` compares the two forwards on loading and
keeps the model's own where they differ.

Not for: sliding windows, dynamic rotary scaling, biases in the MLP. `supports` says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn
from transformers import PreTrainedModel

from inference_svc.engines.rows import between, fourbit
from inference_svc.engines.rows.adapters import Mix
from inference_svc.engines.rows.forward import Prefill
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


class _Product:
    """x times a weight, transposed, plus a bias.

    On a CPU the weight is kept in oneDNN's own layout (what `torch.compile` does when it freezes a model): up to twice
    as fast for a few rows, and each row's result does not depend on how many there are.

    Args:
        weight: [out, in].
        bias: [out] or None.
        packed: keep a second copy in that layout.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, packed: bool) -> None:
        self._weight, self._bias = weight, bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_ROWS) if packed else None

    def __call__(self, x: Tensor) -> Tensor:
        if self._packed is None:
            return F.linear(x, self._weight, self._bias)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
        return out


_PACKED_ROWS = 32
"""Rows that the packed layout is chosen for."""
PACKED_BYTES = 256 << 20
"""Models of more weights than this are not kept twice; their products wait for memory in either layout."""


class _Apart:
    """Products of the same input that stay apart, because each is quantised on its own; the results side by side."""

    def __init__(self, parts: list[Callable[[Tensor], Tensor]]) -> None:
        self._parts = parts

    def __call__(self, x: Tensor) -> Tensor:
        if len(self._parts) == 1:
            return self._parts[0](x)
        return torch.cat([part(x) for part in self._parts], -1)


def _alone(part: nn.Linear) -> Callable[[Tensor], Tensor]:
    """The product of one layer, quantised or not."""
    return fourbit.FourBit([part]) if isinstance(part, Linear4bit) and fourbit.fits([part]) else part


def _product(parts: list[nn.Linear], *, packed: bool) -> Callable[[Tensor], Tensor]:
    """One product for linear layers of the same input. Those of a kind are fused, their weights become views of it."""
    if all(isinstance(part, Linear4bit) for part in parts) and fourbit.fits(parts):
        return fourbit.FourBit(parts)
    if any(type(part) is not nn.Linear for part in parts):
        return _Apart([_alone(part) for part in parts])
    if len(parts) == 1:
        return _Product(parts[0].weight, parts[0].bias, packed=packed)
    weight = torch.cat([part.weight.data for part in parts])
    bias = None if parts[0].bias is None else torch.cat([part.bias.data for part in parts])
    start = 0
    for part in parts:
        stop = start + part.out_features
        part.weight.data = weight[start:stop]
        if bias is not None:
            part.bias.data = bias[start:stop]
        start = stop
    return _Product(weight, bias, packed=packed)


class _Layer:
    """The weights of one decoder layer, as the step uses them."""

    def __init__(self, layer: Any, name: str, *, packed: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.norm_in, self.norm_out = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        self.epsilon: float = layer.input_layernorm.variance_epsilon
        self.qkv = _product([attention.q_proj, attention.k_proj, attention.v_proj], packed=packed)
        self.out = _product([attention.o_proj], packed=packed)
        self.gate_up = _product([mlp.gate_proj, mlp.up_proj], packed=packed)
        self.down = _product([mlp.down_proj], packed=packed)
        self.qkv_names = tuple(f"{name}.self_attn.{part}_proj" for part in "qkv")
        self.qkv_sizes = tuple(part.out_features for part in (attention.q_proj, attention.k_proj, attention.v_proj))
        self.out_name = (f"{name}.self_attn.o_proj",)
        self.gate_up_names = (f"{name}.mlp.gate_proj", f"{name}.mlp.up_proj")
        self.gate_up_sizes = (mlp.gate_proj.out_features, mlp.up_proj.out_features)
        self.down_name = (f"{name}.mlp.down_proj",)
        self.q_norm = attention.q_norm.weight if hasattr(attention, "q_norm") else None
        self.k_norm = attention.k_norm.weight if hasattr(attention, "k_norm") else None


class LeanForward:
    """A Llama-shaped decoder over a `RowStore`.

    Args:
        model: one that `supports` accepts; its linear weights become views of fused ones.
        store: its states, in the precision that attention is to be computed in.
    """

    def __init__(self, model: PreTrainedModel, store: RowStore) -> None:
        self.store = store
        self.embed: Tensor = model.model.embed_tokens.weight
        packed = (
            store.device.type == "cpu"
            and model.get_memory_footprint() <= PACKED_BYTES
            and (model.dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
        )
        self.head = _product([model.lm_head], packed=packed)
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
        attend = self._attention(positions, width)
        x, added = F.embedding(tokens, self.embed), None
        for number, layer in enumerate(self.layers):
            x, normal = self._between.add_norm(x, added, layer.norm_in, layer.epsilon)
            mixed = attend(number, layer, self._project(layer, normal, mix))
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
        cos = F.pad(self._cos[start:width].repeat(count, 1), (0, 0, 0, filled - tokens)).view(-1, 1, size)
        sin = F.pad(self._sin[start:width].repeat(count, 1), (0, 0, 0, filled - tokens)).view(-1, 1, size)
        at = (self._row_base[rows, None] + self._columns[start:width])[:, :, None] + self._head_base
        at = at.view(-1)
        mask = None if start == 0 else self._columns[:width] <= self._columns[start:width, None]
        x = F.embedding(F.pad(chunk.tokens.reshape(-1), (0, filled - tokens)), self.embed)
        mix = chunk.mix.spread(length, filled) if chunk.mix is not None else None
        added = None
        for number, layer in enumerate(self.layers):
            x, normal = self._between.add_norm(x, added, layer.norm_in, layer.epsilon)
            flat = self._project(layer, normal, mix)
            q, k, v = (part[:tokens] for part in self._rotated(layer, flat, cos, sin))
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

    @staticmethod
    def _project(layer: _Layer, normal: Tensor, mix: Mix | None) -> Tensor:
        """Queries, keys and values side by side, [tokens, all heads * size], of normed hidden states."""
        flat = layer.qkv(normal)
        return flat if mix is None else mix.add(flat, normal, layer.qkv_names, layer.qkv_sizes)

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
        mixed = mixed.to(x.dtype)
        out = layer.out(mixed)
        if mix is not None:
            out = mix.add(out, mixed, layer.out_name, (x.shape[-1],))
        x, normal = self._between.add_norm(x, out, layer.norm_out, layer.epsilon)
        gate_up = layer.gate_up(normal)
        if mix is not None:
            gate_up = mix.add(gate_up, normal, layer.gate_up_names, layer.gate_up_sizes)
        inner = self._between.gated(gate_up)
        out = layer.down(inner)
        return x, out if mix is None else mix.add(out, inner, layer.down_name, (x.shape[-1],))

    def _logits(self, x: Tensor, added: Tensor | None, mix: Mix | None) -> Tensor:
        _, normal = self._between.add_norm(x, added, self.norm, self.layers[0].epsilon)
        logits = self.head(normal)
        return logits if mix is None else mix.add(logits, normal, ("lm_head",), (logits.shape[-1],))
