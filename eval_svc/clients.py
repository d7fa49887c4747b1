"""Other services of the mesh, behind the core's Protocols: agents to test, held-back conversations, the registry's
scores."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chatmill.common.v1 import Message as WireMessage
from chatmill.common.v1 import Role
from chatmill.config import Config
from chatmill.dataset import v1 as dataset_v1
from chatmill.errors import MESSAGE_TOO_LARGE, ChatmillError, FailedPrecondition, ResourceExhausted, Unavailable
from chatmill.factory import v1 as factory_v1
from chatmill.inference import v1 as inference_v1
from chatmill.runtime.channel import Channel, connect_service
from eval_svc.convert import timestamp
from eval_svc.keys import Keys
from eval_svc.openai_target import OpenAiTarget
from eval_svc.ports import ModelScore
from eval_svc.replay import Conversation
from eval_svc.spec import TargetSpec
from eval_svc.target import MAX_REPLY_CHARS, Target, TargetInfo, TurnRequest
from eval_svc.transcript import Failure, FailureKind, Message, Reply, ToolCall

if TYPE_CHECKING:  # the async stubs exist for type checkers only
    from chatmill.dataset.v1.dataset_service_pb2_grpc import DatasetServiceAsyncStub
    from chatmill.factory.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub
    from chatmill.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub

_ROLES = {"system": Role.ROLE_SYSTEM, "user": Role.ROLE_USER, "assistant": Role.ROLE_ASSISTANT, "tool": Role.ROLE_TOOL}
_ROLE_NAMES: dict[int, Any] = {value: name for name, value in _ROLES.items()}
_FINISH = {
    inference_v1.FinishReason.FINISH_REASON_END_OF_TURN: "stop",
    inference_v1.FinishReason.FINISH_REASON_STOP_SEQUENCE: "stop",
    inference_v1.FinishReason.FINISH_REASON_MAX_TOKENS: "length",
    inference_v1.FinishReason.FINISH_REASON_CONTEXT_FULL: "context_full",
    inference_v1.FinishReason.FINISH_REASON_TOOL_CALLS: "tool_calls",
    inference_v1.FinishReason.FINISH_REASON_CONTENT_BLOCKED: "content_filter",
    inference_v1.FinishReason.FINISH_REASON_CANCELLED: "cancelled",
}


class Peers:
    """Channels to the other services, each made when it is first needed: services start in any order."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._channels: dict[str, Channel] = {}

    def channel(self, service: str) -> Channel:
        """The channel to a service."""
        if service not in self._channels:
            self._channels[service] = connect_service(service, self.config)
        return self._channels[service]

    def inference(self) -> InferenceServiceAsyncStub:
        """The inference service."""
        return inference_v1.InferenceServiceStub(self.channel("inference"))

    def registry(self) -> RegistryServiceAsyncStub:
        """The model registry."""
        return factory_v1.RegistryServiceStub(self.channel("factory"))

    def datasets(self) -> DatasetServiceAsyncStub:
        """The dataset service."""
        return dataset_v1.DatasetServiceStub(self.channel("dataset"))

    async def close(self) -> None:
        """Close all channels."""
        for channel in self._channels.values():
            await channel.close()


@dataclass(frozen=True, slots=True)
class MeshAgents:
    """Makes targets: models of the mesh, and OpenAI-compatible servers.

    Attributes:
        keys: for OpenAI-compatible servers.
    """

    peers: Peers
    keys: Keys

    def target(self, spec: TargetSpec) -> Target:
        """The agent that a spec names."""
        if spec.base_url:
            return OpenAiTarget.open(spec, self.keys)
        return MeshTarget(self.peers.inference, self.peers.registry, spec)


