"""Chooses the arithmetic of a training by measuring it, because what a CPU is fast at can't be read from its name."""

from __future__ import annotations

import time
from typing import Any, Literal

from factory_svc.tokenization import Tokenized

_PROBE_TOKENS = 1024
_WORTH_IT = 1.1
"""How much faster bf16 must be to be worth its lower accuracy."""


def choose_precision(model: Any, rows: Tokenized, wish: Literal["auto", "fp32", "bf16"]) -> tuple[str, str]:
    """`fp32` or `bf16`, and a sentence that says why if it was measured.

    On CUDA `auto` takes bf16 where the device has it. On CPU one small step is timed both ways; the gradients of the
    measurement are thrown away and the random state is restored, so the result of the training does not depend on it.
    """
    import torch

    if wish != "auto":
        return wish, ""
    if torch.cuda.is_available():
        return ("bf16" if torch.cuda.is_bf16_supported() else "fp32"), ""
    if any(not p.is_floating_point() for p in model.parameters()):
        return "bf16", ""  # A 4-bit base computes in bf16 whatever autocast says.
    if not _multiplies_bf16():
        return "fp32", "fp32 chosen: this processor emulates bf16."
    length = max(2, min(128, max(map(len, rows.input_ids))))
    shape = (max(1, _PROBE_TOKENS // length), length)
    ids = torch.randint(0, model.config.get_text_config().vocab_size, shape, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        seconds = {name: _step_seconds(model, ids, name == "bf16") for name in ("fp32", "bf16")}
    ratio = seconds["fp32"] / seconds["bf16"]
    best = "bf16" if ratio > _WORTH_IT else "fp32"
    return best, f"{best} chosen: bf16 autocast measured {ratio:.2f} times as fast as fp32."


def _multiplies_bf16() -> bool:
    """Whether a product in bf16 takes less than twice the time of fp32; emulated, it takes ten times and more."""
    import torch

    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        factor = torch.ones(256, 256, dtype=dtype)
        times = []
        for _ in range(4):
            start = time.process_time()
            factor @ factor
            times.append(time.process_time() - start)
        best[dtype] = min(times)
    return best[torch.bfloat16] < 2 * best[torch.float32]


def _step_seconds(model: Any, ids: Any, bf16: bool) -> float:
    """The faster of two timed steps after one that warms up, in CPU time, which other programs disturb less."""
    import torch

    best = float("inf")
    for attempt in range(3):
        start = time.process_time()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        if attempt:
            best = min(best, time.process_time() - start)
        model.zero_grad(set_to_none=True)
    return best
