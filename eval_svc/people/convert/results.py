"""Results of the domain as the contract writes them."""

from __future__ import annotations

import json
from collections.abc import Iterable

from chatmill.common.v1 import Message as WireMessage
from chatmill.common.v1 import Role, ToolCall
from chatmill.eval import v1
from eval_svc.convert import timestamp
from eval_svc.people.agreement import Agreement, Calibration
from eval_svc.people.convert.requests import GOALS, KINDS, SIDES, STATUSES, TASK_KINDS, THUMBS, VERDICTS, VOTES
from eval_svc.people.defects import Defect
from eval_svc.people.export import Exported
from eval_svc.people.guide import Guide, spoken
from eval_svc.people.insight import Insight
from eval_svc.people.queue import Item, Stratum
from eval_svc.people.records import EndForm, Label, Session, Turn
from eval_svc.people.scores import HumanScore
from eval_svc.statistics import Interval
from eval_svc.taxonomy import ERROR_CLASSES
from eval_svc.transcript import Message

_STRATA: dict[Stratum, v1.QueueStratum.ValueType] = {
    "critical": v1.QueueStratum.QUEUE_STRATUM_CRITICAL,
    "judge_split": v1.QueueStratum.QUEUE_STRATUM_JUDGE_SPLIT,
    "fail": v1.QueueStratum.QUEUE_STRATUM_FAIL,
    "pass": v1.QueueStratum.QUEUE_STRATUM_PASS,
    "second_opinion": v1.QueueStratum.QUEUE_STRATUM_SECOND_OPINION,
}
_ROLES = {"system": Role.ROLE_SYSTEM, "user": Role.ROLE_USER, "assistant": Role.ROLE_ASSISTANT, "tool": Role.ROLE_TOOL}


def guide_to_proto(guide: Guide, language: str) -> v1.GetTestGuideResponse:
    """What a tester needs to know, in one language."""
    card = guide.card
    return v1.GetTestGuideResponse(
        tasks=[
            v1.TestTask(
                id=task.id,
                kind=TASK_KINDS[task.kind],
                title=spoken(task.title, language),
                instructions=spoken(task.instructions, language),
                persona=spoken(task.persona, language),
                facts=task.facts,
            )
            for task in guide.tasks
        ],
        error_classes=[
            v1.ErrorClass(name=e.name, severity=e.severity, group=e.group, meaning=e.meaning)
            for e in ERROR_CLASSES.values()
        ],
        agent_name=card.name if card else "",
        agent_company=card.company if card else "",
        agent_purpose=card.purpose if card else "",
        agent_policies=[policy.text for policy in card.policies] if card else [],
        consent_text=spoken(guide.consent.text, language),
        consent_version=guide.consent.version,
    )


def session_to_proto(session: Session, *, whole: bool = True) -> v1.TestSession:
    """A session; a comparison's models are named only when the vote is in.

    Args:
        whole: with turns and labels.
    """
    opening = session.opening
    finished = v1.TestSessionState.TEST_SESSION_STATE_FINISHED
    message = v1.TestSession(
        name=session.name,
        tester=opening.tester,
        task=opening.task,
        kind=KINDS[opening.kind],
        state=finished if session.finished else v1.TestSessionState.TEST_SESSION_STATE_OPEN,
        model=opening.model.name,
        revision=opening.model.revision,
        model_hidden=opening.model_hidden,
        facts=opening.facts,
        language=opening.language,
        app_version=opening.app_version,
        consent_version=opening.consent_version,
        create_time=timestamp(session.created_at),
        end_time=timestamp(session.ended_at),
    )
    if opening.kind == "battle":
        message.battle.CopyFrom(_battle(session))
    if whole:
        message.turns.extend(turn_to_proto(session, turn) for turn in session.turns)
        message.labels.extend(label_to_proto(label) for label in session.labels)
    return message


def _battle(session: Session) -> v1.Battle:
    vote = session.vote
    if vote is None:
        return v1.Battle(state=v1.BattleState.BATTLE_STATE_OPEN)
    return v1.Battle(
        state=v1.BattleState.BATTLE_STATE_VOID if vote.void_reason else v1.BattleState.BATTLE_STATE_VOTED,
        vote=VOTES[vote.choice],
        left_model=session.opening.left.name,
        right_model=session.opening.right.name,
        void_reason=vote.void_reason,
    )


def turn_to_proto(session: Session, turn: Turn) -> v1.TestTurn:
    """A turn as kept."""
    calls = [
        ToolCall(id=str(i), name=call.name, arguments_json=json.dumps(call.arguments, ensure_ascii=False))
        for i, call in enumerate(turn.tool_calls)
    ]
    return v1.TestTurn(
        name=session.turn_name(turn),
        side=SIDES[turn.side],
        user=turn.user,
        reply=WireMessage(role=Role.ROLE_ASSISTANT, content=turn.reply, tool_calls=calls),
        handoff_reason=turn.handoff_reason,
        finish_reason=turn.finish_reason,
        status=turn.status,
        start_time=timestamp(turn.started_at),
        first_token_ms=turn.first_token_ms,
        total_ms=turn.total_ms,
        prompt_tokens=turn.prompt_tokens,
        output_tokens=turn.output_tokens,
        replaces=f"{session.name}/turns/{turn.replaces}" if turn.replaces else "",
        superseded=turn.superseded,
    )


def label_to_proto(label: Label) -> v1.HumanLabel:
    """A label as kept."""
    message = v1.HumanLabel(
        subject=label.subject,
        author=label.author,
        thumb=THUMBS[label.thumb],
        error_classes=label.error_classes,
        note=label.note,
        evidence=label.evidence,
        verdict=VERDICTS[label.verdict],
        create_time=timestamp(label.time),
        sequence=label.sequence,
    )
    if label.form is not None:
        message.form.CopyFrom(_form(label.form))
    return message