@dataclass(frozen=True, slots=True)
class MeshTarget:
    """A model behind the mesh's inference service."""

    inference: Callable[[], InferenceServiceAsyncStub]
    registry: Callable[[], RegistryServiceAsyncStub]
    spec: TargetSpec

    async def describe(self) -> TargetInfo:
        """The version that the name stands for now; aliases may move during a run, versions do not."""
        found = await self.registry().GetModel(factory_v1.GetModelRequest(name=self.spec.model))
        await self.inference().ListServedModels(inference_v1.ListServedModelsRequest())
        model = found.model
        return TargetInfo(
            self.spec.display_name or self.spec.model,
            model.name,
            model.revision,
            endpoint="mesh",
            system_prompt=model.conversation.system_prompt,
        )

    async def reply(self, request: TurnRequest) -> Reply:
        """One generation, streamed, with the times seen here."""
        reading = _Reading()
        try:
            call = self.inference().Generate(self._request(request), timeout=request.timeout_s)
            async for response in call:
                reading.take(response.event)
                if len(reading.text) > MAX_REPLY_CHARS:
                    call.cancel()
                    return reading.reply(Failure("oversized", "OK", f"cut at {MAX_REPLY_CHARS} characters"))
        except ChatmillError as error:
            return reading.reply(failure_of(error, begun=reading.first is not None))
        if not reading.finish:
            return reading.reply(Failure("stream_broken", "OK", "the stream ended without a Finished event"))
        return reading.reply(None)

    def _request(self, request: TurnRequest) -> inference_v1.GenerateRequest:
        messages = [Message("system", request.system)] if request.system else []
        messages += request.messages
        spec = inference_v1.GenerationSpec(
            model=self.spec.model,
            messages=[WireMessage(role=_ROLES[m.role], content=m.content) for m in messages],
            facts=request.facts,
            sampling=inference_v1.Sampling(
                max_output_tokens=request.max_output_tokens, temperature=request.temperature, seed=request.seed
            ),
            fallback=inference_v1.Fallback.FALLBACK_FORBID,  # another model's answers would be scored as this one's
            # a real history may be longer than a small model's context; service would leave out its beginning, too
            limits=inference_v1.Limits(overflow=inference_v1.Overflow.OVERFLOW_TRUNCATE_OLDEST),
            conversation_id=request.conversation[:128],
        )
        return inference_v1.GenerateRequest(spec=spec)


@dataclass(slots=True)
class _Reading:
    """A reply as it comes in."""

    started_at: float = field(default_factory=time.time)
    began: float = field(default_factory=time.perf_counter)
    first: float | None = None
    text: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    handoff: str | None = None
    finish: str = ""
    tokens_in: int | None = None
    tokens_out: int | None = None
    cut_messages: int = 0

    def take(self, event: inference_v1.GenerationEvent) -> None:
        kind = event.WhichOneof("event")
        if kind in ("delta", "tool_call", "handoff") and self.first is None:
            self.first = time.perf_counter()
        if kind == "delta":
            self.text = self.text[: event.delta.character_offset] + event.delta.text
        elif kind == "tool_call":
            self.calls.append(_call(event.tool_call.tool_call))
        elif kind == "handoff":
            self.handoff = event.handoff.reason
            call = _call(event.handoff.tool_call)
            if call.name and call not in self.calls:
                self.calls.append(call)
        elif kind == "retracted":
            self.text = self.text[: event.retracted.from_character_offset]
        elif kind == "started":
            self.tokens_in = event.started.prompt_tokens
            self.cut_messages = event.started.truncated_messages
        elif kind == "finished":
            self.finish = _FINISH.get(event.finished.finish_reason, "unknown")
            self.tokens_in = event.finished.usage.prompt_tokens or self.tokens_in
            self.tokens_out = event.finished.usage.output_tokens

    def reply(self, failure: Failure | None) -> Reply:
        now = time.perf_counter()
        return Reply(
            text=self.text[:MAX_REPLY_CHARS],
            tool_calls=tuple(self.calls),
            handoff_reason=self.handoff,
            finish_reason=self.finish,
            started_at=self.started_at,
            first_token_ms=None if self.first is None else (self.first - self.began) * 1000,
            total_ms=(now - self.began) * 1000,
            tokens_in=self.tokens_in,
            tokens_out=self.tokens_out,
            cut_messages=self.cut_messages,
            failure=failure,
        )


