"""The only module that sees both the contract and the domain."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, error_details_pb2, status_pb2

from chatmill.common.v1 import JobState, Message, Role, ToolCall
from chatmill.errors import DOMAIN, InvalidArgument
from chatmill.eval import v1
from eval_svc.board import Board
from eval_svc.comparison import Comparison
from eval_svc.evaluations import Evaluation
from eval_svc.result import CheckResult, Glitch, Trial
from eval_svc.result import TurnScore as DomainTurn
from eval_svc.spec import JudgeSpec, ReplaySpec, Spec, TargetSpec
from eval_svc.statistics import Interval
from eval_svc.store import Event
from eval_svc.suite import Suite
from eval_svc.summary import ArmSummary
from eval_svc.transcript import Exchange, Reply
from eval_svc.verdict import Gate, GateResult

_STATES = {
    "queued": JobState.JOB_STATE_QUEUED,
    "running": JobState.JOB_STATE_RUNNING,
    "succeeded": JobState.JOB_STATE_SUCCEEDED,
    "failed": JobState.JOB_STATE_FAILED,
    "cancelling": JobState.JOB_STATE_CANCELLING,
    "cancelled": JobState.JOB_STATE_CANCELLED,
}
_STATE_NAMES = {value: name for name, value in _STATES.items()}
_VERDICTS = {
    "better": v1.Verdict.VERDICT_BETTER,
    "worse": v1.Verdict.VERDICT_WORSE,
    "no clear difference": v1.Verdict.VERDICT_NO_CLEAR_DIFFERENCE,
    "too few scenarios": v1.Verdict.VERDICT_TOO_FEW_SCENARIOS,
}
_GATES = {
    "passed": v1.GateState.GATE_STATE_PASSED,
    "failed": v1.GateState.GATE_STATE_FAILED,
    "invalid": v1.GateState.GATE_STATE_INVALID,
}
_CHECKS = {
    "pass": v1.CheckVerdict.CHECK_VERDICT_PASS,
    "fail": v1.CheckVerdict.CHECK_VERDICT_FAIL,
    "unscored": v1.CheckVerdict.CHECK_VERDICT_UNSCORED,
    "n/a": v1.CheckVerdict.CHECK_VERDICT_NOT_APPLICABLE,
}
_SIDES = {"candidate": v1.Side.SIDE_CANDIDATE, "baseline": v1.Side.SIDE_BASELINE}


def evaluation_id(name: str, field: str = "name") -> str:
    """The id in `evaluations/{id}`. Raises InvalidArgument if the name has another form."""
    head, _, found = name.partition("/")
    if head != "evaluations" or not found or "/" in found:
        raise InvalidArgument.field(field, f"must be evaluations/{{id}}, not {name!r}")
    return found


def state_name(state: int) -> str | None:
    """The domain's name of a state, None if it is not set."""
    return _STATE_NAMES.get(state)


def timestamp(seconds: float | None) -> Timestamp | None:
    """Seconds since the epoch as a Timestamp."""
    if seconds is None:
        return None
    stamp = Timestamp()
    stamp.FromNanoseconds(int(seconds * 1e9))
    return stamp


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


def evaluation_to_proto(evaluation: Evaluation) -> v1.Evaluation:
    """An evaluation with its results."""
    record, board = evaluation.record, evaluation.board
    message = v1.Evaluation(
        name=evaluation.name,
        state=_STATES[record.state],
        spec=spec_to_proto(evaluation.spec),
        suite=record.suite_id,
        suite_digest=record.suite_digest,
        progress=progress_to_proto(record.progress or {}),
        create_time=timestamp(record.created_at),
        end_time=timestamp(record.ended_at),
        last_sequence=record.sequence,
    )
    if board is not None:
        _add_board(message, board)
    if record.error is not None:
        code = code_pb2.Code.Value(record.error["code"])
        message.error.CopyFrom(status_pb2.Status(code=code, message=record.error["message"]))
        message.error.details.add().Pack(error_details_pb2.ErrorInfo(reason=record.error["reason"], domain=DOMAIN))
    return message


def _add_board(message: v1.Evaluation, board: Board) -> None:
    message.candidate.CopyFrom(score_to_proto(board.candidate))
    if board.baseline is not None:
        message.baseline.CopyFrom(score_to_proto(board.baseline))
    if board.comparison is not None:
        message.comparison.CopyFrom(comparison_to_proto(board.comparison))
    message.gate.CopyFrom(gate_to_proto(board.gate))


def progress_to_proto(progress: Mapping[str, Any]) -> v1.EvaluationProgress:
    """The counts as stored."""
    return v1.EvaluationProgress(
        done=progress.get("done", 0),
        total=progress.get("total", 0),
        passed=progress.get("passed", 0),
        errors=progress.get("errors", 0),
        seconds_left=progress.get("seconds_left", 0.0),
    )


def _interval(interval: Interval) -> v1.Interval:
    return v1.Interval(low=interval.low, high=interval.high)


