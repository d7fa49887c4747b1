"""Puts a scheduler together for a loaded model: which forward, how much memory, how many threads.

This module knows no request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import perf_counter

import torch

from chatmill.errors import ChatmillError
from inference_svc.engines.rows import lean
from inference_svc.engines.rows.adapters import AdapterBank
from inference_svc.engines.rows.detokenize import TextTable
from inference_svc.engines.rows.forward import Forward, ModelForward, Prefill, layer_shapes
from inference_svc.engines.rows.graphs import GraphedForward
from inference_svc.engines.rows.loading import Loaded
from inference_svc.engines.rows.parameters import RowsParameters
from inference_svc.engines.rows.prefix_cache import PrefixCache
from inference_svc.engines.rows.row import Row
from inference_svc.engines.rows.scheduler import Limits, Scheduler
from inference_svc.engines.rows.store import LayerShape, RowStore
from inference_svc.generation import EngineEvent

log = logging.getLogger(__name__)

DEFAULT_COLUMNS = 4096
"""Without a token budget of its own, an engine may use this many positions for each of its rows."""
PROBE_ROWS, PROBE_COLUMNS, PROBE_ROUNDS = 32, 128, 6
"""The step that the number of threads is chosen by."""
LONG_STEP = 0.1
"""Models that need more seconds for it are tried only once."""
WORTH_IT = 0.8
"""All cores are used if they take less than this share of the time that one takes."""
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
) -> Scheduler:
    """A scheduler over a loaded base; on the thread that will run it."""
    model = loaded.model
    forward, store = choose_forward(loaded, parameters)
    if parameters.threads == 0:
        settle_threads(forward, store)
    # An int8 product reads back which columns are outliers, so the host has to wait in every layer.
    if parameters.graphs and store.device.type == "cuda" and loaded.info.quantisation != "int8":
        forward = GraphedForward(forward, store, capture=True)
    bank = AdapterBank(model, parameters.max_adapters)
    limits = Limits(prefill_tokens=parameters.prefill_tokens)
    return Scheduler(forward, store, bank, cache, table, emit, fail, limits, hand_out)


def choose_forward(loaded: Loaded, parameters: RowsParameters) -> tuple[Forward, RowStore]:
    """The lean forward where it gives the same logits, else the model's own; with its store."""
    model = loaded.model
    shapes = layer_shapes(model)
    store = _store(loaded, parameters, shapes, model.dtype)
    own = ModelForward(model, store)
    if not parameters.lean or not lean.supports(model):
        return own, store
    expected = _probe(own, store)
    quick_store = _store(loaded, parameters, shapes, _lean_dtype(store))
    quick = lean.LeanForward(model, quick_store)
    difference = (_probe(quick, quick_store) - expected).abs().max().item()
    allowed = 64 * torch.finfo(model.dtype).eps * max(1.0, expected.abs().max().item())
    if not difference <= allowed:
        log.warning("the lean forward differs from the model's by %.3g (%.3g allowed); not used", difference, allowed)
        store.release()
        return own, store
    own.detach()
    quick_store.release()
    return quick, quick_store


def settle_threads(forward: Forward, store: RowStore) -> int:
    """Set the number of threads for this model, found by trying; returns it.

    A step of a small model has operations of ten microseconds, which a second thread can't speed up, but it waits for
    the second core whenever something else, such as the service itself, has it. So all cores are used where that makes
    a step clearly faster, else one.
    """
    most = torch.get_num_threads()
    if store.device.type != "cpu" or most == 1:
        return most
    rows = min(PROBE_ROWS, store.max_rows)
    columns = min(PROBE_COLUMNS, store.max_columns)
    store.reserve(rows, columns)
    tokens = torch.zeros(rows, dtype=torch.long)
    positions = torch.full((rows,), columns - 1)
    best = dict.fromkeys((most, 1), float("inf"))
    with torch.inference_mode():
        for _ in range(PROBE_ROUNDS):
            for threads in best:
                torch.set_num_threads(threads)
                began = perf_counter()
                forward.decode(tokens, positions, columns, None)
                best[threads] = min(best[threads], perf_counter() - began)
            if min(best.values()) > LONG_STEP:
                break
    store.release()
    chosen = most if best[most] < WORTH_IT * best[1] else 1
    torch.set_num_threads(chosen)
    log.info("a step of %d rows takes %.1f ms on %d threads, %.1f on one", rows, best[most] * 1e3, most, best[1] * 1e3)
    return chosen


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
