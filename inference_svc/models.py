"""The models in memory: which engine serves which entry, loaded when first asked for, dropped when memory runs short.

One engine holds one base with its weights in one quantisation; adapters and prompt models of that base share it. A
lease keeps an engine and an adapter in memory for as long as a request runs; what nobody leases may be evicted, the
least recently used first. State is keyed by name and revision, so a new revision under an old name starts afresh. This
module knows no contract and no torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from chatmill.errors import FailedPrecondition, NotFound, ResourceExhausted, Unavailable
from inference_svc.artifacts import ARTIFACT_MISMATCH, ArtifactStore
from inference_svc.engines.base import AdapterSpec, BaseInfo, BaseSpec, Engine
from inference_svc.entries import Catalog, CatalogChange, ModelEntry, ModelKind, RegistrySource
from inference_svc.generation import AdapterKey

log = logging.getLogger(__name__)
T = TypeVar("T")

MakeEngine = Callable[[ModelEntry], tuple[str, Engine]]
"""Makes the engine for an entry's weights: its name in the table of engines, and the engine with nothing loaded."""

_UNLOADED_SHARE = {"nf4": 0.4, "int8": 0.6, "none": 1.1}
"""Memory of the weights per byte on disk (bfloat16), before it can be measured."""

AFTER_FAILURE = 5.0
"""Seconds after a failed load in which its error has reached whoever waited, and nobody holds its parts any more."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class Resident:
    """An engine in memory.

    Attributes:
        weights: the entry whose weights it holds.
        engine: the engine.
        engine_name: its name in the table of engines.
        info: what the base turned out to be.
        adapters: adapters in memory, with the number of leases on each.
        leases: leases on the engine, those on adapters included.
        last_used: `time.monotonic()` second of the last lease.
    """

    weights: ModelEntry
    engine: Engine
    engine_name: str
    info: BaseInfo
    adapters: dict[AdapterKey, int] = field(default_factory=dict)
    leases: int = 0
    last_used: float = 0.0
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    def hold(self, adapter: AdapterKey | None) -> None:
        """Count a lease; the adapter becomes the most recently used one."""
        self.leases += 1
        self._idle.clear()
        self.last_used = time.monotonic()
        if adapter is not None:
            self.adapters[adapter] = self.adapters.pop(adapter) + 1

    def let_go(self, adapter: AdapterKey | None) -> None:
        """End a lease."""
        self.leases -= 1
        self.last_used = time.monotonic()
        if adapter in self.adapters:
            self.adapters[adapter] -= 1
        if not self.leases:
            self._idle.set()

    async def idle(self) -> None:
        """Return when there is no lease."""
        while self.leases:
            await self._idle.wait()

    @property
    def max_rows(self) -> int:
        """Requests that the engine runs at once."""
        return max(1, self.engine.load().max_rows)

    @property
    def memory_bytes(self) -> int:
        """Weights and adapters."""
        return self.info.memory_bytes + self.engine.load().adapter_bytes


@dataclass(slots=True, eq=False)
class Lease:
    """A model that stays in memory until `release`.

    Attributes:
        entry: the version that was asked for.
        resident: the engine that serves it.
        adapter: the adapter to apply, or None.
    """

    entry: ModelEntry
    resident: Resident
    adapter: AdapterKey | None
    _released: bool = False

    def release(self) -> None:
        """Let go; a second call does nothing."""
        if not self._released:
            self._released = True
            self.resident.let_go(self.adapter)

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and output together."""
        length = self.resident.info.context_length
        return min(length, self.entry.max_context) if self.entry.max_context else length


