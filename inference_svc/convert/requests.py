"""The contract's requests as the service's own types."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping

from google.protobuf import duration_pb2

from chatmill.common.v1 import message_pb2
from chatmill.errors import InvalidArgument
from chatmill.inference.v1 import generation_pb2
from inference_svc.events import ChatRequest, FallbackMode, ModerationMode
from inference_svc.generation import Constraint, ConstraintKind, FunctionCall, Message, Overflow, Role, Tool

_ROLES = {
    message_pb2.ROLE_SYSTEM: Role.SYSTEM,
    message_pb2.ROLE_USER: Role.USER,
    message_pb2.ROLE_ASSISTANT: Role.ASSISTANT,
    message_pb2.ROLE_TOOL: Role.TOOL,
}
_OVERFLOWS = {generation_pb2.OVERFLOW_TRUNCATE_OLDEST: Overflow.TRUNCATE_OLDEST}
_FALLBACKS = {
    generation_pb2.FALLBACK_FORBID: FallbackMode.FORBID,
    generation_pb2.FALLBACK_ALLOW: FallbackMode.ALLOW,
}
_MODERATION_MODES = {
    generation_pb2.MODERATION_MODE_REPORT: ModerationMode.REPORT,
    generation_pb2.MODERATION_MODE_ENFORCE: ModerationMode.ENFORCE,
    generation_pb2.MODERATION_MODE_OFF: ModerationMode.OFF,
}
SAMPLING_SCALARS = (
    "max_output_tokens",
    "min_output_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "logprobs",
)
"""Fields of `Sampling` that are numbers, of equal names in the contract and here."""


def request_from(
    spec: generation_pb2.GenerationSpec, request_id: str, caller: str, time_remaining: float | None
) -> ChatRequest:
    """The request; `time_remaining` are the seconds until the call's deadline, or None.

    Raises:
        InvalidArgument: an enum has a value that this version does not know.
    """
    streaming, limits = spec.streaming, spec.limits
    return ChatRequest(
        request_id=request_id,
        model=spec.model,
        messages=messages_from(spec.messages),
        facts=tuple(spec.facts),
        sampling=_sampling_from(spec.sampling),
        constraint=_constraint_from(spec.output_constraint),
        tools=tuple(_tool_from(t, i) for i, t in enumerate(spec.tools)),
        overflow=_OVERFLOWS.get(limits.overflow, Overflow.REJECT),
        max_prompt_tokens=limits.max_prompt_tokens if limits.HasField("max_prompt_tokens") else None,
        max_queue=seconds_from(limits.max_queue) if limits.HasField("max_queue") else None,
        deadline=None if time_remaining is None else time.monotonic() + time_remaining,
        flush_tokens=streaming.flush_tokens if streaming.HasField("flush_tokens") else None,
        flush_interval=seconds_from(streaming.flush_interval) if streaming.HasField("flush_interval") else None,
        heartbeat=seconds_from(streaming.heartbeat_interval) if streaming.HasField("heartbeat_interval") else 10.0,
        text_so_far=streaming.delta_mode == generation_pb2.DELTA_MODE_TEXT_SO_FAR,
        want_token_ids=streaming.want_token_ids,
        fallback=_FALLBACKS.get(spec.fallback, FallbackMode.DEFAULT),
        moderation=_MODERATION_MODES.get(spec.moderating.mode, ModerationMode.DEFAULT),
        holdback=spec.moderating.holdback_characters if spec.moderating.HasField("holdback_characters") else None,
        caller=caller,
        conversation_id=spec.conversation_id,
        cache_salt=spec.cache_salt,
        labels=dict(spec.labels),
    )


def messages_from(messages: Iterable[message_pb2.Message], field: str = "spec.messages") -> tuple[Message, ...]:
    """The conversation.

    Raises:
        InvalidArgument: a role is not set.
    """
    return tuple(_message_from(m, f"{field}[{i}]") for i, m in enumerate(messages))


def _message_from(message: message_pb2.Message, field: str) -> Message:
    role = _ROLES.get(message.role)
    if role is None:
        raise InvalidArgument.field(f"{field}.role", "must be SYSTEM, USER, ASSISTANT or TOOL")
    calls = tuple(FunctionCall(c.name, c.arguments_json or "{}", c.id) for c in message.tool_calls)
    return Message(role, message.content, calls, message.tool_call_id)


def _sampling_from(sampling: generation_pb2.Sampling) -> dict[str, object]:
    values: dict[str, object] = {n: getattr(sampling, n) for n in SAMPLING_SCALARS if sampling.HasField(n)}  # type: ignore[arg-type]
    if sampling.stop_sequences:
        values["stop_sequences"] = tuple(sampling.stop_sequences)
    if sampling.include_stop:
        values["include_stop"] = True
    if sampling.ignore_eos:
        values["ignore_eos"] = True
    return values


def _constraint_from(constraint: generation_pb2.OutputConstraint) -> Constraint | None:
    which = constraint.WhichOneof("constraint")
    if which is None:
        return None
    if which == "choices":
        return Constraint(ConstraintKind.CHOICES, choices=tuple(constraint.choices.choices))
    return Constraint(ConstraintKind(which), getattr(constraint, which))


def _tool_from(tool: generation_pb2.Tool, index: int) -> Tool:
    schema: object = {}
    if tool.parameters_json_schema:
        try:
            schema = json.loads(tool.parameters_json_schema)
        except json.JSONDecodeError as error:
            raise InvalidArgument.field(
                f"spec.tools[{index}].parameters_json_schema", f"is not JSON: {error}"
            ) from None
    if not isinstance(schema, Mapping):
        raise InvalidArgument.field(f"spec.tools[{index}].parameters_json_schema", "must be a JSON object")
    return Tool(tool.name, tool.description, dict(schema))


def seconds_from(duration: duration_pb2.Duration) -> float:
    """A duration in seconds."""
    return duration.seconds + duration.nanos / 1e9
