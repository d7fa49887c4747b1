"""Results of the domain as the contract writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, error_details_pb2, status_pb2

from chatmill.common.v1 import Message, Role, ToolCall
from chatmill.errors import DOMAIN
from chatmill.eval import v1
from eval_svc.board import Board
from eval_svc.comparison import Comparison
from eval_svc.convert.requests import STATES, spec_to_proto
from eval_svc.drafts import Draft
from eval_svc.evaluations import Evaluation
from eval_svc.result import CheckResult, Glitch, Trial
from eval_svc.result import TurnScore as DomainTurn
from eval_svc.statistics import Interval
from eval_svc.store import Event
from eval_svc.suite import Suite
from eval_svc.summary import ArmSummary, Latency
from eval_svc.transcript import Exchange, Reply
from eval_svc.verdict import GateResult

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


def timestamp(seconds: float | None) -> Timestamp | None:
    """Seconds since the epoch as a Timestamp."""
    if seconds is None:
        return None
    stamp = Timestamp()
    stamp.FromNanoseconds(int(seconds * 1e9))
    return stamp


def evaluation_to_proto(evaluation: Evaluation) -> v1.Evaluation:
    """An evaluation with its results."""
    record, board = evaluation.record, evaluation.board
    message = v1.Evaluation(
        name=evaluation.name,
        state=STATES[record.state],
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
        latency=_latency(arm.latency),
        latency_under_load=_latency(arm.latency_under_load) if arm.latency_under_load is not None else None,
        cut_history_count=arm.cut_histories,
        prompt_tokens=arm.tokens_in,
        output_tokens=arm.tokens_out,
        price_per_conversation_usd=arm.price.per_conversation_usd,
        mean_ratio=arm.mean_ratio,
        exact_rate=arm.exact_rate,
        turn_error_rate_interval=_interval(arm.turn_error_interval),
        conversation_error_rate_interval=_interval(arm.conversation_error_interval),
        critical_rate=arm.critical_rate,
        critical_rate_bound=arm.critical_bound,
        glitch_rate=arm.glitch_rate,
        unscored_trial_count=arm.unscored_trials,
        played_count=arm.played,
        flaky_count=sum(1 for s in arm.scenarios if s.flaky),
        robustness=arm.robustness,
        price_note=arm.price.note,
    )


def _latency(latency: Latency) -> v1.LatencyScore:
    return v1.LatencyScore(
        first_token_p50_ms=latency.first_token_p50,
        first_token_p95_ms=latency.first_token_p95,
        total_mean_ms=latency.mean,
        total_p50_ms=latency.p50,
        total_p95_ms=latency.p95,
        total_p99_ms=latency.p99,
        concurrency=latency.concurrency,
        reply_count=latency.replies,
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
        message.state = STATES[event.payload["state"]]
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


def draft_to_proto(dataset: str, draft: Draft) -> v1.DraftScenariosResponse:
    """What became of one conversation."""
    return v1.DraftScenariosResponse(
        item=f"{dataset}/items/{draft.item}", scenario=draft.scenario, yaml=draft.text, left_out=draft.left_out
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
