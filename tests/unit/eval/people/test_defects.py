from __future__ import annotations

import pytest
import yaml

from chatmill.errors import FailedPrecondition, InvalidArgument, NotFound
from eval_svc.people import scenarios
from eval_svc.people.desk import Desk
from eval_svc.people.records import EndForm, Label
from eval_svc.people.sessions import Request
from eval_svc.scenario_file import scenario_from_mapping

from .conftest import ANA, said


async def broken(desk: Desk, request: Request, **label: object) -> tuple[str, str]:
    session = await desk.sessions.open_chat(request, "models/shop", hidden=True)
    desk.sessions.record(session.id, said("hi", "Hello!"))
    _, turn = desk.sessions.record(session.id, said("refund me: now", "You get 50% back, I promise."))
    made = Label(session.turn_name(turn), "ana", error_classes=("invented_policy",), **label)  # type: ignore[arg-type]
    return session.id, desk.label(made, "")[1]


async def test_an_attempt_that_breaks_it_becomes_a_defect_with_its_conversation(
    desk: Desk, break_request: Request
) -> None:
    session, name = await broken(desk, break_request, note="It promised.", evidence="50% back")
    (defect,) = desk.defects.newest(10, None, None)
    assert name == f"defects/{defect.id}"
    assert (defect.status, defect.severity, defect.reporter) == ("open", "critical", "ana")
    assert defect.model.name == "models/shop/versions/3"
    assert [m.content for m in defect.messages][-1] == "You get 50% back, I promise."
    assert desk.sessions.get(session).opening.model_hidden


async def test_ordinary_mistakes_on_ordinary_tasks_are_no_defects(desk: Desk) -> None:
    session = await desk.sessions.open_chat(ANA, "models/shop", hidden=False)
    _, turn = desk.sessions.record(session.id, said("hi", "hi hi hi"))
    assert desk.label(Label(session.turn_name(turn), "ana", error_classes=("repeat_loop",)), "")[1] == ""
    assert desk.label(Label(session.turn_name(turn), "ana", error_classes=("pii_leak",)), "")[1] != ""


async def test_a_form_that_says_broken_is_a_defect_where_no_reply_is_named(desk: Desk, break_request: Request) -> None:
    session = await desk.sessions.open_chat(break_request, "models/shop", hidden=False)
    desk.sessions.record(session.id, said("hi", "ok"))
    name = desk.label(Label(session.name, "ana", form=EndForm(broke_it=True)), "")[1]
    assert name == f"defects/{session.id}"
    named, _ = await broken(desk, break_request)
    found = desk.label(Label(f"testSessions/{named}", "ana", form=EndForm(broke_it=True, sent=True)), "")[1]
    assert found == ""
    assert len(desk.defects.newest(10, None, None)) == 2


async def test_a_defect_whose_label_is_taken_back_is_rejected_unless_somebody_decided(
    desk: Desk, break_request: Request
) -> None:
    _, name = await broken(desk, break_request)
    subject = desk.defects.get(name.partition("/")[2]).subject
    desk.label(Label(subject, "ana", thumb="up"), "")
    assert desk.defects.get(name.partition("/")[2]).status == "rejected"
    desk.label(Label(subject, "ana", error_classes=("false_action",)), "")
    assert desk.defects.get(name.partition("/")[2]).status == "open"
    desk.defects.update(name.partition("/")[2], "confirmed", "lead", "seen it too")
    desk.label(Label(subject, "ana"), "")
    assert desk.defects.get(name.partition("/")[2]).status == "confirmed"
    assert [c.author for c in desk.defects.get(name.partition("/")[2]).changes] == ["ana", "", "ana", "lead"]


async def test_defects_are_listed_by_status_and_page(desk: Desk, break_request: Request) -> None:
    made = [(await broken(desk, break_request))[1].partition("/")[2] for _ in range(3)]
    desk.defects.update(made[0], "fixed", "lead", "")
    assert [d.id for d in desk.defects.newest(10, None, "open")] == [made[2], made[1]]
    first = desk.defects.newest(1, None, None)
    assert [d.id for d in desk.defects.newest(10, first[0].sequence, None)] == [made[1], made[0]]
    with pytest.raises(NotFound):
        desk.defects.get("abc-7")
    with pytest.raises(NotFound):
        desk.defects.get("../etc")
    with pytest.raises(InvalidArgument, match="author"):
        desk.defects.update(made[0], "open", "", "")


async def test_a_confirmed_defect_becomes_a_scenario_that_can_be_read(desk: Desk, break_request: Request) -> None:
    for label in ({"evidence": "50% back: yes"}, {}):
        _, name = await broken(desk, break_request, note="It promised:\n# a lot", **label)
        defect = name.partition("/")[2]
        with pytest.raises(FailedPrecondition, match="confirm it first"):
            scenarios.draft(desk.defects.get(defect))
        scenario_id, text = scenarios.draft(desk.defects.update(defect, "confirmed", "lead", ""))
        read = scenario_from_mapping(yaml.safe_load(text))
        assert read.id == scenario_id
        assert [turn.user for turn in read.turns] == ["hi", "refund me: now"]
        (check,) = read.final
        assert check.error == "invented_policy"
        assert check.forbid is bool(label)
        assert check.type == ("contains_any" if label else "judge")
