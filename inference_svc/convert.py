"""Between the contract's messages and the service's own types; the only module that sees both."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf import duration_pb2, json_format

from chatmill.common.v1 import message_pb2
from chatmill.errors import InvalidArgument
from chatmill.factory.v1 import model_pb2, registry_service_pb2
from chatmill.inference.v1 import generation_pb2, inference_service_pb2, serving_admin_service_pb2
from inference_svc.entries import CatalogChange, ModelEntry, ModelFile, ModelKind
from inference_svc.events import (
    ChatRequest,
    FallbackMode,
    FallbackReason,
    HandedOver,
    ModerationMode,
    Progress,
    ReplyDelta,
    ReplyEvent,
    ReplyFinished,
    ReplyStarted,
    Retracted,
    ServedBy,
    ToolCalled,
)
from inference_svc.generation import (
    Constraint,
    ConstraintKind,
    FinishReason,
    FunctionCall,
    Message,
    Overflow,
    Role,
    Sampling,
    Timing,
    TokenLogprob,
    Tool,
)
from inference_svc.moderation.base import Action, Stage
from inference_svc.moderation.guard import Verdict
from inference_svc.overrides import Overrides
from inference_svc.pipeline import CompleteReply
from inference_svc.service import LoadReport, ServedModel

_ROLES = {
    message_pb2.ROLE_SYSTEM: Role.SYSTEM,
    message_pb2.ROLE_USER: Role.USER,
    message_pb2.ROLE_ASSISTANT: Role.ASSISTANT,
    message_pb2.ROLE_TOOL: Role.TOOL,
}
_KINDS = {
    model_pb2.MODEL_KIND_BASE: ModelKind.BASE,
    model_pb2.MODEL_KIND_ADAPTER: ModelKind.ADAPTER,
    model_pb2.MODEL_KIND_PROMPT: ModelKind.PROMPT,
    model_pb2.MODEL_KIND_MERGED: ModelKind.MERGED,
    model_pb2.MODEL_KIND_REMOTE: ModelKind.REMOTE,
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
_FINISH_REASONS = {
    FinishReason.END_OF_TURN: generation_pb2.FINISH_REASON_END_OF_TURN,
    FinishReason.STOP_SEQUENCE: generation_pb2.FINISH_REASON_STOP_SEQUENCE,
    FinishReason.MAX_TOKENS: generation_pb2.FINISH_REASON_MAX_TOKENS,
    FinishReason.CONTEXT_FULL: generation_pb2.FINISH_REASON_CONTEXT_FULL,
    FinishReason.TOOL_CALLS: generation_pb2.FINISH_REASON_TOOL_CALLS,
    FinishReason.CONTENT_BLOCKED: generation_pb2.FINISH_REASON_CONTENT_BLOCKED,
    FinishReason.CANCELLED: generation_pb2.FINISH_REASON_CANCELLED,
}
_FALLBACK_REASONS = {
    FallbackReason.NONE: generation_pb2.FALLBACK_REASON_UNSPECIFIED,
    FallbackReason.OVERLOAD: generation_pb2.FALLBACK_REASON_OVERLOAD,
    FallbackReason.UNHEALTHY: generation_pb2.FALLBACK_REASON_UNHEALTHY,
    FallbackReason.TIMEOUT: generation_pb2.FALLBACK_REASON_TIMEOUT,
    FallbackReason.FORCED: generation_pb2.FALLBACK_REASON_FORCED,
}
_STAGES = {
    Stage.INPUT: generation_pb2.MODERATION_STAGE_INPUT,
    Stage.OUTPUT: generation_pb2.MODERATION_STAGE_OUTPUT,
}
_ACTIONS = {
    Action.REPORTED: generation_pb2.MODERATION_ACTION_REPORTED,
    Action.REDACTED: generation_pb2.MODERATION_ACTION_REDACTED,
    Action.BLOCKED: generation_pb2.MODERATION_ACTION_BLOCKED,
}
_SAMPLING_SCALARS = (
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


# --- requests ---


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
        max_queue=_seconds(limits.max_queue) if limits.HasField("max_queue") else None,
        deadline=None if time_remaining is None else time.monotonic() + time_remaining,
        flush_tokens=streaming.flush_tokens if streaming.HasField("flush_tokens") else None,
        flush_interval=_seconds(streaming.flush_interval) if streaming.HasField("flush_interval") else None,
        heartbeat=_seconds(streaming.heartbeat_interval) if streaming.HasField("heartbeat_interval") else 10.0,
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
    values: dict[str, object] = {n: getattr(sampling, n) for n in _SAMPLING_SCALARS if sampling.HasField(n)}  # type: ignore[arg-type]
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


def _seconds(duration: duration_pb2.Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


# --- events ---


def event_to(event: ReplyEvent, sequence: int) -> generation_pb2.GenerationEvent:
    """An event of the stream."""
    if isinstance(event, ReplyDelta):
        return generation_pb2.GenerationEvent(sequence=sequence, delta=_delta_to(event))
    if isinstance(event, ReplyStarted):
        return generation_pb2.GenerationEvent(sequence=sequence, started=_started_to(event))
    if isinstance(event, ReplyFinished):
        return generation_pb2.GenerationEvent(sequence=sequence, finished=_finished_to(event))
    if isinstance(event, ToolCalled):
        return generation_pb2.GenerationEvent(
            sequence=sequence, tool_call=generation_pb2.GeneratedToolCall(tool_call=_call_to(event.call))
        )
    if isinstance(event, HandedOver):
        return generation_pb2.GenerationEvent(sequence=sequence, handoff=_handoff_to(event))
    if isinstance(event, Verdict):
        return generation_pb2.GenerationEvent(sequence=sequence, moderation=_moderation_to(event))
    if isinstance(event, Progress):
        return generation_pb2.GenerationEvent(
            sequence=sequence,
            progress=generation_pb2.Progress(output_tokens=event.output_tokens, queue_position=event.queue_position),
        )
    assert isinstance(event, Retracted)
    return generation_pb2.GenerationEvent(
        sequence=sequence,
        retracted=generation_pb2.Retracted(from_character_offset=event.from_offset, reason=event.reason),
    )


def complete_to(reply: CompleteReply) -> inference_service_pb2.CompleteResponse:
    """The whole reply."""
    return inference_service_pb2.CompleteResponse(
        message=message_pb2.Message(
            role=message_pb2.ROLE_ASSISTANT, content=reply.text, tool_calls=[_call_to(c) for c in reply.calls]
        ),
        handoff=_handoff_to(reply.handoff) if reply.handoff else None,
        moderations=[_moderation_to(v) for v in reply.verdicts],
        started=_started_to(reply.started) if reply.started else None,
        finished=_finished_to(reply.finished) if reply.finished else None,
    )


def _delta_to(event: ReplyDelta) -> generation_pb2.Delta:
    delta = generation_pb2.Delta(text=event.text, character_offset=event.offset)
    if event.token_ids:
        delta.token_ids.extend(event.token_ids)
    if event.logprobs:
        delta.logprobs.extend(_logprob_to(p) for p in event.logprobs)
    return delta


def _logprob_to(token: TokenLogprob) -> generation_pb2.TokenLogprob:
    return generation_pb2.TokenLogprob(
        token=token.text,
        logprob=token.logprob,
        top=[generation_pb2.TopLogprob(token=t.text, logprob=t.logprob) for t in token.top],
    )


def _started_to(event: ReplyStarted) -> generation_pb2.Started:
    return generation_pb2.Started(
        served_by=_served_by_to(event.served_by),
        prompt_tokens=event.prompt_tokens,
        cached_prompt_tokens=event.cached_prompt_tokens,
        truncated_messages=event.truncated_messages,
        sampling=_sampling_to(event.sampling),
    )


def _sampling_to(sampling: Sampling) -> generation_pb2.Sampling:
    values: dict[str, Any] = {n: v for n in _SAMPLING_SCALARS if (v := getattr(sampling, n)) is not None}
    return generation_pb2.Sampling(
        stop_sequences=sampling.stop_sequences,
        include_stop=sampling.include_stop,
        ignore_eos=sampling.ignore_eos,
        **values,
    )


def _finished_to(event: ReplyFinished) -> generation_pb2.Finished:
    usage, timing = event.usage, event.timing
    return generation_pb2.Finished(
        finish_reason=_FINISH_REASONS[event.finish_reason],
        matched_stop=event.matched_stop or None,
        usage=generation_pb2.Usage(
            prompt_tokens=usage.prompt_tokens,
            cached_prompt_tokens=usage.cached_prompt_tokens,
            output_tokens=usage.output_tokens,
            discarded_tokens=usage.discarded_tokens,
        ),
        timing=_timing_to(timing),
        seed=event.seed,
        served_by=_served_by_to(event.served_by),
        malformed_tool_calls=event.malformed_tool_calls,
    )


def _timing_to(timing: Timing) -> generation_pb2.Timing:
    return generation_pb2.Timing(
        queue_us=timing.queue_us,
        prefill_us=timing.prefill_us,
        first_token_us=timing.time_to_first_token_us,
        decode_us=timing.decode_us,
        total_us=timing.total_us,
        moderation_us=timing.moderation_us,
        inter_token_mean_us=timing.inter_token_mean_us,
        inter_token_max_us=timing.inter_token_max_us,
    )


def _served_by_to(served_by: ServedBy) -> generation_pb2.ServedBy:
    return generation_pb2.ServedBy(
        model=served_by.model,
        revision=served_by.revision,
        engine=served_by.engine,
        quantization=served_by.quantization,
        device=served_by.device,
        requested_model=served_by.requested_model,
        fallback_reason=_FALLBACK_REASONS[served_by.fallback_reason],
    )


def _call_to(call: FunctionCall) -> message_pb2.ToolCall:
    return message_pb2.ToolCall(id=call.id, name=call.name, arguments_json=call.arguments)


def _handoff_to(event: HandedOver) -> generation_pb2.Handoff:
    return generation_pb2.Handoff(reason=event.reason, tool_call=_call_to(event.call))


def _moderation_to(verdict: Verdict) -> generation_pb2.Moderation:
    return generation_pb2.Moderation(
        stage=_STAGES[verdict.stage],
        action=_ACTIONS[verdict.action],
        categories=[generation_pb2.ModerationCategory(category=verdict.category, score=verdict.score)],
        span_start=verdict.start,
        span_end=verdict.end,
        moderator=verdict.moderator,
    )


# --- models and administration ---


def change_from(message: registry_service_pb2.WatchModelsResponse) -> CatalogChange:
    """A message of the registry."""
    return CatalogChange(tuple(map(entry_from, message.models)), message.snapshot)


def entry_from(model: model_pb2.Model) -> ModelEntry:
    """An entry of the registry."""
    contract, source = model.conversation, model.source
    return ModelEntry(
        name=model.name,
        revision=model.revision,
        kind=_KINDS[model.kind],
        base=model.base,
        files=tuple(ModelFile(a.path, a.sha256, a.size_bytes) for a in model.artifacts),
        aliases=tuple(model.aliases),
        system_prompt=contract.system_prompt,
        examples=tuple((e.user, e.assistant) for e in contract.examples),
        prompt_template=contract.prompt_template,
        stop_tokens=tuple(contract.stop_tokens),
        template_digest=contract.chat_template_digest,
        max_context=contract.max_context,
        sampling_defaults=_defaults_from(json_format.MessageToDict(contract.sampling_defaults)),
        hub_id=source.hub_id,
        base_url=source.base_url,
        remote_name=source.revision,
    )


def _defaults_from(values: Mapping[str, Any]) -> dict[str, object]:
    """Sampling defaults as Transformers' generation_config.json or our own fields write them."""
    whole = {"max_output_tokens", "min_output_tokens", "top_k", "seed"}
    named = {"max_new_tokens": "max_output_tokens", "min_new_tokens": "min_output_tokens"}
    defaults: dict[str, object] = {}
    for key, value in values.items():
        name = named.get(key, key)
        if name in _SAMPLING_SCALARS and isinstance(value, int | float) and not isinstance(value, bool):
            defaults[name] = int(value) if name in whole else float(value)
    if values.get("do_sample") is False:
        defaults["temperature"] = 0.0
    stops = values.get("stop_sequences")
    if isinstance(stops, Sequence) and not isinstance(stops, str):
        defaults["stop_sequences"] = tuple(map(str, stops))
    return defaults


