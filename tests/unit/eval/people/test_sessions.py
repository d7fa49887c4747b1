from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from chatmill.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from eval_svc.people.desk import Desk
from eval_svc.people.records import EndForm, Label
from eval_svc.people.sessions import Request
from eval_svc.store import Store

from .conftest import ANA, said


async def test_what_was_said_and_labelled_is_there_when_the_service_comes_back(desk: Desk, store: Store) -> None:
    session = await desk.sessions.open_chat(ANA, "models/shop/aliases/live", hidden=True)
    _, turn = desk.sessions.record(session.id, said("hello", "<b>hi</b>"))
    desk.label(Label(session.turn_name(turn), "ana", thumb="down", error_classes=("rude",), note="cold"), "")
    again = Desk(store, desk.guide, desk.sessions._models).sessions.get(session.id)
    assert again.opening.model.name == "models/shop/versions/3", "an alias is pinned to its version"
    assert [t.reply for t in again.turns] == ["<b>hi</b>"]
    (label,) = again.labels
    assert (label.thumb, label.error_classes, label.note) == ("down", ("rude",), "cold")


async def test_an_edit_is_a_new_event_and_the_newest_holds(desk: Desk) -> None:
    session = await desk.sessions.open_chat(ANA, "models/shop", hidden=False)
    _, turn = desk.sessions.record(session.id, said("hello", "hi"))
    name = session.turn_name(turn)
    for thumb in ("up", "down", "up"):
        desk.label(Label(name, "ana", thumb=thumb), "")
    desk.label(Label(name, "bo", thumb="down"), "")
    assert [(x.author, x.thumb) for x in desk.sessions.get(session.id).labels] == [("ana", "up"), ("bo", "down")]
    desk.label(Label(name, "ana"), "")
    assert [x.author for x in desk.sessions.get(session.id).labels] == ["bo"], "an empty label takes back"
    assert len([e for e in desk.export(0, latest_only=False) if e.label]) == 5
    assert len(desk.export(0, latest_only=True)) == 2


async def test_a_reply_that_is_asked_for_again_leaves_the_conversation_but_not_the_record(desk: Desk) -> None:
    session = await desk.sessions.open_chat(ANA, "models/shop", hidden=False)
    _, first = desk.sessions.record(session.id, said("hello", "bad"))
    desk.label(Label(session.turn_name(first), "ana", thumb="down"), "")
    desk.sessions.record(session.id, said("hello", "good", replaces=first.number))
    found = desk.sessions.get(session.id)
    assert [m.content for m in found.messages()] == ["hello", "good"]
    assert [t.superseded for t in found.turns] == [True, False]
    assert len(found.labels) == 1


async def test_a_session_ends_with_its_form_and_takes_no_more_turns(desk: Desk) -> None:
    session = await desk.sessions.open_chat(ANA, "models/shop", hidden=False)
    desk.sessions.record(session.id, said("hello", "hi"))
    form = EndForm(goal_met="yes", correct=4)
    desk.label(Label(session.name, "ana", form=form), "")
    assert not desk.sessions.get(session.id).finished
    desk.label(Label(session.name, "ana", form=replace(form, sent=True)), "")
    assert desk.sessions.get(session.id).form.sent
    with pytest.raises(FailedPrecondition, match="finished"):
        desk.sessions.record(session.id, said("more", "no"))
    desk.label(Label(session.name, "ana", form=replace(form, correct=2, sent=True)), "")
    assert desk.sessions.get(session.id).form.correct == 2, "labels may still be edited"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (replace(ANA, tester="ana@example.org"), "tester"),
        (replace(ANA, tester=" "), "tester"),
        (replace(ANA, consent_version="0"), "consent_version"),
        (replace(ANA, task="everyday2"), "everyday"),
    ],
)
async def test_a_session_takes_a_pseudonym_consent_and_a_known_task(desk: Desk, request_: Request, field: str) -> None:
    with pytest.raises(InvalidArgument, match=field):
        await desk.sessions.open_chat(request_, "models/shop", hidden=False)


async def test_a_retried_creation_gives_the_same_session(desk: Desk) -> None:
    one = await desk.sessions.open_chat(replace(ANA, request_id="r"), "models/shop", hidden=False)
    two = await desk.sessions.open_chat(replace(ANA, request_id="r"), "models/shop", hidden=False)
    assert one.id == two.id
    with pytest.raises(AlreadyExists):
        await desk.sessions.open_chat(replace(ANA, request_id="r", task="unclear"), "models/shop", hidden=False)


async def test_the_same_creation_many_times_at_once_gives_one_session(desk: Desk) -> None:
    chat = [desk.sessions.open_chat(replace(ANA, request_id="c"), "models/shop", hidden=False) for _ in range(6)]
    assert len({session.id for session in await asyncio.gather(*chat)}) == 1
    sides = "models/shop", "models/chatmill-tiny"
    battle = [desk.sessions.open_battle(replace(ANA, request_id="b"), *sides) for _ in range(6)]
    assert len({session.id for session in await asyncio.gather(*battle)}) == 1
    assert len(desk.sessions.newest(100, None, "")) == 2


async def test_wrong_subjects_labels_and_turns_are_refused(desk: Desk) -> None:
    session = await desk.sessions.open_chat(ANA, "models/shop", hidden=False)
    with pytest.raises(NotFound):
        await desk.sessions.open_chat(ANA, "models/none", hidden=False)
    with pytest.raises(InvalidArgument, match="side"):
        desk.sessions.record(session.id, said("a", "b", side="left"))
    with pytest.raises(InvalidArgument, match="replaces"):
        desk.sessions.record(session.id, said("a", "b", replaces=999))
    with pytest.raises(NotFound, match="no turn"):
        desk.label(Label(f"{session.name}/turns/999", "ana", thumb="up"), "")
    with pytest.raises(NotFound, match="no trial"):
        desk.label(Label("evaluations/x/trials/candidate~s~0~0", "ana", verdict="pass"), "")
    with pytest.raises(InvalidArgument, match="did you mean 'invented_policy'"):
        desk.label(Label(session.name, "ana", error_classes=("invented_polcy",)), "")
    with pytest.raises(InvalidArgument, match="1 to 5"):
        desk.label(Label(session.name, "ana", form=EndForm(tone=6)), "")
    with pytest.raises(InvalidArgument, match="must be testSessions"):
        desk.label(Label("sessions/1", "ana"), "")


async def test_sessions_are_listed_by_tester_newest_first(desk: Desk) -> None:
    made = [
        await desk.sessions.open_chat(replace(ANA, tester=tester), "models/shop", hidden=False)
        for tester in ("ana", "bo", "ana")
    ]
    mine = desk.sessions.newest(10, None, "ana")
    assert [s.id for s in mine] == [made[2].id, made[0].id]
    assert desk.sessions.newest(10, mine[0].sequence, "ana")[0].id == made[0].id
    assert len(desk.sessions.newest(10, None, "")) == 3
