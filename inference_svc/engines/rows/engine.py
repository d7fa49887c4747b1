"""The rows engine as the rest of the service sees it: asyncio on this side, one thread with torch on the other.

This module knows no architecture and no sampling; it checks requests, makes rows of them and hands out their events.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from chatmill.errors import (
    Aborted,
    AlreadyExists,
    ChatmillError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from chatmill.randomness import random_bytes
from inference_svc.engines.base import ENGINES, AdapterSpec, BaseInfo, BaseSpec, EngineLoad, Generation
from inference_svc.engines.rows import loading
from inference_svc.engines.rows.adapters import read_adapter
from inference_svc.engines.rows.constraint import ConstraintCompiler
from inference_svc.engines.rows.detokenize import StopFinder, TextTable
from inference_svc.engines.rows.encoder import Encoder
from inference_svc.engines.rows.parameters import RowsParameters, check_request
from inference_svc.engines.rows.prefix_cache import PrefixCache
from inference_svc.engines.rows.row import Row
from inference_svc.engines.rows.sampling import RowSampling
from inference_svc.engines.rows.scheduler import Scheduler
from inference_svc.engines.rows.steps import make_scheduler
from inference_svc.engines.rows.worker import Worker
from inference_svc.generation import AdapterKey, EngineEvent, FinishReason, GenerationRequest, Message, Tool
from inference_svc.prompts import CONTEXT_OVERFLOW, ChatPrompts, Prompt

_Item = tuple[str, EngineEvent | ChatmillError]

LONG_PROMPT = 8192
"""Prompts of more characters are tokenized on another thread, so that the event loop never waits a millisecond."""


@dataclass(slots=True)
class _Adapter:
    """A loaded adapter: its place in the bank, its identity for caches, who uses it, and whether it is leaving."""

    index: int
    identity: int
    users: int = 0
    leaving: bool = False
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)


@ENGINES.register("rows")
class RowsEngine:
    """Continuous batching over one base and its adapters. See `inference_svc.engines.base.Engine`."""

    Parameters: ClassVar[type] = RowsParameters

    def __init__(self, parameters: RowsParameters) -> None:
        self._parameters = parameters
        self._worker: Worker[_Item] | None = None
        self._scheduler: Scheduler | None = None
        self._info: BaseInfo | None = None
        self._prompts: ChatPrompts
        self._encoder: Encoder | None = None
        self._constraints: ConstraintCompiler
        self._table: TextTable
        self._cache: PrefixCache
        self._generations: dict[str, Generation] = {}
        self._adapter_of: dict[str, _Adapter] = {}
        self._adapters: dict[AdapterKey, _Adapter] = {}
        self._identities = 0
        self._loading = asyncio.Lock()
        self._draining = False
        self._nothing_left = asyncio.Event()

    async def load_base(self, spec: BaseSpec) -> BaseInfo:
        """See `Engine.load_base`."""
        if self._worker is not None:
            raise FailedPrecondition("this engine has a base already; make another engine.", reason="BASE_LOADED")
        if spec.path is None:
            raise FailedPrecondition("the rows engine loads models from folders; give a path.", reason="NO_PATH")
        path, parameters = spec.path, self._parameters
        self._worker = worker = Worker(f"rows {spec.name}", self._deliver)

        def load() -> tuple[loading.Loaded, Scheduler, PrefixCache, TextTable]:
            loading.use_threads(parameters.threads)
            loaded = loading.load(path, parameters)
            cache = PrefixCache(parameters.prefix_cache_tokens)
            table = TextTable(loaded.tokenizer)
            scheduler = make_scheduler(
                loaded,
                parameters,
                cache,
                table,
                emit=lambda row, event: worker.put_out((row.request.request_id, event)),
                fail=lambda row, error: worker.put_out((row.request.request_id, error)),
                hand_out=worker.hand_out,
                hand_over=worker.hand_over,
                bell=worker.bell,
                own_thread=True,
            )
            worker.start(scheduler)
            return loaded, scheduler, cache, table

        try:
            loaded, self._scheduler, self._cache, self._table = await worker.call(load)
        except BaseException:
            await worker.stop()
            self._worker = None
            raise
        self._encoder = Encoder(loaded.tokenizer.backend_tokenizer)
        self._prompts = ChatPrompts(loaded.tokenizer)
        self._constraints = ConstraintCompiler(loaded.tokenizer, loaded.info.vocabulary_size, loaded.info.end_token_ids)
        self._info = loaded.info
        return loaded.info

    async def submit(self, request: GenerationRequest) -> Generation:
        """See `Engine.submit`."""
        worker, scheduler, info = self._ready()
        if len(self._generations) >= self._parameters.max_rows + self._parameters.max_waiting:
            raise ResourceExhausted(
                f"{len(self._generations)} requests run or wait already.",
                retry_after=max(0.1, len(scheduler.waiting) * scheduler.step_seconds),
                quota="engine queue",
            )
        check_request(request, info.vocabulary_size)
        if request.request_id in self._generations:
            raise AlreadyExists(f"request {request.request_id!r} is running already.", reason="DUPLICATE_REQUEST")
        adapter = self._adapter(request.adapter)
        submitted = time.monotonic()
        generation = Generation(request.request_id, self.cancel)
        self._generations[request.request_id] = generation
        if adapter is not None:
            self._adapter_of[request.request_id] = adapter
            adapter.users += 1
            adapter.idle.clear()
        try:
            prompt = await self._prompt(request, info, worker)
            row = self._row(request, prompt, adapter, submitted)
            if request.constraint is not None:
                row.constraint = await asyncio.to_thread(self._constraints.compile, request.constraint)
                row.sampling.allowed = row.constraint.allowed()
        except BaseException:
            self._forget(request.request_id)
            raise
        if self._draining and self._worker is None:
            raise Unavailable("the engine was closed.", reason="DRAINING")
        worker.post(lambda: scheduler.add(row))
        return generation

    def cancel(self, request_id: str) -> bool:
        """See `Engine.cancel`."""
        scheduler = self._scheduler
        if request_id not in self._generations or self._worker is None or scheduler is None:
            return False
        self._worker.post(lambda: scheduler.cancel(request_id))
        return True

    async def count_tokens(self, messages: tuple[Message, ...], tools: tuple[Tool, ...] = ()) -> int:
        """See `Engine.count_tokens`."""
        self._ready()
        if sum(len(message.content) for message in messages) > LONG_PROMPT:
            return len(await asyncio.to_thread(self._prompts.encode, messages, tools))
        return len(self._prompts.encode(messages, tools))

    async def load_adapter(self, spec: AdapterSpec) -> None:
        """See `Engine.load_adapter`."""
        worker, scheduler, _ = self._ready()
        while (present := self._adapters.get(spec.key)) is not None and present.leaving:
            await present.gone.wait()
        async with self._loading:
            if spec.key in self._adapters:
                return
            bank = scheduler.bank
            lora = await asyncio.to_thread(read_adapter, spec.path, bank.shapes, bank.device)
            index = await worker.call(lambda: bank.put(lora))
            self._identities += 1
            self._adapters[spec.key] = _Adapter(index, self._identities)

    async def unload_adapter(self, key: AdapterKey) -> None:
        """See `Engine.unload_adapter`."""
        worker, scheduler, _ = self._ready()
        adapter = self._adapter(key)
        assert adapter is not None
        adapter.leaving = True
        while adapter.users:
            await adapter.idle.wait()
        await worker.call(lambda: scheduler.bank.drop(adapter.index))
        del self._adapters[key]
        adapter.gone.set()

    def load(self) -> EngineLoad:
        """See `Engine.load`."""
        scheduler, parameters = self._scheduler, self._parameters
        if scheduler is None:
            return EngineLoad(max_rows=parameters.max_rows, max_waiting=parameters.max_waiting, draining=self._draining)
        return EngineLoad(
            running=scheduler.running,
            waiting=len(scheduler.waiting),
            max_rows=parameters.max_rows,
            max_waiting=parameters.max_waiting,
            cached_tokens=scheduler.state_tokens,
            token_budget=scheduler.token_budget,
            prefix_cache_tokens=self._cache.tokens,
            prefix_lookup_tokens=self._cache.lookup_tokens,
            prefix_hit_tokens=self._cache.hit_tokens,
            prompt_tokens_total=scheduler.prompt_tokens,
            output_tokens_total=scheduler.output_tokens,
            finished_total=dict(scheduler.finished),
            adapters=tuple(self._adapters),
            adapter_bytes=scheduler.bank.nbytes,
            draining=self._draining,
            step_seconds=scheduler.step_seconds,
        )

    async def drain(self, grace: float) -> None:
        """See `Engine.drain`."""
        self._draining = True
        scheduler = self._scheduler
        if self._worker is None or scheduler is None:
            return
        try:
            await asyncio.wait_for(self._empty(), grace)
        except TimeoutError:
            await self._worker.call(lambda: scheduler.abort_all(FinishReason.ENGINE_ABORTED))
            await self._empty()

    async def close(self) -> None:
        """See `Engine.close`."""
        self._draining = True
        worker, scheduler = self._worker, self._scheduler
        self._worker = self._scheduler = None
        if worker is None:
            return
        await worker.stop()
        if self._encoder is not None:
            await self._encoder.close()
        if scheduler is not None:
            scheduler.release()
        for request_id in list(self._generations):
            self._deliver([(request_id, Aborted("the engine was closed.", reason="ENGINE_CLOSED"))])
        torch.cuda.empty_cache()

    # Inside

    def _ready(self) -> tuple[Worker[_Item], Scheduler, BaseInfo]:
        if self._draining:
            raise Unavailable("the engine is draining and takes no more requests.", reason="DRAINING", retry_after=1.0)
        if self._worker is None or self._scheduler is None or self._info is None:
            raise Unavailable("no base is loaded yet.", reason="NO_BASE", retry_after=1.0)
        return self._worker, self._scheduler, self._info

    def _adapter(self, key: AdapterKey | None) -> _Adapter | None:
        if key is None:
            return None
        adapter = self._adapters.get(key)
        if adapter is None or adapter.leaving:
            raise NotFound(f"adapter {key} is not loaded.", reason="ADAPTER_NOT_LOADED")
        return adapter

    async def _prompt(self, request: GenerationRequest, info: BaseInfo, worker: Worker[_Item]) -> Prompt:
        wanted = request.sampling.max_output_tokens
        # Without a wish one token must fit, else all that was asked for.
        limit = info.context_length - (wanted or 1)
        if limit < 1:
            raise InvalidArgument.field(
                "sampling.max_output_tokens",
                f"is {wanted}, and the model has {info.context_length} tokens for prompt and reply together.",
                reason=CONTEXT_OVERFLOW,
            )
        if request.max_prompt_tokens is not None:
            limit = min(limit, request.max_prompt_tokens)
        size = sum(len(message.content) for message in request.messages) + len(request.text or "")
        if size > LONG_PROMPT:
            return await asyncio.to_thread(self._fit, request, limit)
        encoder = self._encoder
        if encoder is None or not request.messages or len(self._generations) == 1:
            # To wake another thread and be woken by it takes a request that is alone longer than it saves.
            return self._fit(request, limit)
        messages, tools = request.messages, request.tools
        worker.coming += 1
        try:
            ids = await encoder.encode(self._prompts.texts(messages, tools))
        except BaseException:
            # The thread may be waiting for this one alone.
            worker.post(lambda: None)
            raise
        finally:
            worker.coming -= 1
        return self._prompts.fitted(ids, messages, tools, limit=limit, overflow=request.overflow)

    def _fit(self, request: GenerationRequest, limit: int) -> Prompt:
        if request.messages:
            return self._prompts.fit(request.messages, request.tools, limit=limit, overflow=request.overflow)
        ids = list(request.token_ids) or self._prompts.encode_text(request.text or "")
        field = "token_ids" if request.token_ids else "text"
        if not ids:
            raise InvalidArgument.field(field, "is empty; a model needs at least one token.")
        if len(ids) > limit:
            raise InvalidArgument.field(
                field, f"has {len(ids)} tokens, and {limit} are allowed here. Shorten it.", reason=CONTEXT_OVERFLOW
            )
        return Prompt(ids)

    def _row(self, request: GenerationRequest, prompt: Prompt, adapter: _Adapter | None, submitted: float) -> Row:
        assert self._info is not None
        sampling = request.sampling
        room = self._info.context_length - len(prompt.token_ids)
        wanted = sampling.max_output_tokens or self._parameters.default_output_tokens
        seed = sampling.seed if sampling.seed is not None else int.from_bytes(random_bytes()[:8]) >> 1
        ends = frozenset(self._info.end_token_ids)
        held_back = tuple(ends | set(sampling.stop_token_ids)) if sampling.min_output_tokens else ()
        stops = StopFinder(sampling.stop_sequences, include=sampling.include_stop) if sampling.stop_sequences else None
        return Row(
            request=request,
            prompt=prompt.token_ids,
            sampling=RowSampling(sampling, seed, held_back, prompt.token_ids),
            text=self._table.stream(),
            stops=stops,
            end_ids=ends,
            limit=min(wanted, room),
            by_context=room < wanted,
            adapter=adapter.index if adapter else 0,
            root=(adapter.identity if adapter else 0, request.cache_salt),
            truncated_messages=prompt.truncated_messages,
            submitted=submitted,
        )

    def _deliver(self, batch: list[_Item]) -> None:
        for request_id, item in batch:
            generation = self._generations.get(request_id)
            if generation is None:
                continue
            if isinstance(item, ChatmillError):
                generation.fail(item)
            else:
                generation.deliver(item)
            if generation.ended:
                self._forget(request_id)

    def _forget(self, request_id: str) -> None:
        self._generations.pop(request_id, None)
        adapter = self._adapter_of.pop(request_id, None)
        if adapter is not None:
            adapter.users -= 1
            if not adapter.users:
                adapter.idle.set()
        if not self._generations:
            self._nothing_left.set()

    async def _empty(self) -> None:
        while self._generations:
            self._nothing_left.clear()
            await self._nothing_left.wait()
