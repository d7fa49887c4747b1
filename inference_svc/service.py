"""The service around the pipeline: which models there are, how busy it is, draining, and work in the background."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from inference_svc import metrics
from inference_svc.admission import Admission
from inference_svc.entries import ModelEntry, RegistrySource
from inference_svc.models import ModelStore
from inference_svc.overrides import OverridesFile
from inference_svc.pipeline import Pipeline

_WINDOW = 10.0
"""Seconds over which tokens per second are averaged."""
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that can be asked for.

    Attributes:
        entry: its entry.
        loaded: whether it is in memory.
        engine: name of the engine, empty if it is not loaded.
        quantization: `nf4`, `int8` or `none`, empty if it is not loaded.
        memory_bytes: what its weights take; the base's count for a base only.
        running: requests that run on it.
        max_context: tokens of context; 0 if neither entry nor engine says.
    """

    entry: ModelEntry
    loaded: bool = False
    engine: str = ""
    quantization: str = ""
    memory_bytes: int = 0
    running: int = 0
    max_context: int = 0


@dataclass(frozen=True, slots=True)
class LoadReport:
    """How busy the service is; see the contract's `GetLoadResponse` for the units."""

    running: int
    waiting: int
    waiting_tokens: int
    max_waiting: int
    tokens_per_second: float
    cache_hit_rate: float
    memory_bytes: int
    draining: bool
    refused: int


class Inference:
    """Everything that the servicers call.

    Args:
        pipeline: answers requests.
        models: the models in memory.
        admission: the lines before them.
        overrides: the operator's changes.
        registry: where the models come from.
        preload: models to load before the service is ready.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        models: ModelStore,
        admission: Admission,
        overrides: OverridesFile,
        registry: RegistrySource,
        preload: tuple[str, ...] = (),
    ) -> None:
        self.pipeline = pipeline
        self.models = models
        self.overrides = overrides
        self._admission = admission
        self._registry = registry
        self._preload = preload
        self._tasks: list[asyncio.Task[None]] = []
        self._samples: deque[tuple[float, int]] = deque()

    async def start(self) -> None:
        """Follow the registry and the operator's file, and load what is to be loaded at the start."""
        self._run(self.models.follow(self._registry))
        self._run(self.overrides.follow())
        self._run(self._measure())
        for name in self._preload:
            await self.models.known.wait()
            (await self.models.acquire(name)).release()

    def served(self) -> list[ServedModel]:
        """All models, sorted by name."""
        return [self._served(entry) for entry in self.models.catalog.entries()]

    async def load(self, name: str) -> tuple[str, int]:
        """Bring a model into memory; its version's name, and the bytes that its engine takes."""
        lease = await self.models.acquire(name)
        try:
            return lease.entry.name, lease.resident.memory_bytes
        finally:
            lease.release()

    async def drain(self, seconds: float, *, resume: bool = False) -> int:
        """Refuse new requests and wait for the running ones; how many remain. `resume` takes new ones again."""
        self.pipeline.drain(resume=resume)
        if not resume and seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.pipeline.idle(), seconds)
        return self.pipeline.running

    def report(self) -> LoadReport:
        """How busy the service is."""
        loads = [r.engine.load() for r in self.models.residents()]
        lines = self._admission.lines
        looked_up = sum(load.prefix_lookup_tokens for load in loads)
        first = self._samples[0] if self._samples else (time.monotonic(), 0)
        total, elapsed = sum(load.output_tokens_total for load in loads), time.monotonic() - first[0]
        return LoadReport(
            running=sum(line.running for line in lines),
            waiting=sum(line.waiting for line in lines),
            waiting_tokens=sum(line.waiting_tokens for line in lines),
            max_waiting=self._admission.settings.max_queue,
            tokens_per_second=max(0.0, (total - first[1]) / elapsed) if elapsed > 0 else 0.0,
            cache_hit_rate=sum(load.prefix_hit_tokens for load in loads) / looked_up if looked_up else 0.0,
            memory_bytes=_resident_bytes(),
            draining=self.pipeline.draining,
            refused=sum(line.refused for line in lines),
        )

    async def stop_taking(self) -> None:
        """The server is going down: refuse what is new."""
        self.pipeline.drain()

    async def close(self) -> None:
        """End the background work and free the models."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.models.close()

    def _served(self, entry: ModelEntry) -> ServedModel:
        resident = self.models.resident_of(entry)
        if resident is None:
            return ServedModel(entry, max_context=entry.max_context)
        context = resident.info.context_length
        adapter = self.models.adapter_of(entry)
        return ServedModel(
            entry,
            True,
            resident.engine_name,
            resident.info.quantisation,
            resident.info.memory_bytes if resident.weights is entry else 0,
            resident.leases if adapter is None else resident.adapters.get(adapter, 0),
            min(context, entry.max_context) if entry.max_context else context,
        )

    async def _measure(self) -> None:
        """Keep what rates are computed from, and the gauges."""
        while True:
            now = time.monotonic()
            loads = [r.engine.load() for r in self.models.residents()]
            self._samples.append((now, sum(load.output_tokens_total for load in loads)))
            while now - self._samples[0][0] > _WINDOW:
                self._samples.popleft()
            lines = self._admission.lines
            metrics.RUNNING.set(sum(line.running for line in lines))
            metrics.WAITING.set(sum(line.waiting for line in lines))
            metrics.WAITING_TOKENS.set(sum(line.waiting_tokens for line in lines))
            metrics.PREFIX_LOOKUP_TOKENS.set(sum(load.prefix_lookup_tokens for load in loads))
            metrics.PREFIX_HIT_TOKENS.set(sum(load.prefix_hit_tokens for load in loads))
            metrics.MODEL_BYTES.set(sum(r.memory_bytes for r in self.models.residents()))
            await asyncio.sleep(1.0)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))


def _resident_bytes() -> int:
    with open("/proc/self/statm", "rb") as stream:
        return int(stream.read().split()[1]) * _PAGE