def _form(form: EndForm) -> v1.EndForm:
    return v1.EndForm(
        goal_met=GOALS[form.goal_met],
        broke_it=form.broke_it,
        correct=form.correct,
        helpful=form.helpful,
        tone=form.tone,
        would_escalate=form.would_escalate,
        confidence=form.confidence,
        sent=form.sent,
    )


def _messages(messages: Iterable[Message]) -> list[WireMessage]:
    return [WireMessage(role=_ROLES[message.role], content=message.content) for message in messages]


def item_to_proto(item: Item) -> v1.LabelQueueItem:
    """Something to judge."""
    return v1.LabelQueueItem(
        name=item.name,
        stratum=_STRATA[item.stratum],
        messages=_messages(item.messages),
        facts=item.facts,
        title=item.title,
        policies=item.policies,
        double_label=item.double,
    )


def insight_to_proto(insight: Insight) -> v1.GetAgreementResponse:
    """Who agrees with whom."""
    return v1.GetAgreementResponse(
        human_human=_agreement(insight.human_human),
        machine_human=_agreement(insight.machine_human),
        judge_human=_agreement(insight.judge_human),
        machine=_calibration(insight.machine),
        judge=_calibration(insight.judge),
        advice=insight.advice,
    )


def _agreement(found: Agreement) -> v1.Agreement:
    both_pass, first_only, second_only, both_fail = found.counts
    return v1.Agreement(
        item_count=found.items,
        raw=found.raw,
        kappa=found.kappa,
        kappa_interval=_interval(found.interval),
        both_pass_count=both_pass,
        first_pass_only_count=first_only,
        second_pass_only_count=second_only,
        both_fail_count=both_fail,
        not_assessed_count=found.not_assessed,
    )


def _calibration(found: Calibration) -> v1.Calibration:
    return v1.Calibration(
        true_positive_rate=found.tpr,
        true_negative_rate=found.tnr,
        human_pass_count=found.human_pass,
        human_fail_count=found.human_fail,
        calibrated_pass_rate=found.rate,
        calibrated_interval=_interval(found.interval),
        machine_pass_rate=found.observed,
        note=found.note,
    )


def _interval(interval: Interval | None) -> v1.Interval | None:
    return v1.Interval(low=interval.low, high=interval.high) if interval is not None else None


def score_to_proto(score: HumanScore) -> v1.HumanScore:
    """What people say about one version."""
    passes, wins, votes = score.pass_rate, score.win_rate, score.votes
    return v1.HumanScore(
        model=score.model.name,
        revision=score.model.revision,
        session_count=score.sessions,
        finished_count=score.finished,
        reply_count=score.replies,
        thumb_up_count=score.thumbs["up"],
        thumb_down_count=score.thumbs["down"],
        errors=score.errors,
        passed_count=score.verdicts["pass"],
        failed_count=score.verdicts["fail"],
        pass_rate=passes[0] if passes else None,
        pass_rate_interval=_interval(passes[1]) if passes else None,
        defect_count=score.defects,
        win_count=votes["win"],
        loss_count=votes["loss"],
        tie_count=votes["tie"],
        both_bad_count=votes["both_bad"],
        void_count=votes["void"],
        win_rate=wins[0] if wins else None,
        win_rate_interval=_interval(wins[1]) if wins else None,
        first_token_p50_ms=score.first_token_p50_ms,
        total_p95_ms=score.total_p95_ms,
        evaluation=score.evaluation,
        machine_pass_rate=score.machine_rate,
        machine_pass_rate_interval=_interval(score.machine_interval),
        mean_correct=score.mean("correct"),
        mean_helpful=score.mean("helpful"),
        mean_tone=score.mean("tone"),
        flagged_count=score.flagged,
        machine_error_rate=score.machine_error_rate,
    )


def defect_to_proto(defect: Defect) -> v1.Defect:
    """A defect as it is now."""
    return v1.Defect(
        name=f"defects/{defect.id}",
        status=STATUSES[defect.status],
        session=defect.session.name,
        subject=defect.subject,
        model="" if defect.blind else defect.model.name,
        revision="" if defect.blind else defect.model.revision,
        reporter=defect.reporter,
        error_classes=defect.error_classes,
        severity=defect.severity,
        note=defect.note,
        evidence=defect.evidence,
        messages=_messages(defect.messages),
        changes=[
            v1.DefectChange(status=STATUSES[c.status], author=c.author, note=c.note, time=timestamp(c.time))
            for c in defect.changes
        ],
        create_time=timestamp(defect.changes[0].time),
        update_time=timestamp(defect.changes[-1].time),
    )


def export_to_proto(entry: Exported) -> v1.ExportLabelsResponse:
    """A label or a vote with what it is about."""
    message = v1.ExportLabelsResponse(
        sequence=entry.sequence,
        time=timestamp(entry.time),
        model=entry.model.name,
        revision=entry.model.revision,
        task=entry.task,
        user=entry.user,
        reply=entry.reply,
        replaced=entry.replaced,
    )
    if entry.label is not None:
        message.label.CopyFrom(label_to_proto(entry.label))
    elif entry.vote is not None and entry.session is not None:
        opening = entry.session.opening
        record = v1.VoteRecord(
            session=entry.session.name,
            tester=opening.tester,
            vote=VOTES[entry.vote.choice],
            left_model=opening.left.name,
            right_model=opening.right.name,
            void_reason=entry.vote.void_reason,
            note=entry.vote.note,
        )
        message.vote.CopyFrom(record)
    return message
