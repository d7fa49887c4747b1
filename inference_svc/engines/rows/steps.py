"""Puts a scheduler together for a loaded model: which forward, how much memory.

This module knows no request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from chatmill.errors import ChatmillError
from inference_svc.engines.rows import lean
from inference_svc.engines.rows.adapters import AdapterBank
from inference_svc.engines.rows.detokenize import TextTable
from inference_svc.engines.rows.forward import Forward, ModelForward, Prefill, layer_shapes
from inference_svc.engines.rows.loading import Loaded
from inference_svc.engines.rows.parameters import RowsParameters
from inference_svc.engines.rows.prefix_cache import PrefixCache
from inference_svc.engines.rows.row import Row
from inference_svc.engines.rows.scheduler import Limits, Scheduler
from inference_svc.engines.rows.store import RowStore
from inference_svc.generation import EngineEvent

log = logging.getLogger(__name__)

DEFAULT_COLUMNS = 4096
"""Without a token budget of its own, an engine may use this many positions for each of its rows."""


def make_scheduler(
    loaded: Loaded,
    parameters: RowsParameters,
    cache: PrefixCache,
    table: TextTable,
    emit: Callable[[Row, EngineEvent], None],
    fail: Callable[[Row, ChatmillError], None],
) -> Scheduler:
    """A scheduler over a loaded base; on the thread that will run it."""
    model, info = loaded.model, loaded.info
    columns = info.context_length
    budget = parameters.token_budget or parameters.max_rows * min(columns, DEFAULT_COLUMNS)
    store = RowStore(
        layer_shapes(model),
        dtype=model.dtype,
        device=model.device,
        max_rows=parameters.max_rows,
        max_columns=columns,
        token_budget=max(budget, columns),
    )
    forward = choose_forward(model, store, lean_allowed=parameters.lean)
    bank = AdapterBank(model, parameters.max_adapters)
    return Scheduler(forward, store, bank, cache, table, emit, fail, Limits(prefill_tokens=parameters.prefill_tokens))


def choose_forward(model: PreTrainedModel, store: RowStore, *, lean_allowed: bool) -> Forward:
    """The lean forward where it knows the architecture and gives the same logits, else the model's own."""
    own = ModelForward(model, store)
    if not lean_allowed or not lean.supports(model):
        return own
    expected = _probe(own, store)
    quick = lean.LeanForward(model, store)
    difference = (_probe(quick, store) - expected).abs().max().item()
    allowed = 64 * torch.finfo(model.dtype).eps * max(1.0, expected.abs().max().item())
    store.release()
    if not difference <= allowed:
        log.warning(
            "the lean forward differs from the model's own by %.3g (%.3g allowed); not used", difference, allowed
        )
        return own
    return quick


def _probe(forward: Forward, store: RowStore) -> torch.Tensor:
    """Logits of a short made-up prompt in two chunks and a decoded token, [3, vocabulary]."""
    device = store.device
    tokens = torch.arange(1, 13, device=device).view(1, 12)
    with torch.inference_mode():
        first = forward.prefill(Prefill([0], tokens[:, :7], 0, torch.tensor([6], device=device)))
        second = forward.prefill(Prefill([0], tokens[:, 7:], 7, torch.tensor([4], device=device)))
        third = forward.decode(tokens[0, :1], torch.tensor([12], device=device), 13, None)
    return torch.cat([first, second, third]).float()
