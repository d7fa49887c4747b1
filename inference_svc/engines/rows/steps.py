"""Puts a scheduler together for a loaded model: which forward, how much memory, how many threads.

This module knows no request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from chatmill.errors import ChatmillError
from inference_svc.engines.rows import cores, fourbit, lean, nf4, sampling
from inference_svc.engines.rows.adapters import AdapterBank
from inference_svc.engines.rows.bell import Bell
from inference_svc.engines.rows.detokenize import TextTable
from inference_svc.engines.rows.forward import Forward, ModelForward, Prefill, layer_shapes
from inference_svc.engines.rows.graphs import GraphedForward
from inference_svc.engines.rows.loading import Loaded
from inference_svc.engines.rows.parameters import RowsParameters
from inference_svc.engines.rows.prefix_cache import PrefixCache
from inference_svc.engines.rows.row import Row
from inference_svc.engines.rows.scheduler import Limits, Scheduler
from inference_svc.engines.rows.store import LayerShape, RowStore
from inference_svc.engines.rows.threads import Threaded
from inference_svc.generation import EngineEvent

log = logging.getLogger(__name__)

DEFAULT_COLUMNS = 4096
"""Without a token budget of its own, an engine may use this many positions for each of its rows."""
FLOAT_STATE_BYTES = 2 << 30
"""On a CPU, states of half precision whose bound is below this are kept in float32 instead."""


def make_scheduler(
    loaded: Loaded,
    parameters: RowsParameters,
    cache: PrefixCache,
    table: TextTable,
    emit: Callable[[Row, EngineEvent], None],
    fail: Callable[[Row, ChatmillError], None],
    hand_out: Callable[[], None] = lambda: None,
    hand_over: Callable[[], None] = lambda: None,
    bell: Bell | None = None,
    own_thread: bool = False,
) -> Scheduler:
    """A scheduler over a loaded base; on the thread that will run it. With `own_thread` that one does nothing else, and
    steps may keep it on a core; for the rest see `Scheduler` and `bell`."""
    model = loaded.model
    forward, store = choose_forward(loaded, parameters)
    if bell is not None and isinstance(forward, lean.LeanForward) and forward.whole is not None:
        forward.whole.ring(bell)
    if store.device.type == "cpu":
        sampling.prepare(model.dtype)
    threads = torch.get_num_threads()
    if parameters.threads == 0 and threads > 1 and store.device.type == "cpu":
        forward = Threaded(forward, threads, cores.made(threads) if own_thread else None)
    # An int8 product reads back which columns are outliers, so the host has to wait in every layer.
    if parameters.graphs and store.device.type == "cuda" and loaded.info.quantisation != "int8":
        forward = GraphedForward(forward, store, capture=True)
    bank = AdapterBank(model, parameters.max_adapters)
    limits = Limits(prefill_tokens=parameters.prefill_tokens)
    return Scheduler(forward, store, bank, cache, table, emit, fail, limits, hand_out, hand_over)


def choose_forward(loaded: Loaded, parameters: RowsParameters) -> tuple[Forward, RowStore]:
    """The lean forward where it gives the same logits, else the model's own; with its store."""
    model = loaded.model
    # Before the model first runs: bitsandbytes then brings codes into a layout that only it knows.
    own_products = fourbit.replace_products(model)
    shapes = layer_shapes(model)
    store = _store(loaded, parameters, shapes, model.dtype)
    own = ModelForward(model, store)
    if not parameters.lean or not lean.supports(model):
        return own, store
    expected = _probe(own, store)
    quick_store = _store(loaded, parameters, shapes, _lean_dtype(store))
    quick = lean.LeanForward(model, quick_store)
    difference = (_probe(quick, quick_store) - expected).abs().max().item()
    noise = max(torch.finfo(model.dtype).eps, nf4.EPSILON if own_products else 0.0)
    allowed = 64 * noise * max(1.0, expected.abs().max().item())
    if not difference <= allowed:
        log.warning("the lean forward differs from the model's by %.3g (%.3g allowed); not used", difference, allowed)
        store.release()
        # Anew, since the lean forward has moved codes.
        fourbit.restore_products(model)
        fourbit.replace_products(model)
        return own, store
    own.detach()
    fourbit.restore_products(model)
    quick_store.release()
    return quick, quick_store


def _store(loaded: Loaded, parameters: RowsParameters, shapes: list[LayerShape], dtype: torch.dtype) -> RowStore:
    columns = loaded.info.context_length
    budget = parameters.token_budget or parameters.max_rows * min(columns, DEFAULT_COLUMNS)
    return RowStore(
        shapes,
        dtype=dtype,
        device=loaded.model.device,
        max_rows=parameters.max_rows,
        max_columns=columns,
        token_budget=max(budget, columns),
    )


def _lean_dtype(store: RowStore) -> torch.dtype:
    """Precision of the lean forward's states.

    Attention of one query in bfloat16 is up to six times as slow on a CPU as in float32, so states that fit take
    float32.
    """
    whole = store.bytes_per_position * store.token_budget
    half = store.dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if store.device.type == "cpu" and half and whole <= FLOAT_STATE_BYTES else store.dtype


def _probe(forward: Forward, store: RowStore) -> torch.Tensor:
    """Logits of a short made-up prompt in two chunks and a decoded token, [3, vocabulary]."""
    device = store.device
    tokens = torch.arange(1, 13, device=device).view(1, 12)
    with torch.inference_mode():
        first = forward.prefill(Prefill([0], tokens[:, :7], 0, torch.tensor([6], device=device)))
        second = forward.prefill(Prefill([0], tokens[:, 7:], 7, torch.tensor([4], device=device)))
        third = forward.decode(tokens[0, :1], torch.tensor([12], device=device), 13, None)
    return torch.cat([first, second, third]).float()