def served_to(model: ServedModel) -> inference_service_pb2.ServedModel:
    """A model that can be asked for."""
    return inference_service_pb2.ServedModel(
        model=model.entry.name,
        revision=model.entry.revision,
        aliases=model.entry.aliases,
        loaded=model.loaded,
        engine=model.engine,
        quantization=model.quantization,
        memory_bytes=model.memory_bytes,
        running=model.running,
        max_context=model.max_context,
    )


def load_to(load: LoadReport) -> serving_admin_service_pb2.GetLoadResponse:
    """How busy the service is."""
    return serving_admin_service_pb2.GetLoadResponse(
        running=load.running,
        waiting=load.waiting,
        waiting_tokens=load.waiting_tokens,
        max_waiting=load.max_waiting,
        tokens_per_second=load.tokens_per_second,
        cache_hit_rate=load.cache_hit_rate,
        memory_bytes=load.memory_bytes,
        draining=load.draining,
        refused=load.refused,
    )


def overrides_from(message: serving_admin_service_pb2.Overrides) -> Overrides:
    """The operator's changes."""
    return Overrides(tuple(message.blocked_phrases), tuple(message.forced_fallback_models))


def overrides_to(overrides: Overrides) -> serving_admin_service_pb2.Overrides:
    """The operator's changes."""
    return serving_admin_service_pb2.Overrides(
        blocked_phrases=overrides.blocked_phrases, forced_fallback_models=overrides.forced_fallback
    )


def seconds_from(duration: duration_pb2.Duration) -> float:
    """A duration in seconds."""
    return _seconds(duration)
