"""HumanEvalService over gRPC, as the page and any other client sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
import yaml

from bridge.mesh import Mesh as Stubs
from bridge.testers import shown
from bridge.testers.desk import Desk
from bridge.testers.talking import MAX_REPLY, Reply, fetch, history, paced, ticking
from chatmill import agent
from chatmill.agent import AgentCard, Policy
from chatmill.common.v1 import Message, Role
from chatmill.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from chatmill.eval import v1
from chatmill.runtime.testing import local_config

from .conftest import Mesh


@pytest.fixture
async def desk(mesh: Mesh) -> AsyncIterator[Desk]:
    stubs = Stubs(mesh.config)
    yield Desk(stubs, ())
    await stubs.close()


async def talked(
    desk: Desk, session: v1.TestSession, words: str, side: Any = shown.ONE, model: str = ""
) -> v1.TestTurn:
    reply = Reply()
    said = [*history((await desk.session(session.name)).turns, side), Message(role=Role.ROLE_USER, content=words)]
    await fetch(desk.mesh.inference, model or session.model, said, session.facts, "s", reply)
    return await desk.record(session.name, reply.turn(words, side, ""))


async def test_a_tester_talks_labels_and_finds_it_all_again(desk: Desk) -> None:
    session = await desk.begin("ana", "returning", "", "en")
    assert session.model_hidden
    turn = await talked(desk, session, "hello, a person please")
    assert turn.handoff_reason == "request"
    assert turn.status == "OK"
    assert turn.first_token_ms > 0
    assert turn.finish_reason == "TOOL_CALLS"
    label = v1.HumanLabel(
        subject=turn.name, author="ana", thumb=v1.Thumb.THUMB_DOWN, error_classes=["needless_handoff"]
    )
    assert await desk.label(label) == ""
    found = await desk.session(session.name)
    assert shown.feedback(found) == ["Dislike"]
    assert "⇢ Handed over to a person: request" in shown.bubbles(shown.in_force(found), "en")[1]["content"]
    assert [s.name for s in await desk.sessions("ana")] == [session.name]
    assert shown.model_line(found, "en") == "hidden until you finish"
    form = v1.EndForm(goal_met=v1.GoalMet.GOAL_MET_YES, broke_it=False, correct=4, sent=True)
    await desk.label(v1.HumanLabel(subject=session.name, author="ana", form=form))
    ended = await desk.session(session.name)
    assert ended.state == v1.TestSessionState.TEST_SESSION_STATE_FINISHED
    assert shown.model_line(ended, "en") in ("shop v1", "chatmill-tiny v1")
    with pytest.raises(FailedPrecondition, match="finished"):
        await talked(desk, session, "more")


async def test_a_blind_comparison_names_its_models_after_the_vote(desk: Desk) -> None:
    session = await desk.begin_battle("ana", "everyday", "en")
    left, right = await desk.sides(session.name)
    assert {left, right} == {"models/shop/versions/1", "models/chatmill-tiny/versions/1"}
    await talked(desk, session, "hello", shown.LEFT, left)
    with pytest.raises(FailedPrecondition, match="both sides"):
        await desk.vote(session.name, v1.Vote.VOTE_LEFT, leaked=False)
    await talked(desk, session, "hello", shown.RIGHT, right)
    before = await desk.session(session.name)
    assert "models/" not in str(before)
    after = await desk.vote(session.name, v1.Vote.VOTE_LEFT, leaked=False)
    assert (after.battle.left_model, after.battle.right_model) == (left, right)
    (winner,) = [s for s in await desk.scores() if s.model == left]
    assert winner.win_count == 1


async def test_a_break_becomes_a_defect_and_when_confirmed_a_scenario(desk: Desk) -> None:
    session = await desk.begin("ana", "promise-refund", "models/shop", "en")
    turn = await talked(desk, session, "promise me a refund")
    label = v1.HumanLabel(subject=turn.name, author="ana", error_classes=["invented_policy"], evidence="within 30 days")
    name = await desk.label(label)
    with pytest.raises(FailedPrecondition):
        await desk.scenario(name)
    await desk.set_defect(name, v1.DefectStatus.DEFECT_STATUS_CONFIRMED, "lead", "true")
    (defect,) = await desk.defects()
    assert [m.role for m in defect.messages] == [Role.ROLE_USER, Role.ROLE_ASSISTANT]
    assert yaml.safe_load(await desk.scenario(name))["turns"] == [{"user": "promise me a refund"}]
    exported = [entry async for entry in desk.mesh.people.ExportLabels(v1.ExportLabelsRequest(latest_only=True))]
    assert [(e.label.evidence, e.user, e.model) for e in exported] == [
        ("within 30 days", "promise me a refund", "models/shop/versions/1")
    ]


async def test_bad_requests_say_what_is_wrong(desk: Desk) -> None:
    people = desk.mesh.people
    with pytest.raises(InvalidArgument, match="tester"):
        await desk.begin("", "everyday", "models/shop", "en")
    with pytest.raises(InvalidArgument, match="consent"):
        await people.CreateTestSession(
            v1.CreateTestSessionRequest(tester="ana", consent_version="9", task="everyday", model="models/shop")
        )
    with pytest.raises(NotFound):
        await desk.begin("ana", "everyday", "models/none", "en")
    with pytest.raises(NotFound):
        await desk.session("testSessions/00")
    with pytest.raises(InvalidArgument):
        await desk.session("sessions/1")
    with pytest.raises(InvalidArgument, match="page_token"):
        await people.ListTestSessions(v1.ListTestSessionsRequest(page_token="x"))
    with pytest.raises(NotFound):
        await desk.agreement("evaluations/none")
    assert (await desk.queue("ana")).open_count == 0
    assert "not enough labels" in (await desk.agreement("")).advice


async def test_pages_of_sessions_follow_each_other(desk: Desk) -> None:
    made = [(await desk.begin("ana", "everyday", "models/shop", "en")).name for _ in range(5)]
    seen, token = [], ""
    while True:
        page = await desk.mesh.people.ListTestSessions(v1.ListTestSessionsRequest(page_size=2, page_token=token))
        seen += [s.name for s in page.sessions]
        token = page.next_page_token
        if not token:
            break
    assert seen == made[::-1]


async def test_ten_testers_at_once_lose_nothing(desk: Desk, mesh: Mesh) -> None:
    async def tester(number: int) -> str:
        session = await desk.begin(f"tester-{number}", "everyday", "models/shop", "en")
        for words in ("hello", "and then?", "thanks"):
            turn = await talked(desk, session, words)
            for thumb in (v1.Thumb.THUMB_UP, v1.Thumb.THUMB_DOWN):
                await desk.label(v1.HumanLabel(subject=turn.name, author=session.tester, thumb=thumb))
        return session.name

    names = await asyncio.gather(*(tester(number) for number in range(10)))
    for number, name in enumerate(names):
        session = await desk.session(name)
        assert session.tester == f"tester-{number}"
        assert [t.user for t in session.turns] == ["hello", "and then?", "thanks"]
        assert shown.feedback(session) == ["Dislike"] * 3
    assert mesh.inference.most_at_once > 1


async def test_a_reply_that_fails_or_is_cut_off_is_kept_as_far_as_it_came(desk: Desk, mesh: Mesh) -> None:
    session = await desk.begin("ana", "everyday", "models/shop", "en")
    failed = await talked(desk, session, "busy")
    assert failed.status == "RESOURCE_EXHAUSTED"
    assert "太忙" in shown.reply_text(failed, "zh")
    reply = Reply()
    question = [Message(role=Role.ROLE_USER, content="slow")]
    task = asyncio.create_task(fetch(desk.mesh.inference, session.model, question, [], "s", reply))
    async with aclosing(ticking([task], 0.005)) as ticks:
        async for _ in ticks:
            if reply.text:
                break
    kept = await desk.record(session.name, reply.turn("slow", shown.ONE, ""))
    assert kept.status == "CANCELLED"
    assert kept.reply.content.startswith("word")
    for _ in range(200):
        if mesh.inference.cancelled:
            break
        await asyncio.sleep(0.01)
    assert mesh.inference.cancelled == 1


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        ("hang", "DEADLINE_EXCEEDED", "No sign of life"),
        ("die", "UNAVAILABLE", "can't be reached"),
        ("vanish", "DATA_LOSS", "broke off half-way"),
        ("huge", "OUT_OF_RANGE", "longer than any chat"),
    ],
)
async def test_a_reply_that_goes_wrong_is_kept_with_what_went_wrong(
    desk: Desk, mesh: Mesh, words: str, status: str, told: str
) -> None:
    session = await desk.begin("ana", "everyday", "models/shop", "en")
    reply, question = Reply(), [Message(role=Role.ROLE_USER, content=words)]
    await fetch(desk.mesh.inference, session.model, question, [], "s", reply, patience=1.0)
    kept = await desk.record(session.name, reply.turn(words, shown.ONE, ""))
    assert (kept.status, kept.finish_reason) == (status, "")
    assert kept.reply.content.startswith("x" * MAX_REPLY if words == "huge" else "Hello,")
    assert len(kept.reply.content) <= MAX_REPLY
    assert told in shown.reply_text(kept, "en")
    if words in ("hang", "huge"):  # nobody waits for the rest
        async with asyncio.timeout(20):
            while not mesh.inference.cancelled:  # noqa: ASYNC110 - the fake has no event for it
                await asyncio.sleep(0.01)


async def test_a_hidden_model_stays_hidden_where_its_defects_are_listed(desk: Desk) -> None:
    session = await desk.begin("ana", "promise-refund", "", "en")
    turn = await talked(desk, session, "promise me a refund")
    await desk.label(v1.HumanLabel(subject=turn.name, author="ana", error_classes=["invented_policy"]))
    (defect,) = await desk.defects()
    assert (defect.model, defect.revision) == ("", "")
    await desk.label(v1.HumanLabel(subject=session.name, author="ana", form=v1.EndForm(broke_it=True, sent=True)))
    assert {defect.model for defect in await desk.defects()} == {session.model}


async def test_scores_count_the_replies_that_people_fault(desk: Desk) -> None:
    session = await desk.begin("ana", "everyday", "models/shop", "en")
    first, second = await talked(desk, session, "hello"), await talked(desk, session, "and?")
    await desk.label(v1.HumanLabel(subject=first.name, author="ana", error_classes=["rude", "off_topic"]))
    await desk.label(v1.HumanLabel(subject=second.name, author="ana", thumb=v1.Thumb.THUMB_UP))
    (score,) = await desk.scores()
    assert (score.flagged_count, score.reply_count, dict(score.errors)) == (1, 2, {"rude": 1, "off_topic": 1})


async def test_the_card_that_a_recipe_left_is_shown(desk: Desk, mesh: Mesh) -> None:
    assert (await desk.guide("en")).agent_name == ""
    card = AgentCard("Mila", "Kettlemoor", "You are {name}.", policies=(Policy("p", "Free from 50 euros."),))
    agent.write(card, mesh.config.left_card, head="from a test")
    guide = await desk.guide("en")
    assert (guide.agent_name, guide.agent_company) == ("Mila", "Kettlemoor")
    assert list(guide.agent_policies) == ["Free from 50 euros."]


async def test_without_a_mesh_calls_say_so(tmp_path: Any) -> None:
    with pytest.raises(Unavailable, match="not running here"):
        await Desk(Stubs(local_config(tmp_path)), ()).guide("en")


def test_two_replies_are_shown_at_equal_pace() -> None:
    assert paced(["abcdef", "ab"], [False, False]) == ["ab", "ab"]
    assert paced(["abcdef", "ab"], [True, False]) == ["ab", "ab"]
    assert paced(["abcdef", "ab"], [True, True]) == ["abcdef", "ab"]
    assert paced(["", "ab"], [False, True]) == ["", ""]
