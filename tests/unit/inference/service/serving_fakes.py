"""A scripted engine and a registry in memory, for tests of what stands around an engine.

The engine speaks what its script says for the newest user message, waits where the script waits, and keeps count of its
rows, so that a test can tell whether work was freed.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from chatmill.common.v1 import Message, Role
from chatmill.errors import NotFound, Unavailable
from chatmill.inference.v1 import (
    GenerateRequest,
    GenerationSpec,
    InferenceServiceStub,
    ServingAdminServiceStub,
    add_InferenceServiceServicer_to_server,
    add_ServingAdminServiceServicer_to_server,
)
from chatmill.runtime import server, testing
from inference_svc.composition import compose
from inference_svc.engines.base import BaseInfo, EngineLoad, Generation
from inference_svc.entries import CatalogChange, ModelEntry, ModelKind
from inference_svc.generation import Delta, Finished, FinishReason, Started, Timing, Usage
from inference_svc.service import Inference
from inference_svc.servicer import InferenceServicer, ServingAdminServicer

TINY = ModelEntry("models/tiny/versions/1", "rev1", ModelKind.BASE, aliases=("live",), system_prompt="Be brief.")
SMALL = ModelEntry("models/small/versions/1", "rev-small", ModelKind.BASE)


@dataclass
class Script:
    """What to say: texts, exceptions to fail with, events to wait for, floats to sleep."""

    steps: list[Any]
    finish: FinishReason = FinishReason.END_OF_TURN


class FakeEngine:
    """Says `Hello there.` unless `scripts` has something for the newest user message."""

    def __init__(self, max_rows: int = 8, memory_bytes: int = 1000, context_length: int = 2048) -> None:
        self.max_rows = max_rows
        self.scripts: dict[str, Script | Callable[[Any], Script]] = {}
        self.requests: list[Any] = []
        self.rows: set[str] = set()
        self.peak = 0
        self.adapters: dict[Any, Any] = {}
        self.info = BaseInfo(context_length, 100, memory_bytes=memory_bytes, quantisation="none")
        self.loaded = 0
        self.closed = False
        self.draining = False
        self.load_gate: asyncio.Event | None = None
        self.load_error: Exception | None = None
        self.submit_error: Exception | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._freed = asyncio.Event()

    async def load_base(self, spec: Any) -> BaseInfo:
        self.loaded += 1
        if self.load_gate is not None:
            await self.load_gate.wait()
        if self.load_error is not None:
            raise self.load_error
        return self.info

    async def load_adapter(self, spec: Any) -> None:
        self.adapters[spec.key] = spec.path

    async def unload_adapter(self, key: Any) -> None:
        if key not in self.adapters:
            raise NotFound(f"{key} is not loaded")
        del self.adapters[key]

    async def submit(self, request: Any) -> Generation:
        if self.submit_error is not None:
            raise self.submit_error
        if self.draining:
            raise Unavailable("draining", reason="DRAINING")
        self.requests.append(request)
        generation = Generation(request.request_id, self.cancel)
        self.rows.add(request.request_id)
        self.peak = max(self.peak, len(self.rows))
        self._tasks[request.request_id] = asyncio.ensure_future(self._speak(request, generation))
        return generation

    async def _speak(self, request: Any, generation: Generation) -> None:
        script = self.scripts.get(request.messages[-1].content, Script(["Hello ", "there."]))
        if callable(script):
            script = script(request)
        begun, count, finish = time.monotonic(), 0, script.finish
        try:
            generation.deliver(Started(7, 2, seed=request.sampling.seed or 5))
            for step in script.steps:
                if isinstance(step, str):
                    await asyncio.sleep(0)
                    count += 1
                    generation.deliver(Delta(step, (count,)))
                elif isinstance(step, BaseException):
                    raise step
                elif isinstance(step, asyncio.Event):
                    await step.wait()
                else:
                    await asyncio.sleep(step)
        except asyncio.CancelledError:
            finish = FinishReason.ENGINE_ABORTED if self.draining else FinishReason.CANCELLED
        except Exception as error:
            self._free(request.request_id)
            generation.fail(error)
            return
        self._free(request.request_id)
        total = int((time.monotonic() - begun) * 1e6)
        generation.deliver(
            Finished(finish, usage=Usage(7, 2, count), timing=Timing(total_us=total, decode_us=total), seed=5)
        )

    def _free(self, request_id: str) -> None:
        self.rows.discard(request_id)
        self._tasks.pop(request_id, None)
        self._freed.set()

    async def empty(self) -> None:
        """Wait until no row is taken."""
        async with asyncio.timeout(5):
            while self.rows:
                self._freed.clear()
                await self._freed.wait()

    async def full(self, rows: int) -> None:
        """Wait until so many rows are taken."""
        await until(lambda: len(self.rows) >= rows)

    def cancel(self, request_id: str) -> bool:
        task = self._tasks.get(request_id)
        return task is not None and task.cancel()

    async def count_tokens(self, messages: Any, tools: Any = ()) -> int:
        return sum(len(m.content.split()) for m in messages)

    def load(self) -> EngineLoad:
        return EngineLoad(running=len(self.rows), max_rows=self.max_rows, prefix_lookup_tokens=10, prefix_hit_tokens=4)

    async def drain(self, grace: float) -> None:
        self.draining = True
        for task in list(self._tasks.values()):
            task.cancel()

    async def close(self) -> None:
        self.closed = True
        await self.drain(0)


class FakeRegistry:
    """A registry that tells what it is given."""

    def __init__(self, *entries: ModelEntry) -> None:
        self.queue: asyncio.Queue[CatalogChange] = asyncio.Queue()
        self.queue.put_nowait(CatalogChange(entries, snapshot=True))

    async def watch(self) -> AsyncIterator[CatalogChange]:
        while True:
            yield await self.queue.get()


class FakeArtifacts:
    """Files that need no checking."""

    def folder(self, entry: ModelEntry) -> Any:
        return f"/nowhere/{entry.name}"

    def weight_bytes(self, entry: ModelEntry) -> int:
        return sum(f.size_bytes for f in entry.files)


@dataclass
class Door:
    """A running service with its stubs."""

    inference: Inference
    engines: dict[str, FakeEngine]
    stub: InferenceServiceStub
    admin: ServingAdminServiceStub
    running: Any
    channel: Any
    registry: FakeRegistry = field(default_factory=FakeRegistry)

    @property
    def engine(self) -> FakeEngine:
        return self.engines["models/tiny/versions/1"]

    async def ask(self, text: str = "hi", model: str = "models/tiny", request_id: str = "", **spec: Any) -> list[Any]:
        """All events of one reply."""
        return [r.event async for r in self.stub.Generate(request(text, model, request_id, **spec))]


async def until(holds: Callable[[], bool]) -> None:
    """Wait until a condition holds that nothing announces."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def request(text: str = "hi", model: str = "models/tiny", request_id: str = "", **spec: Any) -> GenerateRequest:
    messages = spec.pop("messages", None) or [Message(role=Role.ROLE_USER, content=text)]
    return GenerateRequest(spec=GenerationSpec(model=model, messages=messages, **spec), request_id=request_id)


