"""One attempt to have one model answer: lease, place in line, engine, events.

The pipeline makes another attempt when this one fails and another model may answer. Whatever happens (the client goes
away, the deadline passes, the engine fails), the row, the place and the lease are given back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, fields, replace

from chatmill.errors import Aborted, DeadlineExceeded, InvalidArgument, Unavailable
from inference_svc import metrics
from inference_svc.admission import Admission, Place, estimate_tokens
from inference_svc.checks import contract_names
from inference_svc.conversation import compose, system_prompt
from inference_svc.engines.base import Generation
from inference_svc.events import (
    ChatRequest,
    FallbackReason,
    Progress,
    ReplyEvent,
    ReplyFinished,
    ReplyStarted,
    ServedBy,
)
from inference_svc.generation import (
    Delta,
    Finished,
    FinishReason,
    GenerationRequest,
    Message,
    Sampling,
    Started,
    Timing,
)
from inference_svc.models import Lease, ModelStore
from inference_svc.moderation.policy import Moderation
from inference_svc.reply import Reply, ReplyOptions

_SAMPLING_FIELDS = frozenset(f.name for f in fields(Sampling))


@dataclass(slots=True)
class Control:
    """What can end a running request from outside.

    Attributes:
        cancelled: somebody asked for its end.
        place: where it waits, if it does.
        generation: what runs for it, if anything does.
    """

    cancelled: bool = False
    place: Place | None = None
    generation: Generation | None = None

    def attach(self, generation: Generation) -> None:
        """What runs now; it is ended at once if somebody asked for that in the meantime."""
        self.generation = generation
        if self.cancelled:
            generation.cancel()

    def cancel(self) -> None:
        """End the request; its reply ends with CANCELLED."""
        self.cancelled = True
        if self.generation is not None:
            self.generation.cancel()
        elif self.place is not None and not self.place.granted:
            self.place.abandon()


class Silence:
    """Notices when nothing was heard for a while, with one timer per stream instead of one per event.

    Args:
        notice: called after so long a silence; `heard` has to be called before it is called again.
        heartbeat: how long, in seconds; 0 for ever.
        give_up: asked for the `time.monotonic()` second at which the first word must be there, or None.
    """

    def __init__(self, notice: Callable[[], None], heartbeat: float, give_up: Callable[[], float | None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._notice = notice
        self._heartbeat = heartbeat
        self._give_up = give_up
        self._last = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._arm()

    def heard(self) -> None:
        """There was something."""
        self._last = time.monotonic()
        if self._timer is None:
            self._arm()

    def stop(self) -> None:
        """Nobody listens any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _due(self) -> float | None:
        moments = [self._last + self._heartbeat] if self._heartbeat else []
        give_up = self._give_up()
        return min([*moments, give_up] if give_up is not None else moments, default=None)

    def _arm(self) -> None:
        due = self._due()
        self._timer = None if due is None else self._loop.call_later(due - time.monotonic(), self._look)

    def _look(self) -> None:
        due = self._due()
        self._timer = None
        if due is not None and time.monotonic() < due:
            self._arm()
        elif due is not None:
            self._notice()


@dataclass(frozen=True, slots=True)
class Collaborators:
    """What every attempt works with."""

    models: ModelStore
    admission: Admission
    moderation: Moderation
    flush_interval: float | None = None
    blocked_reply: str = ""


