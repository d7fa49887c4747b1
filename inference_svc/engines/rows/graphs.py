"""Decode steps of a few fixed shapes, replayed as CUDA graphs.

On a GPU a step is a thousand small launches, and until the last one is made the weights have long been read. A graph
makes them in one. It can be replayed only over the same memory and the same shapes, and both are at hand: the store is
one block, and a step may cover more rows and columns than it needs. So rows and columns are rounded up to a few sizes,
and a size that comes again is captured.

This module knows no model: it stands in front of any `Forward`. Where a step can't be captured, or gives other logits
than it did before, it says so once and all steps run as they would without it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name
from torch import Tensor

from inference_svc.engines.rows.adapters import Mix
from inference_svc.engines.rows.forward import Forward, Prefill
from inference_svc.engines.rows.store import RowStore

log = logging.getLogger(__name__)

MOST_STEPS = 48
"""Shapes kept at once, the least recently used goes first; each holds its logits and a few megabytes of launches."""
FIRST_COLUMNS = 128


def rows_covered(count: int, most: int) -> int:
    """Rows that a step over `count` is computed for: 1, 2, 4, then multiples of eight; never more than there are."""
    wide = 1 << (count - 1).bit_length() if count <= 8 else -(-count // 8) * 8
    return min(wide, most)


def columns_covered(width: int, most: int) -> int:
    """Columns that attention covers instead of `width`: multiples of 128, from 1024 on four sizes for each doubling."""
    step = max(FIRST_COLUMNS, 1 << max(0, (width - 1).bit_length() - 3))
    return min(-(-width // step) * step, most)


class _Step:
    """A decode step of one shape: memory for what goes in, and the graph once there is one.

    Args:
        rows: how many.
        width: columns that attention covers.
        mix: what the first such step had; its stack is the step's for ever, the rest is copied in each time.
        device: where.
    """

    def __init__(self, rows: int, width: int, mix: Mix | None, device: torch.device) -> None:
        self.rows, self.width = rows, width
        self.tokens = torch.zeros(rows, dtype=torch.long, device=device)
        self.positions = torch.zeros(rows, dtype=torch.long, device=device)
        self.mix = mix
        if mix is not None:
            mask = None if mix.mask is None else mix.mask.new_zeros(rows, mix.mask.shape[1])
            self.mix = Mix(mix.stack, mix.places.new_zeros(rows), mask)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits: Tensor | None = None
        self.used = False

    def fill(self, tokens: Tensor, positions: Tensor, mix: Mix | None) -> None:
        """Take the inputs of one step. Rows that nobody has read token 0 at position 0 of a slot that is free."""
        more = self.rows - tokens.shape[0]
        self.tokens.copy_(F.pad(tokens, (0, more)))
        self.positions.copy_(F.pad(positions, (0, more)))
        if mix is not None and mix.mask is not None:
            assert self.mix is not None
            assert self.mix.mask is not None
            self.mix.mask.copy_(F.pad(mix.mask, (0, 0, 0, more)))
            self.mix.places.copy_(F.pad(mix.places, (0, more), value=-1))


class GraphedForward:
    """A `Forward` whose decode steps have few shapes, captured where that is possible.

    Args:
        inner: the model.
        store: its states; graphs are forgotten when it moves.
        capture: False runs the same steps without graphs, on any device.
    """

    def __init__(self, inner: Forward, store: RowStore, *, capture: bool) -> None:
        self.inner, self._store = inner, store
        self._capture = capture
        self._generation = store.generation
        self._steps: OrderedDict[tuple[int, int, int, bool], _Step] = OrderedDict()
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None
        self.replays = 0

    @property
    def captured(self) -> int:
        """Shapes that have a graph now."""
        return sum(step.graph is not None for step in self._steps.values())

    def prefill(self, chunk: Prefill) -> Tensor:
        """See `Forward.prefill`; chunks have any shape and are long enough to hide their launches."""
        return self.inner.prefill(chunk)

    def decode(self, tokens: Tensor, positions: Tensor, width: int, mix: Mix | None) -> Tensor:
        """See `Forward.decode`. The logits are valid until the next step of the same shape."""
        step = self._step(tokens.shape[0], width, mix)
        step.fill(tokens, positions, mix)
        if step.graph is not None and step.logits is not None:
            step.graph.replay()
            self.replays += 1
            return step.logits[: tokens.shape[0]]
        logits = self._eager(step)
        if self._capture and step.used:
            self._make_graph(step, logits)
        # Only what comes again is captured: a batch on its way up, or adapters that take turns, would cost more.
        step.used = True
        return logits[: tokens.shape[0]]

    def _eager(self, step: _Step) -> Tensor:
        return self.inner.decode(step.tokens, step.positions, step.width, step.mix)

    def _step(self, count: int, width: int, mix: Mix | None) -> _Step:
        store = self._store
        if self._generation != store.generation:
            self._steps.clear()
            self._pool = None
            self._generation = store.generation
        rows, wide = rows_covered(count, store.rows), columns_covered(width, store.columns)
        key = (rows, wide, 0 if mix is None else id(mix.stack), mix is not None and mix.mask is not None)
        step = self._steps.get(key)
        if step is None:
            self._forget(mix)
            step = self._steps[key] = _Step(rows, wide, mix, store.device)
        self._steps.move_to_end(key)
        return step

    def _forget(self, mix: Mix | None) -> None:
        """Make room; and of adapters keep only the present stack, since each holds all their weights."""
        if mix is not None:
            for key, step in list(self._steps.items()):
                if step.mix is not None and step.mix.stack is not mix.stack:
                    del self._steps[key]
        while len(self._steps) >= MOST_STEPS:
            self._steps.popitem(last=False)

    def _make_graph(self, step: _Step, expected: Tensor) -> None:
        """Capture a step that just ran, and see that the replay gives what it gave."""
        try:
            graph, logits = self._captured(step)
            graph.replay()
            # Equal but for sums taken in another order: the same work may get another kernel on another stream.
            noise = 64 * torch.finfo(logits.dtype).eps * max(1.0, float(expected.abs().max()))
            if not float((logits - expected).abs().max()) <= noise:
                raise RuntimeError("the replayed step gives other logits")
        except Exception as error:
            self._capture = False
            self._steps.clear()
            log.warning("decode steps are not replayed as CUDA graphs: %s: %s", type(error).__name__, error)
            return
        step.graph, step.logits = graph, logits

    def _captured(self, step: _Step) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        if self._pool is None or self._stream is None:
            # One pool: graphs are replayed one after another, so they may share the memory between their operations.
            self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            # Adapters are brought to the device on another thread, which must not break the capture.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                logits = self._eager(step)
            finally:
                graph.capture_end()
        current.wait_stream(self._stream)
        return graph, logits
