"""Asks a model and gathers its reply as it comes, with the times that the tester sees. It knows no page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chatmill.common.v1 import Message, Role, ToolCall
from chatmill.errors import ChatmillError, DeadlineExceeded
from chatmill.eval.v1 import BattleSide, TestTurn
from chatmill.inference.v1 import (
    DeltaMode,
    FinishReason,
    GenerateRequest,
    GenerationEvent,
    GenerationSpec,
    Streaming,
)

if TYPE_CHECKING:
    from chatmill.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub

TICK = 0.1
"""Seconds between two updates of the page."""
PATIENCE = 60.0
"""Seconds without a sign of life after which a reply counts as hung, where the caller says nothing else."""
MAX_REPLY = 65_536
"""Characters of a reply that are kept and shown, as in evaluations: no chat window holds more."""
TOO_LONG, BROKEN_OFF = "OUT_OF_RANGE", "DATA_LOSS"
"""Statuses of our own finding: a reply past `MAX_REPLY`, and a stream that ended without its last event."""


@dataclass
class Reply:
    """A reply as far as it has come.

    Attributes:
        text: what may be shown.
        status: name of the gRPC status; CANCELLED until it is complete, `TOO_LONG` and `BROKEN_OFF` as found here.
        problem: what the service said went wrong; empty if nothing did.
        started_at: seconds since the epoch.
        first_token_ms, total_ms: since then.
    """

    text: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    handoff: str | None = None
    finish_reason: str = ""
    status: str = "CANCELLED"
    problem: str = ""
    started_at: float = field(default_factory=time.time)
    first_token_ms: float | None = None
    total_ms: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    _clock: float = field(default_factory=time.monotonic)

    def take(self, event: GenerationEvent) -> None:
        """Add one event."""
        kind = event.WhichOneof("event")
        if kind == "delta":
            self.text = self.text[: event.delta.character_offset] + event.delta.text
            if len(self.text) > MAX_REPLY:
                self.text, self.status = self.text[:MAX_REPLY], TOO_LONG
            self._begun()
        elif kind == "tool_call":
            self._call(event.tool_call.tool_call)
        elif kind == "handoff":
            self.handoff = event.handoff.reason
            self._call(event.handoff.tool_call)
        elif kind == "retracted":
            self.text = self.text[: event.retracted.from_character_offset]
        elif kind == "started":
            self.prompt_tokens = event.started.prompt_tokens
        elif kind == "finished" and self.status != TOO_LONG:
            self.status = "OK"
            self.finish_reason = FinishReason.Name(event.finished.finish_reason).removeprefix("FINISH_REASON_")
            self.output_tokens = event.finished.usage.output_tokens
        self.total_ms = (time.monotonic() - self._clock) * 1000

    def _begun(self) -> None:
        if self.first_token_ms is None:
            self.first_token_ms = (time.monotonic() - self._clock) * 1000

    def _call(self, call: ToolCall) -> None:
        # a handover comes as a tool call, too
        if call.name and all(known.id != call.id for known in self.tool_calls):
            self.tool_calls.append(call)
        self._begun()

    def fail(self, error: ChatmillError) -> None:
        """It ended with an error; what had come stays."""
        self.status, self.problem = error.code, error.message
        self.total_ms = (time.monotonic() - self._clock) * 1000

    def turn(self, user: str, side: BattleSide.ValueType, replaces: str) -> TestTurn:
        """It as it is kept."""
        message = TestTurn(
            side=side,
            user=user,
            reply=Message(role=Role.ROLE_ASSISTANT, content=self.text, tool_calls=self.tool_calls),
            handoff_reason=self.handoff,
            finish_reason=self.finish_reason,
            status=self.status,
            first_token_ms=self.first_token_ms,
            total_ms=self.total_ms,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            replaces=replaces,
        )
        message.start_time.FromNanoseconds(int(self.started_at * 1e9))
        return message


def history(turns: Sequence[TestTurn], side: BattleSide.ValueType) -> list[Message]:
    """The conversation of a side as a model gets it; replies that never came are left out with their question."""
    found: list[Message] = []
    for turn in turns:
        if turn.side == side and not turn.superseded and (turn.reply.content or turn.reply.tool_calls):
            found.append(Message(role=Role.ROLE_USER, content=turn.user))
            found.append(turn.reply)
    return found


async def fetch(
    inference: InferenceServiceAsyncStub,
    model: str,
    messages: Sequence[Message],
    facts: Sequence[str],
    session: str,
    reply: Reply,
    patience: float = PATIENCE,
) -> None:
    """Ask, and fill `reply` as the answer comes; an error ends it and is told in it. Cancelling cancels the call.

    A reply that grows past `MAX_REPLY` is cut there, and the call ended.

    Args:
        messages: the conversation, the newest question last.
        facts: what the model is told about the customer.
        session: the conversation's id for the service's logs.
        patience: seconds without a sign of life after which it is given up.
    """
    spec = GenerationSpec(
        model=model,
        messages=messages,
        facts=facts,
        streaming=Streaming(delta_mode=DeltaMode.DELTA_MODE_INCREMENT),
        conversation_id=session,
    )
    try:
        call = inference.Generate(GenerateRequest(spec=spec))
        try:
            async with asyncio.timeout(patience) as waiting:
                async for response in call:
                    waiting.reschedule(asyncio.get_running_loop().time() + patience)
                    reply.take(response.event)
                    if reply.status == TOO_LONG:
                        return
        finally:
            call.cancel()
        if reply.status != "OK":
            reply.status = BROKEN_OFF
    except TimeoutError:
        reply.fail(DeadlineExceeded(f"nothing came for {patience:g} seconds"))
    except ChatmillError as error:
        reply.fail(error)


async def ticking(work: Sequence[asyncio.Task[None]], seconds: float = TICK) -> AsyncGenerator[None, None]:
    """Ticks until all work is done or cancelled; leaving it early cancels the work and waits until it has ended.

    What a browser is sent ten times a second reads as a stream; each token would only keep it from painting.
    """
    try:
        while not all(task.done() for task in work):
            await asyncio.wait(work, timeout=seconds)
            yield
        for task in work:
            if not task.cancelled():
                task.result()
    finally:
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)


def paced(texts: Sequence[str], done: Sequence[bool]) -> list[str]:
    """What may be shown of several replies so that their speed tells nothing: none is ahead of one that still comes."""
    behind = min((len(text) for text, ended in zip(texts, done, strict=True) if not ended), default=None)
    return [text[:behind] for text in texts]