def kinds(events: list[Any]) -> list[str]:
    return [e.WhichOneof("event") for e in events]


def text_of(events: list[Any]) -> str:
    return "".join(e.delta.text for e in events if e.HasField("delta"))


@asynccontextmanager
async def open_door(
    home: Any, *entries: ModelEntry, engines: dict[str, FakeEngine] | None = None, **overrides: Any
) -> AsyncIterator[Door]:
    """The service with scripted engines behind a real gRPC server."""
    entries = entries or (TINY, SMALL)
    made = engines or {e.name: FakeEngine() for e in entries}
    values = {f"inference.{key}": value for key, value in overrides.items()}
    config = testing.local_config(home, values)
    registry = FakeRegistry(*entries)
    inference = compose(config, registry, lambda entry: ("fake", made[entry.name]))
    inference.models._artifacts = FakeArtifacts()
    service = server.Service(
        "inference",
        [
            (add_InferenceServiceServicer_to_server, InferenceServicer(inference)),
            (add_ServingAdminServiceServicer_to_server, ServingAdminServicer(inference)),
        ],
        ready=inference.start,
        drain=inference.stop_taking,
        close=inference.close,
    )
    async with testing.running(service, config) as harness:
        await inference.models.known.wait()
        yield Door(
            inference,
            made,
            InferenceServiceStub(harness.channel),
            ServingAdminServiceStub(harness.channel),
            harness.running,
            harness.channel,
            registry,
        )