class Attempt:
    """One attempt. Make it, iterate over `run` once.

    Args:
        request: what the client asked for, its newest messages moderated.
        model: name of the model to try.
        number: 0 for the first attempt; engines see another request id for each.
        reason: why this is not the model that was asked for.
        arrived: `time.monotonic()` second at which the request came.
        patience: seconds until the first word, or 0 for any.
        control: lets others end it.
        collaborators: the service's parts.

    Attributes:
        sent: characters of text that were yielded.
        output_tokens: tokens generated.
        model: name of the version that answers, once it is known.
    """

    def __init__(
        self,
        request: ChatRequest,
        model: str,
        number: int,
        reason: FallbackReason,
        arrived: float,
        patience: float,
        control: Control,
        collaborators: Collaborators,
    ) -> None:
        self.sent = 0
        self.output_tokens = 0
        self.model = ""
        self.cached = self.truncated = 0
        self._request = request
        self._name = model
        self._number = number
        self._reason = reason
        self._arrived = arrived
        self._give_up = time.monotonic() + patience if patience else None
        self._control = control
        self._with = collaborators
        self._submitted = 0.0

    async def run(self) -> AsyncGenerator[ReplyEvent, None]:
        """The events of this attempt, up to its end.

        Raises:
            TimeoutError: the first word did not come in time.
            ChatmillError: as raised by the models, the line and the engine.
        """
        lease = await self._lease()
        place: Place | None = None
        generation: Generation | None = None
        try:
            self.model = lease.entry.name
            messages = compose(lease.entry, self._request.messages, self._request.facts)
            place = self._enter(lease, messages)
            self._control.place = place
            while not place.granted and not place.left:
                if not await place.wait(self._patience()) and not place.left:
                    self._check_patience()
                    yield Progress(queue_position=place.position)
            if self._control.cancelled:
                yield self._ended(FinishReason.CANCELLED, lease)
                return
            sampling = self._sampling(lease)
            self._submitted = time.monotonic()
            try:
                generation = await lease.resident.engine.submit(self._engine_request(messages, sampling, lease))
            except InvalidArgument as error:
                raise contract_names(error) from error
            generation.when_ended(place.release)
            self._control.attach(generation)
            async with aclosing(self._events(generation, messages, sampling, lease)) as events:
                async for event in events:
                    yield event
        finally:
            self._control.generation = self._control.place = None
            if generation is not None:
                generation.cancel()
            elif place is not None:
                place.release()
            lease.release()

    async def _lease(self) -> Lease:
        patience = self._remaining()
        if patience is None:
            return await self._with.models.acquire(self._name)
        return await asyncio.wait_for(self._with.models.acquire(self._name), patience)

    def _enter(self, lease: Lease, messages: tuple[Message, ...]) -> Place:
        tokens = estimate_tokens(sum(len(m.content) for m in messages))
        return self._with.admission.line(lease.resident).enter(
            self._request.caller, tokens, max_wait=self._request.max_queue, deadline=self._request.deadline
        )

    def _sampling(self, lease: Lease) -> Sampling:
        """The request's values over the model's defaults over ours."""
        values = {k: v for k, v in lease.entry.sampling_defaults.items() if k in _SAMPLING_FIELDS}
        return Sampling(**{**values, **self._request.sampling})  # type: ignore[arg-type]

    def _engine_request(self, messages: tuple[Message, ...], sampling: Sampling, lease: Lease) -> GenerationRequest:
        request = self._request
        limits = [n for n in (request.max_prompt_tokens, lease.entry.max_context or None) if n is not None]
        silent = request.flush_tokens is None and request.flush_interval is None
        return GenerationRequest(
            request_id=f"{request.request_id}#{self._number}" if self._number else request.request_id,
            adapter=lease.adapter,
            messages=messages,
            tools=request.tools,
            sampling=sampling,
            constraint=request.constraint,
            overflow=request.overflow,
            max_prompt_tokens=min(limits, default=None),
            deadline=request.deadline,
            flush_tokens=request.flush_tokens,
            flush_interval=self._with.flush_interval if silent else request.flush_interval,
            cache_salt=request.cache_salt,
        )

    async def _events(
        self, generation: Generation, messages: tuple[Message, ...], sampling: Sampling, lease: Lease
    ) -> AsyncGenerator[ReplyEvent, None]:
        request = self._request
        options = ReplyOptions(
            request.text_so_far,
            request.want_token_ids,
            request.moderation.value,
            request.holdback or 0,
            system_prompt(messages),
            self._with.blocked_reply,
        )
        reply = Reply(options, self._with.moderation)
        silence = Silence(generation.interrupt, request.heartbeat, lambda: self._give_up)
        generation.when_ended(silence.stop)
        while True:
            try:
                event = await generation.__anext__()
            except TimeoutError:
                self._check_patience()
                silence.heard()
                yield Progress(output_tokens=self.output_tokens)
                continue
            silence.heard()
            if isinstance(event, Delta):
                self._give_up = None
                self.output_tokens += len(event.token_ids)
                for out in reply.feed(event):
                    yield out
                self.sent = reply.sent
                if reply.blocked:
                    generation.cancel()
            elif isinstance(event, Started):
                self.cached, self.truncated = event.cached_prompt_tokens, event.truncated_messages
                yield self._started(event, sampling, lease)
            else:
                self.output_tokens = event.usage.output_tokens
                self._check_end(event, reply)
                for out in await reply.finish():
                    yield out
                self.sent = reply.sent
                yield self._finished(event, reply, lease)
                return

    def _started(self, event: Started, sampling: Sampling, lease: Lease) -> ReplyStarted:
        if event.truncated_messages:
            metrics.TRUNCATED_MESSAGES.labels(self.model).inc(event.truncated_messages)
        return ReplyStarted(
            self._served_by(lease),
            replace(sampling, seed=event.seed),
            event.prompt_tokens,
            event.cached_prompt_tokens,
            event.truncated_messages,
        )

    def _check_end(self, event: Finished, reply: Reply) -> None:
        """Ends that the client meets as an error."""
        if reply.blocked or self._control.cancelled:
            return
        if event.finish_reason is FinishReason.TIME_LIMIT:
            raise DeadlineExceeded("The request's time ran out while the reply was generated.")
        if event.finish_reason is FinishReason.ENGINE_ABORTED:
            if not reply.sent:
                raise Unavailable("The engine is draining; another replica may answer.", reason="DRAINING")
            raise Aborted(
                "The engine was stopped before the reply was complete. Send the whole request again.",
                reason="ENGINE_FAILED",
            )

    def _finished(self, event: Finished, reply: Reply, lease: Lease) -> ReplyFinished:
        reason = event.finish_reason
        if reply.blocked:
            reason = FinishReason.CONTENT_BLOCKED
        elif self._control.cancelled:
            reason = FinishReason.CANCELLED
        elif reply.called and reason in (FinishReason.END_OF_TURN, FinishReason.STOP_SEQUENCE):
            reason = FinishReason.TOOL_CALLS
        if reply.malformed_tool_calls:
            metrics.MALFORMED_TOOL_CALLS.labels(self.model).inc(reply.malformed_tool_calls)
        before = int((self._submitted - self._arrived) * 1e6)
        timing = event.timing
        return ReplyFinished(
            reason,
            self._served_by(lease),
            event.matched_stop if reason is FinishReason.STOP_SEQUENCE else "",
            event.usage,
            replace(
                timing,
                queue_us=before + timing.queue_us,
                time_to_first_token_us=before + timing.time_to_first_token_us,
                total_us=int((time.monotonic() - self._arrived) * 1e6),
                moderation_us=reply.moderation_us,
            ),
            event.seed,
            reply.malformed_tool_calls,
        )

    def _ended(self, reason: FinishReason, lease: Lease) -> ReplyFinished:
        spent = int((time.monotonic() - self._arrived) * 1e6)
        return ReplyFinished(reason, self._served_by(lease), timing=Timing(queue_us=spent, total_us=spent))

    def _served_by(self, lease: Lease) -> ServedBy:
        fallback = self._reason is not FallbackReason.NONE
        return ServedBy(
            lease.entry.name,
            lease.entry.revision,
            lease.resident.engine_name,
            lease.resident.info.quantisation,
            lease.resident.info.device,
            self._request.model if fallback else "",
            self._reason,
        )

    def _remaining(self) -> float | None:
        return None if self._give_up is None else max(0.0, self._give_up - time.monotonic())

    def _patience(self) -> float | None:
        """Seconds until something has to happen even if the engine is silent."""
        heartbeat = self._request.heartbeat or None
        remaining = self._remaining()
        if remaining is None or heartbeat is None:
            return heartbeat if remaining is None else remaining
        return min(heartbeat, remaining)

    def _check_patience(self) -> None:
        if self._give_up is not None and time.monotonic() >= self._give_up:
            raise TimeoutError(f"{self._name} did not say a word in time.")
