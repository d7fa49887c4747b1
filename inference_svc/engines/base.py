"""What every engine offers, whatever runs behind it.

An engine serves one base model and the adapters on top of it. The pipeline only ever sees this Protocol; it knows no
torch, no HTTP and no contract. All methods are called on one asyncio event loop and never block it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from chatmill.plugins import Registry
from inference_svc.generation import (
    AdapterKey,
    Delta,
    EngineEvent,
    Finished,
    GenerationRequest,
    Message,
    Tool,
)


@dataclass(frozen=True, slots=True)
class BaseSpec:
    """The base model that an engine is asked to load.

    Attributes:
        name: name in the registry or on the hub; for people and for `served_by`.
        revision: exact revision; part of every cache key.
        path: folder in Hugging Face form with safetensors weights, or None for engines that load nothing.
    """

    name: str
    revision: str = ""
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class BaseInfo:
    """What a loaded base turned out to be.

    Attributes:
        context_length: most tokens of prompt and output together.
        vocabulary_size: token ids are below this.
        end_token_ids: tokens that end a turn.
        end_tokens: the same as text, for checking a registry entry against them.
        template_digest: sha256 hex of the chat template text, empty without a template.
        quantisation: `nf4`, `int8` or `none`.
        device: `cpu` or `cuda`.
        dtype: of the weights that are not quantised, such as `bfloat16`.
        memory_bytes: what the weights take.
    """

    context_length: int
    vocabulary_size: int
    end_token_ids: tuple[int, ...] = ()
    end_tokens: tuple[str, ...] = ()
    template_digest: str = ""
    quantisation: str = "none"
    device: str = "cpu"
    dtype: str = "float32"
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """An adapter to put on the base: its identity and a PEFT folder with safetensors weights."""

    key: AdapterKey
    path: Path


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """Figures of the moment and counters since start.

    Attributes:
        running: requests that hold a row, prefilling or decoding.
        waiting: requests without a row yet.
        max_rows: rows that can run at once.
        max_waiting: requests that may wait; more are refused.
        cached_tokens: positions in the key-value state of running rows.
        token_budget: positions that running rows may take together.
        prefix_cache_tokens: positions kept in the prefix cache.
        prefix_lookup_tokens: prompt tokens looked up in the prefix cache since start.
        prefix_hit_tokens: those that were found.
        prompt_tokens_total: prompt tokens of requests started since start.
        output_tokens_total: tokens generated since start.
        finished_total: generations ended since start, by finish reason; failures under `error`.
        adapters: adapters loaded.
        adapter_bytes: memory of their weights.
        draining: no new requests are taken.
        step_seconds: smoothed time of a decode step.
    """

    running: int = 0
    waiting: int = 0
    max_rows: int = 0
    max_waiting: int = 0
    cached_tokens: int = 0
    token_budget: int = 0
    prefix_cache_tokens: int = 0
    prefix_lookup_tokens: int = 0
    prefix_hit_tokens: int = 0
    prompt_tokens_total: int = 0
    output_tokens_total: int = 0
    finished_total: Mapping[str, int] = field(default_factory=dict)
    adapters: tuple[AdapterKey, ...] = ()
    adapter_bytes: int = 0
    draining: bool = False
    step_seconds: float = 0.0


class Generation(AsyncIterator[EngineEvent]):
    """The events of one request, read by one task.

    What the reader has not taken yet gathers: deltas merge into one, so a slow reader costs one message and memory for
    at most `max_output_tokens`. Iteration ends after `Finished`; a failure is raised after the events before it.

    Engines call `deliver` and `fail` on the event loop.

    Args:
        request_id: whose events these are.
        on_cancel: called by `cancel` and when the reader goes away before the end.
    """

    def __init__(self, request_id: str, on_cancel: Callable[[str], Any]) -> None:
        self.request_id = request_id
        self._on_cancel = on_cancel
        self._events: deque[EngineEvent] = deque()
        self._error: BaseException | None = None
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None
        self._when_ended: list[Callable[[], Any]] = []
        self._interrupted = False

    def when_ended(self, call: Callable[[], Any]) -> None:
        """Have `call` called once when the engine is done with the request, whether or not a reader still reads."""
        if self._ended:
            call()
        else:
            self._when_ended.append(call)

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> EngineEvent:
        while not self._events:
            if self._interrupted:
                self._interrupted = False
                raise TimeoutError
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if self._ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._events.popleft()

    def deliver(self, event: EngineEvent) -> None:
        """Append an event, merging text that nobody has read yet. Ignored after the end."""
        if self._ended:
            return
        if isinstance(event, Delta) and self._events and isinstance(last := self._events[-1], Delta):
            self._events[-1] = Delta(
                last.text + event.text, last.token_ids + event.token_ids, last.logprobs + event.logprobs
            )
        else:
            self._events.append(event)
        if isinstance(event, Finished):
            self._end()
        self._wake()

    def fail(self, error: BaseException) -> None:
        """End with an error, which the reader meets after the events delivered so far."""
        if not self._ended:
            self._error = error
            self._end()
            self._wake()

    def interrupt(self) -> None:
        """Have a reader that waits meet TimeoutError; it may go on reading, and no event is lost."""
        if not self._events:
            self._interrupted = True
            self._wake()

    def cancel(self) -> None:
        """Ask the engine to end this request; its row is free within one step. The reader gets `Finished(CANCELLED)`.

        Does nothing after the end, so a reader calls it in `finally`.
        """
        if not self._ended:
            self._on_cancel(self.request_id)

    @property
    def ended(self) -> bool:
        """Whether the last event was delivered, read or not."""
        return self._ended

    def _end(self) -> None:
        self._ended = True
        # What is called may refer to this, and a ring of references would wait for the garbage collector.
        calls, self._when_ended = self._when_ended, []
        for call in calls:
            call()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Engine(Protocol):
    """One base model with its adapters, serving any number of requests at once."""

    async def load_base(self, spec: BaseSpec) -> BaseInfo:
        """Load the base; once per engine.

        Raises:
            FailedPrecondition: the folder lacks safetensors weights, is corrupt, needs remote code, or does not fit in
                memory; or a base is loaded already.
            NotFound: no such folder.
        """
        ...

    async def load_adapter(self, spec: AdapterSpec) -> None:
        """Make an adapter available without touching running requests. Loading the same key twice does nothing.

        Raises:
            FailedPrecondition: made for another base, corrupt, or of a kind that this engine can't mix.
            NotFound: no such folder.
        """
        ...

    async def unload_adapter(self, key: AdapterKey) -> None:
        """Refuse new requests for the adapter, wait for running ones to end, then free its memory.

        Raises:
            NotFound: it is not loaded.
        """
        ...

    async def submit(self, request: GenerationRequest) -> Generation:
        """Check and queue a request; the events come through the returned stream.

        Raises:
            InvalidArgument: a value is out of range, the prompt does not fit, a constraint does not compile; violations
                name the field of `GenerationRequest`, such as `sampling.temperature`.
            NotFound: the adapter is not loaded.
            ResourceExhausted: too many requests wait already.
            Unavailable: no base is loaded, or the engine is draining.
        """
        ...

    def cancel(self, request_id: str) -> bool:
        """End a request within one step; False if it is unknown or over."""
        ...

    async def count_tokens(self, messages: tuple[Message, ...], tools: tuple[Tool, ...] = ()) -> int:
        """Length of the prompt that these messages make, in tokens, template included."""
        ...

    def load(self) -> EngineLoad:
        """Figures of the moment; cheap enough to ask for on every request."""
        ...

    async def drain(self, grace: float) -> None:
        """Take no more requests, give running and waiting ones `grace` seconds, then end them with ENGINE_ABORTED."""
        ...

    async def close(self) -> None:
        """End everything at once and free the memory. The engine is of no use afterwards."""
        ...


class EngineClass(Protocol):
    """What the registry holds: a class that makes an engine from its checked parameters.

    Attributes:
        Parameters: frozen dataclass of the engine's settings, for `chatmill.plugins.parse_parameters`.
    """

    Parameters: type[Any]

    def __call__(self, parameters: Any) -> Engine:
        """A new engine with nothing loaded."""
        ...


ENGINES: Registry[EngineClass] = Registry("engine", "chatmill.engines")
"""All engines by name; `rows` is the one of ours."""