def score_to_proto(arm: ArmSummary) -> v1.Score:
    """The scores of one side."""
    return v1.Score(
        target=arm.target,
        scenario_count=sum(1 for s in arm.scenarios if s.trials),
        trial_count=arm.trials,
        pass_rate=arm.pass_rate,
        pass_rate_interval=_interval(arm.pass_rate_interval),
        pass_hat_k=arm.pass_hat_k,
        mean_score=arm.mean_score,
        turn_error_rate=arm.turn_error_rate,
        conversation_error_rate=arm.conversation_error_rate,
        critical_count=len(arm.critical_scenarios),
        errors=arm.errors,
        unscored_count=arm.unscored,
        infra_count=arm.infra,
        handover=v1.HandoverScore(
            expected_count=arm.handovers.expected,
            missed_count=arm.handovers.missed,
            unexpected_count=arm.handovers.unexpected,
            needless_count=arm.handovers.needless,
        ),
        latency=v1.LatencyScore(
            first_token_p50_ms=arm.latency.first_token_p50,
            first_token_p95_ms=arm.latency.first_token_p95,
            total_mean_ms=arm.latency.mean,
            total_p50_ms=arm.latency.p50,
            total_p95_ms=arm.latency.p95,
            total_p99_ms=arm.latency.p99,
            concurrency=arm.latency.concurrency,
        ),
        prompt_tokens=arm.tokens_in,
        output_tokens=arm.tokens_out,
        price_per_conversation_usd=arm.price.per_conversation_usd,
        mean_ratio=arm.mean_ratio,
        exact_rate=arm.exact_rate,
    )


def comparison_to_proto(comparison: Comparison) -> v1.Comparison:
    """One side beside another."""
    return v1.Comparison(
        difference=comparison.difference,
        difference_interval=_interval(comparison.interval),
        p_value=comparison.p_value,
        verdict=_VERDICTS[comparison.verdict],
        fixed=comparison.fixed,
        broken=comparison.broken,
        both_fail_count=len(comparison.both_fail),
        detectable_difference=comparison.detectable,
        scenarios_needed=comparison.needed,
    )


def gate_to_proto(gate: GateResult) -> v1.GateResult:
    """What the gate says."""
    conditions = [v1.GateCondition(condition=c.condition, seen=c.seen, passed=c.passed) for c in gate.conditions]
    return v1.GateResult(state=_GATES[gate.state], conditions=conditions)


def event_to_proto(event: Event, trial: Trial | None, finished: Evaluation | None) -> v1.EvaluationEvent:
    """An event; `trial` and `finished` are what a trial or finished event refers to."""
    message = v1.EvaluationEvent(sequence=event.sequence, time=timestamp(event.time))
    if event.kind == "state":
        message.state = _STATES[event.payload["state"]]
    elif event.kind == "progress":
        message.progress.CopyFrom(progress_to_proto(event.payload))
    elif event.kind == "warning":
        message.warning = event.payload["text"]
    elif trial is not None:
        message.trial.CopyFrom(trial_to_proto(trial))
    elif finished is not None:
        message.finished.CopyFrom(evaluation_to_proto(finished))
    return message


def trial_to_proto(trial: Trial) -> v1.Trial:
    """A played conversation with its scores."""
    score, unit = trial.score, trial.unit
    scored = {turn.index: turn for turn in score.turns}
    final = [check_to_proto(check, "") for check in score.final]
    return v1.Trial(
        scenario=unit.scenario,
        trial=unit.trial,
        variant=unit.variant,
        side=_SIDES[unit.arm],
        passed=bool(score.passed),
        score=score.score_mean or 0.0,
        outcome=score.outcome,
        turns=[_turn(e, reply, scored.get(e.index)) for e, reply in trial.transcript.played],
        infra_error=f"{score.infra.status}: {score.infra.detail}" if score.infra else "",
        checks=final,
        scored=score.passed is not None,
    )


def _turn(exchange: Exchange, reply: Reply, score: DomainTurn | None) -> v1.Turn:
    calls = [
        ToolCall(id=str(i), name=call.name, arguments_json=json.dumps(call.arguments, ensure_ascii=False))
        for i, call in enumerate(reply.tool_calls)
    ]
    checks = [check_to_proto(check, reply.text) for check in score.checks] if score else []
    checks += [_glitch(glitch, reply.text) for glitch in score.glitches] if score else []
    return v1.Turn(
        user=exchange.user,
        reply=Message(role=Role.ROLE_ASSISTANT, content=reply.text, tool_calls=calls),
        checks=checks,
        first_token_ms=reply.first_token_ms or 0.0,
        total_ms=reply.total_ms,
        status=reply.failure.status if reply.failure else "OK",
    )


def check_to_proto(check: CheckResult, text: str) -> v1.CheckResult:
    """A check's result; the span is where the evidence stands in `text`."""
    start = text.find(check.evidence) if check.evidence else -1
    return v1.CheckResult(
        check=check.id,
        type=check.type,
        verdict=_CHECKS[check.verdict],
        gate=check.gate,
        error_class=check.error,
        severity=check.severity,
        evidence="; ".join(part for part in (check.evidence, check.note) if part),
        span_start=start,
        span_end=start + len(check.evidence) if start >= 0 else -1,
    )


def _glitch(glitch: Glitch, text: str) -> v1.CheckResult:
    start = text.find(glitch.evidence) if glitch.evidence else -1
    return v1.CheckResult(
        check=f"detector-{glitch.error}",
        type="detector",
        verdict=_CHECKS["fail"],
        gate="soft" if glitch.severity == "minor" else "hard",
        error_class=glitch.error,
        severity=glitch.severity,
        evidence="; ".join(part for part in (glitch.evidence, glitch.note) if part),
        span_start=start,
        span_end=start + len(glitch.evidence) if start >= 0 else -1,
    )


def suite_to_proto(suite: Suite | None, folder: str, problem: str) -> v1.Suite:
    """A suite as the list shows it; one whose files are wrong is shown with what is wrong."""
    if suite is None:
        return v1.Suite(name=f"suites/{folder}", description=f"can't be read: {problem}"[:2000])
    return v1.Suite(
        name=f"suites/{suite.id}",
        description=suite.description or suite.title,
        version=suite.version,
        digest=suite.digest,
        scenario_count=len(suite.scenarios),
    )