class ModelStore:
    """All models that can be asked for.

    Args:
        artifacts: finds and checks files.
        make_engine: makes an engine for the weights of an entry.
        quantization: for estimating what a model will take before it is loaded.
        memory_budget: most bytes of weights and adapters together, or None.
        max_adapters: most adapters in memory on one engine; the least recently used idle one goes first.

    Attributes:
        catalog: what the registry says.
        known: set once the registry was heard of.
    """

    def __init__(
        self,
        artifacts: ArtifactStore,
        make_engine: MakeEngine,
        *,
        quantization: str = "none",
        memory_budget: int | None = None,
        max_adapters: int = 64,
    ) -> None:
        self.catalog = Catalog()
        self.known = asyncio.Event()
        self._artifacts = artifacts
        self._make_engine = make_engine
        self._quantization = quantization
        self._budget = memory_budget
        self._max_adapters = max_adapters
        self._residents: dict[tuple[str, str], Resident] = {}
        self._leaving: list[Resident] = []
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}
        self._room = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def follow(self, source: RegistrySource) -> None:
        """Take in the registry's changes until cancelled. Running requests are never touched."""
        async for change in source.watch():
            self.apply(change)

    def apply(self, change: CatalogChange) -> None:
        """Take in one change; adapters that are gone or replaced leave memory once nobody uses them."""
        gone = self.catalog.apply(change)
        self.known.set()
        for entry in gone:
            key = AdapterKey(entry.name, entry.revision)
            for resident in self._residents.values():
                if key in resident.adapters:
                    self._background(self._drop_adapter(resident, key))

    def residents(self) -> list[Resident]:
        """Engines in memory."""
        return list(self._residents.values())

    def resident_of(self, entry: ModelEntry) -> Resident | None:
        """The engine that has `entry` in memory, adapter included, or None."""
        try:
            weights, adapter = self.catalog.weights(entry)
        except FailedPrecondition:
            return None
        return self._present(weights, AdapterKey(adapter.name, adapter.revision) if adapter else None)

    def adapter_of(self, entry: ModelEntry) -> AdapterKey | None:
        """The adapter that `entry` needs, or None."""
        _, adapter = self.catalog.weights(entry)
        return AdapterKey(adapter.name, adapter.revision) if adapter else None

    async def acquire(self, name: str) -> Lease:
        """Resolve a name, load what it needs, and keep it in memory until the lease is released.

        A caller that gives up does not stop the load, since the next request will want it.

        Raises:
            NotFound: no such model, or a file of it is missing.
            FailedPrecondition: its files don't match its entry, its base is missing, or the engine can't serve it.
            PermissionDenied: its files lie outside the allowed folders.
            ResourceExhausted: it does not fit the memory budget beside what is in use.
            Unavailable: the registry was not heard of yet.
        """
        if not self.catalog.known:
            raise Unavailable(
                "The registry was not heard of yet, so there are no models. Is the factory running?",
                reason="REGISTRY_UNKNOWN",
                retry_after=1.0,
            )
        entry = self.catalog.get(name)
        weights, adapter = self.catalog.weights(entry)
        key = AdapterKey(adapter.name, adapter.revision) if adapter else None
        # What was loaded may be evicted again before this task runs on, hence until it is there.
        while (resident := self._present(weights, key)) is None:
            await asyncio.shield(self._background(self._load(weights, adapter)))
        resident.hold(key)
        return Lease(entry, resident, key)

    async def unload(self, name: str) -> None:
        """Take a model out of memory once its running requests have ended: the adapter, or the engine of a base.

        Raises:
            NotFound: no such model, or it is not in memory.
        """
        entry = self.catalog.get(name)
        resident = self.resident_of(entry)
        if resident is None:
            raise NotFound(f"{entry.name} is not in memory.", reason="NOT_LOADED")
        _, adapter = self.catalog.weights(entry)
        if adapter is not None:
            await self._drop_adapter(resident, AdapterKey(adapter.name, adapter.revision))
        else:
            await self._drop(resident)

    async def close(self) -> None:
        """Drop everything at once."""
        for task in tuple(self._tasks):
            task.cancel()
        for resident in self.residents():
            self._residents.pop((resident.weights.name, resident.weights.revision), None)
            await resident.engine.close()

    async def drain(self, grace: float) -> None:
        """Have every engine refuse new requests and end the others after `grace` seconds."""
        await asyncio.gather(*(r.engine.drain(grace) for r in self.residents()))

    async def _load(self, weights: ModelEntry, adapter: ModelEntry | None) -> Resident:
        async with self._locks.setdefault((weights.name, weights.revision), asyncio.Lock()):
            resident = self._residents.get((weights.name, weights.revision)) or await self._load_base(weights)
            if adapter is not None and AdapterKey(adapter.name, adapter.revision) not in resident.adapters:
                await self._load_adapter(resident, adapter)
            return resident

    async def _load_base(self, weights: ModelEntry) -> Resident:
        begun = time.monotonic()
        spec = BaseSpec(weights.name, weights.revision)
        if weights.kind is not ModelKind.REMOTE:
            spec = BaseSpec(weights.name, weights.revision, await asyncio.to_thread(self._artifacts.folder, weights))
        async with self._room:
            expected = int(self._artifacts.weight_bytes(weights) * _UNLOADED_SHARE.get(self._quantization, 1.0))
            await self._make_room(weights.name, expected)
            name, engine = self._make_engine(weights)
            try:
                info = await engine.load_base(spec)
                self._check(weights, info)
                await self._make_room(weights.name, info.memory_bytes)
            except BaseException:
                await engine.close()
                # Room that was made for it may have set its parts aside, and the error holds them until it is told.
                gc.unfreeze()
                asyncio.get_running_loop().call_later(AFTER_FAILURE, _set_aside)
                raise
            resident = Resident(weights, engine, name, info, last_used=time.monotonic())
            self._residents[weights.name, weights.revision] = resident
        _set_aside()
        fields = {"model": weights.name, "bytes": info.memory_bytes, "seconds": time.monotonic() - begun}
        log.info("model loaded", extra={"fields": fields})
        return resident

    async def _load_adapter(self, resident: Resident, entry: ModelEntry) -> None:
        begun = time.monotonic()
        self._check(entry, resident.info)
        folder = await asyncio.to_thread(self._artifacts.folder, entry)
        key = AdapterKey(entry.name, entry.revision)
        while len(resident.adapters) >= self._max_adapters:
            idle = next((k for k, leases in resident.adapters.items() if not leases), None)
            if idle is None:
                break
            await self._drop_adapter(resident, idle)
        async with self._room:
            resident.hold(None)
            try:
                await self._make_room(entry.name, self._artifacts.weight_bytes(entry))
            finally:
                resident.let_go(None)
            await resident.engine.load_adapter(AdapterSpec(key, folder))
            resident.adapters[key] = 0
        log.info("adapter loaded", extra={"fields": {"model": entry.name, "seconds": time.monotonic() - begun}})

    def _check(self, entry: ModelEntry, info: BaseInfo) -> None:
        """Refuse what would talk to the model in another way than it was trained."""
        if entry.template_digest and info.template_digest and entry.template_digest != info.template_digest:
            raise FailedPrecondition(
                f"{entry.name} was made with chat template {entry.template_digest[:12]}…, and the files have "
                f"{info.template_digest[:12]}…. Serve it on the base it was made with, or register it again.",
                reason=ARTIFACT_MISMATCH,
            )
        missing = set(entry.stop_tokens) - set(info.end_tokens)
        if info.end_tokens and missing:
            raise FailedPrecondition(
                f"{entry.name} ends its turns with {', '.join(sorted(missing))}, and the files know only "
                f"{', '.join(info.end_tokens)}. Serve it on the base it was made with, or register it again.",
                reason=ARTIFACT_MISMATCH,
            )

    async def _make_room(self, name: str, needed: int) -> None:
        if self._budget is None:
            return
        for resident in sorted(self.residents(), key=lambda r: r.last_used):
            if self._used() + needed <= self._budget:
                return
            if not resident.leases:
                log.info("evicted", extra={"fields": {"model": resident.weights.name, "for": name}})
                await self._drop(resident)
        if self._used() + needed > self._budget:
            raise ResourceExhausted(
                f"{name} needs {needed >> 20} MiB, and {self._used() >> 20} of {self._budget >> 20} MiB are in use. "
                "Raise inference.memory_budget_mib, quantize, or unload another model.",
                quota="inference.memory_budget_mib",
                reason="MEMORY_BUDGET",
            )

    def _used(self) -> int:
        return sum(r.memory_bytes for r in (*self._residents.values(), *self._leaving))

    def _present(self, weights: ModelEntry, adapter: AdapterKey | None) -> Resident | None:
        resident = self._residents.get((weights.name, weights.revision))
        return resident if resident and (adapter is None or adapter in resident.adapters) else None

    async def _drop(self, resident: Resident) -> None:
        self._residents.pop((resident.weights.name, resident.weights.revision), None)
        self._leaving.append(resident)
        try:
            await resident.idle()
            await resident.engine.close()
            _set_aside()
        finally:
            self._leaving.remove(resident)

    async def _drop_adapter(self, resident: Resident, key: AdapterKey) -> None:
        resident.adapters.pop(key, None)
        with contextlib.suppress(NotFound):
            await resident.engine.unload_adapter(key)

    def _background(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("a model could not be loaded or unloaded: %s", error)


def _set_aside() -> None:
    """Free what nobody holds, and have the garbage collector pass over what is left from now on.

    A model and its libraries are some hundred thousand objects. To look through them stops every stream for a quarter
    of a second, which under load came every few seconds. What is passed over is looked at again when an engine comes or
    goes, since only then much of it can have become garbage; an adapter is tensors, which go with their last holder.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
