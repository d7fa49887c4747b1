"""The way of a request: resolve the model, look at the input, find who answers, and turn failures into other answers.

Everything that a client can observe is decided here and below; the servicer only converts. This module knows no
contract and no engine's inside.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace

from chatmill.errors import AlreadyExists, ChatmillError, InvalidArgument, NotFound, Unavailable
from inference_svc import metrics
from inference_svc.admission import estimate_tokens
from inference_svc.attempt import Attempt, Collaborators, Control
from inference_svc.checks import check
from inference_svc.conversation import compose, newest
from inference_svc.entries import ModelEntry
from inference_svc.events import (
    ChatRequest,
    FallbackMode,
    FallbackReason,
    HandedOver,
    ModerationMode,
    ReplyDelta,
    ReplyEvent,
    ReplyFinished,
    ReplyStarted,
    Retracted,
    ServedBy,
    ToolCalled,
)
from inference_svc.fallback import FALLBACKS, Fallbacks, Step, reason_of
from inference_svc.generation import FinishReason, FunctionCall, Message, Role, Sampling, Timing, Usage
from inference_svc.moderation.base import Stage
from inference_svc.moderation.guard import Verdict
from inference_svc.prompts import CONTEXT_OVERFLOW
from inference_svc.reply import record

log = logging.getLogger(__name__)

LONGEST_TOKEN = 128
"""Characters that a token stands for at most: the longest in use are runs of so many spaces."""


@dataclass(slots=True)
class CompleteReply:
    """A reply in one piece.

    Attributes:
        started: how it began; None if it was stopped before a model took it.
        finished: how it ended.
        text: the text.
        calls: tool calls, the handover's included.
        handoff: set if a person should take over.
        verdicts: what moderation found.
    """

    started: ReplyStarted | None = None
    finished: ReplyFinished | None = None
    text: str = ""
    calls: list[FunctionCall] = field(default_factory=list)
    handoff: HandedOver | None = None
    verdicts: list[Verdict] = field(default_factory=list)


class Pipeline:
    """Answers requests.

    Args:
        collaborators: models, admission, moderation.
        fallbacks: chains and breakers.
    """

    def __init__(self, collaborators: Collaborators, fallbacks: Fallbacks | None = None) -> None:
        self._with = collaborators
        self._fallbacks = fallbacks or Fallbacks()
        self._running: dict[str, Control] = {}
        self._draining = False
        self._idle = asyncio.Event()

    @property
    def running(self) -> int:
        """Requests under way, waiting ones included."""
        return len(self._running)

    @property
    def draining(self) -> bool:
        """Whether new requests are refused."""
        return self._draining

    def drain(self, *, resume: bool = False) -> None:
        """Refuse new requests from now on, or take them again."""
        self._draining = not resume

    async def idle(self) -> None:
        """Return when no request is under way."""
        while self._running:
            self._idle.clear()
            await self._idle.wait()

    def cancel(self, request_id: str) -> None:
        """End a running request; its reply ends with CANCELLED.

        Raises:
            NotFound: it is not running.
        """
        control = self._running.get(request_id)
        if control is None:
            raise NotFound(f"No request {request_id!r} is running here; it may have ended.")
        control.cancel()

    async def generate(self, request: ChatRequest) -> AsyncGenerator[ReplyEvent, None]:
        """The events of a reply; see `events`. Close the iterator to end the work at once.

        Raises:
            ChatmillError: as the contract's `Generate` lists them.
        """
        arrived = time.monotonic()
        try:
            async with self._admit(request) as control:
                spent = Usage()
                async with aclosing(self._answer(request, arrived, control)) as events:
                    async for event in events:
                        if isinstance(event, ReplyFinished):
                            spent = event.usage
                            self._observe(event)
                        yield event
                await self._with.admission.rates.settle(request.caller, spent.output_tokens)
        except ChatmillError as error:
            metrics.FAILED.labels(error.reason).inc()
            raise

    async def complete(self, request: ChatRequest) -> CompleteReply:
        """The reply in one piece; raises what `generate` raises."""
        # Nobody reads along, so the engine hands the text out at the end.
        whole = replace(request, flush_tokens=1 << 30, flush_interval=None, heartbeat=0.0, text_so_far=False)
        reply = CompleteReply()
        texts: list[str] = []
        async for event in self.generate(whole):
            if isinstance(event, ReplyDelta):
                texts.append(event.text)
            elif isinstance(event, ReplyStarted):
                reply.started = event
            elif isinstance(event, ReplyFinished):
                reply.finished = event
            elif isinstance(event, ToolCalled):
                reply.calls.append(event.call)
            elif isinstance(event, HandedOver):
                reply.calls.append(event.call)
                reply.handoff = event
            elif isinstance(event, Verdict):
                reply.verdicts.append(event)
            elif isinstance(event, Retracted):
                texts.clear()
                reply.calls.clear()
                reply.handoff = None
        reply.text = "".join(texts)
        return reply

    async def count_tokens(
        self, model: str, messages: tuple[Message, ...], facts: tuple[str, ...] = ()
    ) -> tuple[int, int]:
        """Tokens of the prompt as the model sees it, and of its context."""
        lease = await self._with.models.acquire(model)
        try:
            composed = compose(lease.entry, messages, facts)
            return await lease.resident.engine.count_tokens(composed), lease.context_length
        finally:
            lease.release()

    async def ask(self, model: str, prompt: str) -> str:
        """A short answer of a model that is served here, unmoderated; for judges."""
        question = ChatRequest(
            request_id=f"judge-{time.monotonic_ns()}",
            model=model,
            messages=(Message(Role.USER, prompt),),
            sampling={"temperature": 0.0, "max_output_tokens": 32},
            moderation=ModerationMode.OFF,
            fallback=FallbackMode.FORBID,
            caller="moderation",
        )
        attempt = Attempt(question, model, 0, FallbackReason.NONE, time.monotonic(), 0.0, Control(), self._with)
        async with aclosing(attempt.run()) as events:
            return "".join([event.text async for event in events if isinstance(event, ReplyDelta)])

    @asynccontextmanager
    async def _admit(self, request: ChatRequest) -> AsyncIterator[Control]:
        if self._draining:
            raise Unavailable(
                "The service is draining and takes no new requests; another replica may.",
                reason="DRAINING",
                retry_after=1.0,
            )
        check(request)
        self._with.moderation.check(request.moderation.value)
        if request.request_id in self._running:
            raise AlreadyExists(
                f"request_id: a request {request.request_id!r} is running already. Choose ids that are unique, or "
                "cancel that one."
            )
        await self._with.admission.rates.charge(
            request.caller, estimate_tokens(sum(len(m.content) for m in request.messages))
        )
        control = self._running[request.request_id] = Control()
        try:
            yield control
        finally:
            del self._running[request.request_id]
            if not self._running:
                self._idle.set()

    async def _answer(self, request: ChatRequest, arrived: float, control: Control) -> AsyncGenerator[ReplyEvent, None]:
        entry = self._entry(request.model)
        chain = self._fallbacks.chain(request.model, entry)
        steps = self._fallbacks.steps(request.model, chain, request.fallback)
        forced = self._fallbacks.is_forced(request.model, entry)
        if entry is not None and not forced and len(steps) == 1:
            self._check_line(request, entry)
        request, verdicts, blocked = await self._look_at_input(request)
        for verdict in verdicts:
            yield verdict
        if blocked:
            for event in self._refusal(entry, arrived):
                yield event
            return
        reason = FallbackReason.NONE
        if forced:
            reason, steps = FallbackReason.FORCED, steps[1:]
            if not steps:
                raise Unavailable(
                    f"An operator has taken {request.model} out of service, and nothing may answer in its place.",
                    reason="TAKEN_OUT_OF_SERVICE",
                )
        first_error: Exception | None = None
        discarded = 0
        patience = chain.first_word_seconds if chain else 0.0
        for number, step in enumerate(steps):
            last = number == len(steps) - 1
            if not step.model:
                for event in self._canned(step, request, reason, arrived):
                    yield event
                return
            attempt = Attempt(
                request, step.model, number, reason, arrived, 0.0 if last else patience, control, self._with
            )
            try:
                async with aclosing(self._try(attempt, step, reason)) as events:
                    async for event in events:
                        if discarded and isinstance(event, ReplyFinished):
                            event = replace(event, usage=replace(event.usage, discarded_tokens=discarded))
                        yield event
                return
            except Exception as error:
                first_error = first_error or error
                why = reason_of(error)
                if number and isinstance(error, InvalidArgument | NotFound):
                    why = reason  # a stand-in that can't take the request at all is passed over
                if last or why is FallbackReason.NONE:
                    raise first_error from (error if error is not first_error else None)
                log.warning(
                    "falling back", extra={"fields": {"from": step.model, "why": why.value, "error": str(error)}}
                )
                if attempt.sent:
                    yield Retracted(0, f"another model answers anew ({why.value})")
                discarded += attempt.output_tokens
                reason = why

    async def _try(self, attempt: Attempt, step: Step, reason: FallbackReason) -> AsyncGenerator[ReplyEvent, None]:
        """One attempt behind the breaker of its model."""
        breaker = self._fallbacks.breaker(step.model)
        if not breaker.allow():
            raise Unavailable(
                f"{step.model} failed several times in a row and is left alone for a moment.",
                reason="BREAKER_OPEN",
                retry_after=self._fallbacks.seconds,
            )
        spoken = False
        try:
            async with aclosing(attempt.run()) as events:
                async for event in events:
                    if not spoken and isinstance(event, ReplyDelta | ReplyFinished):
                        spoken = True
                        breaker.success()
                        if reason is not FallbackReason.NONE:
                            FALLBACKS.labels(attempt.model, reason.value).inc()
                    yield event
        except Exception as error:
            if reason_of(error) in (FallbackReason.UNHEALTHY, FallbackReason.TIMEOUT):
                breaker.failure()
            raise

    def _entry(self, name: str) -> ModelEntry | None:
        """The entry of the model, or None while the registry is unknown; an unknown name fails here at once."""
        catalog = self._with.models.catalog
        return catalog.get(name) if catalog.known else None

    def _check_line(self, request: ChatRequest, entry: ModelEntry) -> None:
        """Refuse at a full line, and what no context holds, before the input is looked at, whatever else it holds: a
        refusal has to be cheap."""
        resident = self._with.models.resident_of(entry)
        if resident is None:
            return
        self._with.admission.line(resident).check(request.caller, max_wait=request.max_queue)
        size, context = len(request.messages[-1].content), resident.info.context_length
        if size > LONGEST_TOKEN * context:
            raise InvalidArgument.field(
                "spec.messages",
                f"the last has {size} characters, which no tokenizer makes {context} tokens of, the model's context. "
                "Shorten it.",
                reason=CONTEXT_OVERFLOW,
            )

    async def _look_at_input(self, request: ChatRequest) -> tuple[ChatRequest, list[Verdict], bool]:
        """The request with its newest messages masked, what was found, and whether it stops here."""
        messages = list(request.messages)
        verdicts: list[Verdict] = []
        masked = False
        for index in newest(messages):
            guard = self._with.moderation.open(Stage.INPUT, request.moderation.value)
            if guard is None:
                return request, [], False
            passed = await guard.feed_whole(messages[index].content)
            text = passed.text
            verdicts += passed.verdicts
            if guard.judged:
                passed = await guard.judge()
                text += passed.text
                verdicts += passed.verdicts
            if passed.blocked:
                self._record(verdicts)
                return request, verdicts, True
            if text != messages[index].content:
                messages[index] = replace(messages[index], content=text)
                masked = True
        self._record(verdicts)
        return replace(request, messages=tuple(messages)) if masked else request, verdicts, False

    @staticmethod
    def _record(verdicts: list[Verdict]) -> None:
        for verdict in verdicts:
            record(verdict)

    def _refusal(self, entry: ModelEntry | None, arrived: float) -> list[ReplyEvent]:
        """What the client gets when its input was blocked."""
        served_by = ServedBy(entry.name if entry else "", entry.revision if entry else "")
        return self._fixed(served_by, self._with.blocked_reply, FinishReason.CONTENT_BLOCKED, arrived)

    def _canned(self, step: Step, request: ChatRequest, reason: FallbackReason, arrived: float) -> list[ReplyEvent]:
        FALLBACKS.labels("canned", reason.value).inc()
        served_by = ServedBy("canned", requested_model=request.model, fallback_reason=reason)
        return self._fixed(served_by, step.canned, FinishReason.END_OF_TURN, arrived)

    @staticmethod
    def _fixed(served_by: ServedBy, text: str, reason: FinishReason, arrived: float) -> list[ReplyEvent]:
        timing = Timing(total_us=int((time.monotonic() - arrived) * 1e6))
        delta: list[ReplyEvent] = [ReplyDelta(text, 0)] if text else []
        return [ReplyStarted(served_by, Sampling()), *delta, ReplyFinished(reason, served_by, timing=timing)]

    @staticmethod
    def _observe(event: ReplyFinished) -> None:
        model, usage, timing = event.served_by.model, event.usage, event.timing
        metrics.finished_of(model, event.finish_reason).inc()
        metrics.reply_seconds_of(model).observe(timing.total_us / 1e6)
        if usage.output_tokens:
            metrics.first_token_seconds_of(model).observe(timing.time_to_first_token_us / 1e6)
        if usage.output_tokens > 1:
            metrics.inter_token_seconds_of(model).observe(timing.decode_us / 1e6 / (usage.output_tokens - 1))
        for kind, count in (
            ("prompt", usage.prompt_tokens),
            ("cached", usage.cached_prompt_tokens),
            ("output", usage.output_tokens),
            ("discarded", usage.discarded_tokens),
        ):
            if count:
                metrics.tokens_of(model, kind).inc(count)
