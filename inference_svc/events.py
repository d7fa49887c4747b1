"""What a client asks the service for, and the events of a reply, as plain data.

`generation` has what engines speak; these are the wider types of the pipeline around them, which knows registry names,
moderation, tool calls and fallback. A reply is: any number of Progress and Verdict events, one `ReplyStarted`, then the
rest, and exactly one `ReplyFinished`. After a `Retracted` another `ReplyStarted` follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from inference_svc.generation import (
    Constraint,
    FinishReason,
    FunctionCall,
    Message,
    Overflow,
    Sampling,
    Timing,
    TokenLogprob,
    Tool,
    Usage,
)
from inference_svc.moderation.guard import Verdict

_NO_USAGE = Usage()
_NO_TIME = Timing()


class ModerationMode(StrEnum):
    """What the client wants done about findings."""

    DEFAULT = "default"
    """What the operator configured."""
    REPORT = "report"
    """Say so, and let the text pass."""
    ENFORCE = "enforce"
    """Block where the operator only reports; redact and block as configured otherwise."""
    OFF = "off"
    """Don't look."""


class FallbackMode(StrEnum):
    """Whether another model may answer."""

    DEFAULT = "default"
    FORBID = "forbid"
    ALLOW = "allow"


class FallbackReason(StrEnum):
    """Why another model answers than was asked for."""

    NONE = "none"
    OVERLOAD = "overload"
    UNHEALTHY = "unhealthy"
    TIMEOUT = "timeout"
    FORCED = "forced"


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One request for a reply.

    Attributes:
        request_id: unique among running requests.
        model: `models/{id}`, a version or an alias of it.
        messages: the conversation so far.
        facts: what is known about the customer, one fact each; joined to the system prompt.
        sampling: values that the client set, by field name of `Sampling`; the model's defaults hold for the rest.
        constraint: form of the output, or None.
        tools: what the model may call.
        overflow: what to do with a prompt that is too long.
        max_prompt_tokens: bound below the model's context, or None.
        max_queue: longest wait for a place in seconds, or None for the server's.
        deadline: `time.monotonic()` second by which it must end, or None.
        flush_tokens: see `GenerationRequest`.
        flush_interval: see `GenerationRequest`, in seconds.
        heartbeat: seconds of silence after which a Progress event is sent; 0 for none.
        text_so_far: deltas carry the whole text instead of what is new.
        want_token_ids: deltas carry the token ids.
        fallback: whether another model may answer.
        moderation: what to do about findings.
        holdback: characters that are kept back at least, or None.
        caller: whose request this is, for fairness and rates; empty for anybody.
        conversation_id: opaque.
        cache_salt: see `GenerationRequest`.
        labels: for logs.
    """

    request_id: str
    model: str
    messages: tuple[Message, ...]
    facts: tuple[str, ...] = ()
    sampling: Mapping[str, object] = field(default_factory=dict)
    constraint: Constraint | None = None
    tools: tuple[Tool, ...] = ()
    overflow: Overflow = Overflow.REJECT
    max_prompt_tokens: int | None = None
    max_queue: float | None = None
    deadline: float | None = None
    flush_tokens: int | None = None
    flush_interval: float | None = None
    heartbeat: float = 10.0
    text_so_far: bool = False
    want_token_ids: bool = False
    fallback: FallbackMode = FallbackMode.DEFAULT
    moderation: ModerationMode = ModerationMode.DEFAULT
    holdback: int | None = None
    caller: str = ""
    conversation_id: str = ""
    cache_salt: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServedBy:
    """Who answers.

    Attributes:
        model: resource name of the version, or `canned` for a fixed answer.
        revision: its revision digest.
        engine: name of the engine.
        quantization: `nf4`, `int8` or `none`.
        device: `cpu` or the GPU.
        requested_model: what was asked for, when another one answers; empty otherwise.
        fallback_reason: why another one answers.
    """

    model: str
    revision: str = ""
    engine: str = ""
    quantization: str = ""
    device: str = ""
    requested_model: str = ""
    fallback_reason: FallbackReason = FallbackReason.NONE


@dataclass(frozen=True, slots=True)
class ReplyStarted:
    """A model took the request.

    Attributes:
        served_by: who.
        sampling: all values that hold; the seed included.
        prompt_tokens: length of the prompt.
        cached_prompt_tokens: how much of it came from the prefix cache.
        truncated_messages: messages that were dropped to fit.
    """

    served_by: ServedBy
    sampling: Sampling
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    truncated_messages: int = 0


@dataclass(frozen=True, slots=True)
class ReplyDelta:
    """Text for the customer.

    Attributes:
        text: what is new, or the text so far if the client wants that.
        offset: where `text` begins in the reply, in characters.
        token_ids: the tokens behind it, if asked for.
        logprobs: one per token, if asked for.
    """

    text: str
    offset: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCalled:
    """The model calls a tool."""

    call: FunctionCall


@dataclass(frozen=True, slots=True)
class HandedOver:
    """The model wants a person to take over.

    Attributes:
        reason: why, as the model says.
        call: the call behind it.
    """

    reason: str
    call: FunctionCall


@dataclass(frozen=True, slots=True)
class Progress:
    """Still at work.

    Attributes:
        output_tokens: generated so far.
        queue_position: place in the line, from 1; 0 when running.
    """

    output_tokens: int = 0
    queue_position: int = 0


@dataclass(frozen=True, slots=True)
class Retracted:
    """Text that was sent is withdrawn.

    Attributes:
        from_offset: drop the reply from this character on.
        reason: why, in words.
    """

    from_offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class ReplyFinished:
    """The end.

    Attributes:
        finish_reason: why.
        served_by: who answered.
        matched_stop: the stop sequence that matched, or empty.
        usage: tokens.
        timing: microseconds from the arrival of the request.
        seed: seed that was used.
        malformed_tool_calls: calls that were left as text because they were not valid.
    """

    finish_reason: FinishReason
    served_by: ServedBy
    matched_stop: str = ""
    usage: Usage = _NO_USAGE
    timing: Timing = _NO_TIME
    seed: int = 0
    malformed_tool_calls: int = 0


ReplyEvent = ReplyStarted | ReplyDelta | ToolCalled | HandedOver | Verdict | Progress | Retracted | ReplyFinished
"""What the pipeline yields."""
