"""The events of a reply as the contract's messages."""

from __future__ import annotations

from typing import Any

from chatmill.common.v1 import message_pb2
from chatmill.inference.v1 import generation_pb2, inference_service_pb2
from inference_svc.convert.requests import SAMPLING_SCALARS
from inference_svc.events import (
    FallbackReason,
    HandedOver,
    Progress,
    ReplyDelta,
    ReplyEvent,
    ReplyFinished,
    ReplyStarted,
    Retracted,
    ServedBy,
    ToolCalled,
)
from inference_svc.generation import FinishReason, FunctionCall, Sampling, Timing, TokenLogprob
from inference_svc.moderation.base import Action, Stage
from inference_svc.moderation.guard import Verdict
from inference_svc.pipeline import CompleteReply

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
    values: dict[str, Any] = {n: v for n in SAMPLING_SCALARS if (v := getattr(sampling, n)) is not None}
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
