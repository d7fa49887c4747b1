"""Requests of the contract as the domain sees them, and specs back."""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration

from chatmill.common.v1 import JobState
from chatmill.errors import InvalidArgument
from chatmill.eval import v1
from eval_svc.spec import JudgeSpec, ReplaySpec, Spec, TargetSpec
from eval_svc.verdict import Gate

STATES: dict[str, JobState.ValueType] = {
    "queued": JobState.JOB_STATE_QUEUED,
    "running": JobState.JOB_STATE_RUNNING,
    "succeeded": JobState.JOB_STATE_SUCCEEDED,
    "failed": JobState.JOB_STATE_FAILED,
    "cancelling": JobState.JOB_STATE_CANCELLING,
    "cancelled": JobState.JOB_STATE_CANCELLED,
}
_STATE_NAMES: dict[int, str] = {value: name for name, value in STATES.items()}


def evaluation_id(name: str, field: str = "name") -> str:
    """The id in `evaluations/{id}`. Raises InvalidArgument if the name has another form."""
    head, _, found = name.partition("/")
    if head != "evaluations" or not found or "/" in found:
        raise InvalidArgument.field(field, f"must be evaluations/{{id}}, not {name!r}")
    return found


def state_name(state: int) -> str | None:
    """The domain's name of a state, None if it is not set. Raises InvalidArgument for one that is unknown."""
    if state and state not in _STATE_NAMES:
        raise InvalidArgument.field("state", f"has an unknown value {state}; known: {', '.join(STATES)}")
    return _STATE_NAMES.get(state)


def report_format(value: int) -> str:
    """The domain's name of a report's form. Raises InvalidArgument for one that is not set or unknown."""
    names: dict[int, str] = {
        v1.ReportFormat.REPORT_FORMAT_HTML: "html",
        v1.ReportFormat.REPORT_FORMAT_JUNIT: "junit",
        v1.ReportFormat.REPORT_FORMAT_JSONL: "jsonl",
    }
    if value not in names:
        raise InvalidArgument.field("format", "must be HTML, JUNIT or JSONL")
    return names[value]


def spec_from_proto(message: v1.EvaluationSpec) -> Spec:
    """The request as a domain spec; ranges are checked by the domain."""
    which = message.WhichOneof("suite")
    return Spec(
        candidate=_target(message.candidate, "spec.candidate"),
        suite=message.scenario_suite,
        replay=_replay(message.replay_suite) if which == "replay_suite" else None,
        baseline=_target(message.baseline, "spec.baseline") if message.HasField("baseline") else None,
        trials=message.trials if message.HasField("trials") else None,
        seed=message.seed if message.HasField("seed") else 0,
        concurrency=message.concurrency if message.HasField("concurrency") else None,
        system_prompt=message.system_prompt,
        gate=_gate(message.gate),
        tags=tuple(message.tags),
        max_output_tokens=message.max_output_tokens if message.HasField("max_output_tokens") else 256,
        temperature=message.temperature if message.HasField("temperature") else 0.0,
        labels=dict(message.labels),
        policies=dict(message.policies),
        judge=_judge(message.judge) if message.HasField("judge") else None,
        customer=_target(message.customer, "spec.customer") if message.HasField("customer") else None,
        turn_timeout_s=_seconds(message.turn_timeout) if message.HasField("turn_timeout") else 60.0,
        latency_turns=message.latency_turns if message.HasField("latency_turns") else None,
        stop_early=message.stop_early,
    )


def _seconds(duration: Duration) -> float:
    return float(duration.seconds + duration.nanos / 1e9)


def _target(message: v1.Target, field: str) -> TargetSpec:
    which = message.WhichOneof("target")
    if which is None:
        raise InvalidArgument.field(field, "set either model or openai")
    if which == "model":
        return TargetSpec(message.model, display_name=message.display_name)
    there = message.openai
    return TargetSpec(there.model, there.base_url, there.api_key_file, message.display_name)


def _replay(message: v1.ReplaySuite) -> ReplaySpec:
    ratio = message.pass_ratio if message.HasField("pass_ratio") else 60.0
    return ReplaySpec(message.dataset, message.max_conversations, message.max_turns, ratio)


def _judge(message: v1.JudgeSpec) -> JudgeSpec:
    return JudgeSpec(_target(message.target, "spec.judge.target"), message.gates, message.allow_self)


def _gate(message: v1.Gate) -> Gate:
    def number(name: str) -> Any:
        return getattr(message, name) if message.HasField(name) else None  # type: ignore[arg-type]

    latency = _seconds(message.max_p95_latency) * 1000 if message.HasField("max_p95_latency") else None
    return Gate(
        number("min_pass_rate"), number("min_difference"), number("min_pass_hat_k"), latency, number("max_critical")
    )


def spec_to_proto(spec: Spec) -> v1.EvaluationSpec:
    """The spec as it holds, defaults filled in."""
    message = v1.EvaluationSpec(
        candidate=target_to_proto(spec.candidate),
        trials=spec.trials,
        seed=spec.seed,
        concurrency=spec.concurrency,
        system_prompt=spec.system_prompt,
        tags=spec.tags,
        max_output_tokens=spec.max_output_tokens,
        temperature=spec.temperature,
        labels=spec.labels,
        policies=spec.policies,
        latency_turns=spec.latency_turns,
        stop_early=spec.stop_early,
    )
    if spec.replay is not None:
        replay = spec.replay
        message.replay_suite.dataset = replay.dataset
        message.replay_suite.max_conversations = replay.max_conversations
        message.replay_suite.max_turns = replay.max_turns
        message.replay_suite.pass_ratio = replay.pass_ratio
    else:
        message.scenario_suite = spec.suite
    if spec.baseline is not None:
        message.baseline.CopyFrom(target_to_proto(spec.baseline))
    if spec.judge is not None:
        judge = v1.JudgeSpec(target=target_to_proto(spec.judge.target), gates=spec.judge.gates)
        judge.allow_self = spec.judge.allow_self
        message.judge.CopyFrom(judge)
    if spec.customer is not None:
        message.customer.CopyFrom(target_to_proto(spec.customer))
    message.turn_timeout.FromNanoseconds(int(spec.turn_timeout_s * 1e9))
    gate = spec.gate
    message.gate.CopyFrom(
        v1.Gate(
            min_pass_rate=gate.min_pass_rate,
            min_difference=gate.min_difference,
            min_pass_hat_k=gate.min_pass_hat_k,
            max_critical=gate.max_critical,
        )
    )
    if gate.max_p95_ms is not None:
        message.gate.max_p95_latency.FromNanoseconds(int(gate.max_p95_ms * 1e6))
    return message


def target_to_proto(target: TargetSpec) -> v1.Target:
    """A target as the contract writes it."""
    if target.base_url:
        endpoint = v1.OpenAiEndpoint(base_url=target.base_url, model=target.model, api_key_file=target.api_key_file)
        return v1.Target(openai=endpoint, display_name=target.display_name)
    return v1.Target(model=target.model, display_name=target.display_name)
