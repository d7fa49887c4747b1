"""Greedy decoding of one batch with nothing around it: what a model can do on a device at most.

Nothing is read back between two steps, so the host is as far ahead of the device as it can be.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inference_svc.engines.rows.forward import Forward
    from inference_svc.engines.rows.store import RowStore


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of one batch.

    Attributes:
        first: until the first token is known.
        rest: of all later steps together.
    """

    first: float
    rest: float


def own_forward(model: Any, batch: int, length: int, new: int) -> Timed:
    """The model's own forward with Transformers' growing cache."""
    import torch
    from transformers import DynamicCache

    ids = _prompts(model, batch, length)
    cache = DynamicCache(config=model.config)
    _wait(model.device)
    begun = time.perf_counter()
    with torch.inference_mode():
        out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        ids = out.logits[:, -1:].argmax(-1)
        ids.tolist()
        first = time.perf_counter()
        for _ in range(new - 1):
            out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids = out.logits[:, -1:].argmax(-1)
        ids.tolist()
    return Timed(first - begun, time.perf_counter() - first)


def over_store(forward: Forward, store: RowStore, model: Any, batch: int, length: int, new: int) -> Timed:
    """A forward of the engine over its store, which is a static cache."""
    import torch

    from inference_svc.engines.rows.forward import Prefill

    store.reserve(batch, length + new)
    ids = _prompts(model, batch, length)
    last = torch.full((batch,), length - 1, device=store.device)
    positions = torch.full((batch,), length, device=store.device)
    _wait(model.device)
    begun = time.perf_counter()
    with torch.inference_mode():
        tokens = forward.prefill(Prefill(list(range(batch)), ids, 0, last)).argmax(-1)
        tokens.tolist()
        first = time.perf_counter()
        for step in range(new - 1):
            tokens = forward.decode(tokens, positions, length + step + 1, None).argmax(-1)
            positions = positions + 1
        tokens.tolist()
    return Timed(first - begun, time.perf_counter() - first)


def kernels(forward: Forward, store: RowStore, model: Any, batch: int, length: int, most: int = 12) -> list[str]:
    """What the device does in one decode step: kernels, times and microseconds, the most expensive first."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    steps = 4
    store.reserve(batch, length + 1)
    tokens = _prompts(model, batch, 1)[:, 0]
    positions = torch.full((batch,), length, device=store.device)
    with torch.inference_mode():
        forward.decode(tokens, positions, length + 1, None)
        _wait(model.device)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            for _ in range(steps):
                forward.decode(tokens, positions, length + 1, None)
            _wait(model.device)
    events = [event for event in seen.key_averages() if event.self_device_time_total > 0]
    events.sort(key=lambda event: -event.self_device_time_total)
    return [
        f"{event.key[:90]}: {event.count / steps:g} in {event.self_device_time_total / steps:.0f} us"
        for event in events[:most]
    ]


def _prompts(model: Any, batch: int, length: int) -> Any:
    import torch

    return torch.randint(10, model.config.vocab_size, (batch, length), device=model.device)


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
