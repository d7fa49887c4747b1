"""Requests of the contract as the domain sees them."""

from __future__ import annotations

import json
from typing import Any, Literal, TypeVar

from chatmill.errors import InvalidArgument
from chatmill.eval import v1
from eval_svc.people.records import (
    Choice,
    DefectStatus,
    EndForm,
    Goal,
    Label,
    SessionKind,
    Side,
    TaskKind,
    Thumb,
    Turn,
    Verdict,
)
from eval_svc.people.sessions import Request
from eval_svc.people.subjects import turn_number
from eval_svc.transcript import ToolCall

SIDES: dict[Side, v1.BattleSide.ValueType] = {
    "": v1.BattleSide.BATTLE_SIDE_UNSPECIFIED,
    "left": v1.BattleSide.BATTLE_SIDE_LEFT,
    "right": v1.BattleSide.BATTLE_SIDE_RIGHT,
}
THUMBS: dict[Thumb, v1.Thumb.ValueType] = {
    "": v1.Thumb.THUMB_UNSPECIFIED,
    "up": v1.Thumb.THUMB_UP,
    "down": v1.Thumb.THUMB_DOWN,
}
VERDICTS: dict[Verdict, v1.HumanVerdict.ValueType] = {
    "": v1.HumanVerdict.HUMAN_VERDICT_UNSPECIFIED,
    "pass": v1.HumanVerdict.HUMAN_VERDICT_PASS,
    "fail": v1.HumanVerdict.HUMAN_VERDICT_FAIL,
    "cannot_assess": v1.HumanVerdict.HUMAN_VERDICT_CANNOT_ASSESS,
}
GOALS: dict[Goal, v1.GoalMet.ValueType] = {
    "": v1.GoalMet.GOAL_MET_UNSPECIFIED,
    "yes": v1.GoalMet.GOAL_MET_YES,
    "partly": v1.GoalMet.GOAL_MET_PARTLY,
    "no": v1.GoalMet.GOAL_MET_NO,
}
VOTES: dict[Choice, v1.Vote.ValueType] = {
    "left": v1.Vote.VOTE_LEFT,
    "right": v1.Vote.VOTE_RIGHT,
    "tie": v1.Vote.VOTE_TIE,
    "both_bad": v1.Vote.VOTE_BOTH_BAD,
}
STATUSES: dict[DefectStatus, v1.DefectStatus.ValueType] = {
    "open": v1.DefectStatus.DEFECT_STATUS_OPEN,
    "confirmed": v1.DefectStatus.DEFECT_STATUS_CONFIRMED,
    "fixed": v1.DefectStatus.DEFECT_STATUS_FIXED,
    "rejected": v1.DefectStatus.DEFECT_STATUS_REJECTED,
}
KINDS: dict[SessionKind, v1.TestSessionKind.ValueType] = {
    "chat": v1.TestSessionKind.TEST_SESSION_KIND_CHAT,
    "battle": v1.TestSessionKind.TEST_SESSION_KIND_BATTLE,
}
TASK_KINDS: dict[TaskKind, v1.TestTaskKind.ValueType] = {
    "ordinary": v1.TestTaskKind.TEST_TASK_KIND_ORDINARY,
    "break": v1.TestTaskKind.TEST_TASK_KIND_BREAK,
    "handover": v1.TestTaskKind.TEST_TASK_KIND_HANDOVER,
}

N = TypeVar("N", bound=str)


def name_of(names: dict[N, Any], value: int, field: str) -> N:
    """The domain's name of an enum's value. Raises InvalidArgument for one that the domain doesn't know."""
    for name, number in names.items():
        if number == value:
            return name
    raise InvalidArgument.field(field, f"has an unknown value {value}; known: {', '.join(n for n in names if n)}")


def session_request(request: v1.CreateTestSessionRequest | v1.CreateBattleRequest) -> Request:
    """Who wants to test what."""
    return Request(
        tester=request.tester,
        consent_version=request.consent_version,
        task=request.task,
        language=request.language,
        app_version=request.app_version,
        request_id=request.request_id,
    )


def turn_from_proto(message: v1.TestTurn, session: str) -> Turn:
    """A turn that is to be kept."""
    return Turn(
        user=message.user,
        reply=message.reply.content,
        side=name_of(SIDES, message.side, "turn.side"),
        tool_calls=tuple(_call(call.name, call.arguments_json) for call in message.reply.tool_calls),
        handoff_reason=message.handoff_reason if message.HasField("handoff_reason") else None,
        finish_reason=message.finish_reason,
        status=message.status or "OK",
        started_at=message.start_time.ToNanoseconds() / 1e9,
        first_token_ms=message.first_token_ms if message.HasField("first_token_ms") else None,
        total_ms=message.total_ms,
        prompt_tokens=message.prompt_tokens,
        output_tokens=message.output_tokens,
        replaces=turn_number(message.replaces, session, "turn.replaces"),
    )


def _call(name: str, arguments: str) -> ToolCall:
    try:
        parsed = json.loads(arguments or "{}")
    except ValueError:
        parsed = {"unparsed": arguments}
    return ToolCall(name, parsed if isinstance(parsed, dict) else {"value": parsed})


def label_from_proto(message: v1.HumanLabel) -> Label:
    """A label that is to be kept."""
    return Label(
        subject=message.subject,
        author=message.author,
        thumb=name_of(THUMBS, message.thumb, "label.thumb"),
        error_classes=tuple(dict.fromkeys(message.error_classes)),
        note=message.note,
        evidence=message.evidence,
        verdict=name_of(VERDICTS, message.verdict, "label.verdict"),
        form=_form(message.form) if message.HasField("form") else None,
    )


_Optional = Literal["broke_it", "correct", "helpful", "tone", "would_escalate", "confidence"]


def _form(message: v1.EndForm) -> EndForm:
    def given(name: _Optional) -> Any:
        return getattr(message, name) if message.HasField(name) else None

    return EndForm(
        goal_met=name_of(GOALS, message.goal_met, "label.form.goal_met"),
        broke_it=given("broke_it"),
        correct=given("correct"),
        helpful=given("helpful"),
        tone=given("tone"),
        would_escalate=given("would_escalate"),
        confidence=given("confidence"),
        sent=message.sent,
    )


def defect_id(name: str) -> str:
    """The id in `defects/{id}`. Raises InvalidArgument for a name of another form."""
    head, _, found = name.partition("/")
    if head != "defects" or not found or "/" in found:
        raise InvalidArgument.field("name", f"must be defects/{{id}}, not {name!r}")
    return found