def _call(call: Any) -> ToolCall:
    try:
        arguments = json.loads(call.arguments_json or "{}")
    except ValueError:
        arguments = {"unreadable": call.arguments_json}
    return ToolCall(call.name, arguments if isinstance(arguments, dict) else {"value": arguments})


_INFRA: dict[str, FailureKind] = {
    "RESOURCE_EXHAUSTED": "rate_limited",
    "UNAUTHENTICATED": "unauthenticated",
    "PERMISSION_DENIED": "unauthenticated",
    "NOT_FOUND": "unreachable",
    "FAILED_PRECONDITION": "unreachable",
}


def failure_of(error: ChatmillError, *, begun: bool) -> Failure:
    """Whose fault an error is: what a customer would see of the agent is the agent's, the rest is infrastructure's.

    Args:
        begun: text had already come; a stream that breaks then is the agent's.
    """
    retry = error.retry_after if isinstance(error, ResourceExhausted | Unavailable) else None
    # our servers' reason, and the transport's words, for one message above the limit
    too_large = error.reason == MESSAGE_TOO_LARGE or "larger than max" in error.message
    kind: FailureKind
    if error.code == "DEADLINE_EXCEEDED":
        kind = "timeout"
    elif error.code == "RESOURCE_EXHAUSTED" and too_large:
        kind = "oversized"
    elif error.code == "UNAVAILABLE":
        kind = "stream_broken" if begun else "unreachable"
    else:
        kind = _INFRA.get(error.code, "stream_broken")
    return Failure(kind, error.code, error.message[:500], retry)


@dataclass(frozen=True, slots=True)
class DatasetSource:
    """Held-back conversations from the dataset service."""

    peers: Peers

    async def test_conversations(self, dataset: str) -> AsyncIterator[Conversation]:
        """The test split in order; a broken stream is taken up behind the last item."""
        start = 0
        for attempt in range(3):
            try:
                request = dataset_v1.StreamItemsRequest(
                    dataset=dataset, split=dataset_v1.Split.SPLIT_TEST, start_index=start
                )
                async for response in self.peers.datasets().StreamItems(request):
                    for item in response.items:
                        if item.split == dataset_v1.Split.SPLIT_TRAIN:
                            raise FailedPrecondition(
                                f"{item.name} is a training row, sent as one of the test split; no suite is made of it",
                                reason="TRAINING_ROW",
                            )
                        start = item.index + 1
                        yield _conversation(item)
                return
            except Unavailable:
                if attempt == 2:
                    raise


def _conversation(item: dataset_v1.Item) -> Conversation:
    handover = item.human_intervention_idx if item.HasField("human_intervention_idx") else None
    return Conversation(
        id=item.name.rsplit("/", 1)[-1],
        messages=tuple(Message(_ROLE_NAMES[m.role], m.content) for m in item.messages if m.role in _ROLE_NAMES),
        facts=tuple(item.facts),
        handover_index=handover,
        handover_reason=item.human_intervention_reason,
        language=item.language,
    )


@dataclass(frozen=True, slots=True)
class RegistryScores:
    """Scores written into registry entries."""

    peers: Peers

    async def record(self, model: str, score: ModelScore) -> None:
        """Add or replace the score of an evaluation in the entry of a version."""
        record = factory_v1.EvaluationRecord(
            evaluation=score.evaluation,
            suite=score.suite,
            suite_digest=score.suite_digest,
            pass_rate=score.pass_rate,
            pass_rate_low=score.interval.low,
            pass_rate_high=score.interval.high,
            verdict=score.verdict,
            gate_passed=score.gate_passed,
            end_time=timestamp(score.ended_at),
        )
        request = factory_v1.RecordEvaluationRequest(model=model, record=record)
        await self.peers.registry().RecordEvaluation(request)
