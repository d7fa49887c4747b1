from __future__ import annotations

from dataclasses import replace

import pytest

from chatmill.errors import NotFound
from eval_svc.people.desk import Desk
from eval_svc.people.queue import lot
from eval_svc.people.records import EndForm, Label

from .conftest import ANA, Evaluate, check, said

PASS, FAIL = [check("pass")], [check("fail")]
CRITICAL = [check("fail", severity="critical")]
SPLIT = [check("pass", type_="judge", votes=("yes", "no", "yes"))]


def test_critical_failures_and_split_judgements_are_all_asked_about_and_come_first(
    desk: Desk, evaluate: Evaluate
) -> None:
    evaluate("e1", {"a": [PASS] * 40, "b": [FAIL] * 20, "c": [CRITICAL] * 3, "d": [SPLIT] * 4})
    items, waiting, done = desk.queue.open("ana", "e1", 100)
    strata = [item.stratum for item in items]
    assert strata == sorted(strata, key=["critical", "judge_split", "fail", "pass"].index)
    assert (strata.count("critical"), strata.count("judge_split")) == (3, 4)
    assert 4 <= strata.count("fail") <= 16
    assert 2 <= strata.count("pass") <= 16
    assert (waiting, done) == (len(items), 0)
    assert items[0].policies == ("30 days.",)
    assert items[0].facts == ("Customer: Ana.",)
    assert [m.content for m in items[0].messages] == ["ask c", "about c"]
    with pytest.raises(NotFound):
        desk.queue.open("ana", "e2", 10)


def test_an_item_is_asked_once_or_of_two_people_and_never_twice_of_one(desk: Desk, evaluate: Evaluate) -> None:
    evaluate("e1", {"c": [CRITICAL] * 20})
    before, _, _ = desk.queue.open("ana", "e1", 100)
    assert len(before) == 20
    assert 1 <= sum(item.double for item in before) <= 10
    for item in before:
        desk.label(Label(item.name, "ana", verdict="fail"), "")
    assert desk.queue.open("ana", "e1", 100) == ([], 0, 20)
    again, _, _ = desk.queue.open("bo", "e1", 100)
    assert {item.name for item in again} == {item.name for item in before if item.double}
    for item in again:
        desk.label(Label(item.name, "bo", verdict="fail"), "")
    assert desk.queue.open("cy", "e1", 100)[1] == 0


async def test_some_finished_conversations_want_a_second_person(desk: Desk) -> None:
    for _ in range(30):
        session = await desk.sessions.open_chat(ANA, "models/shop", hidden=False)
        desk.sessions.record(session.id, said("hi", "ho"))
        desk.label(Label(session.name, "ana", form=EndForm(goal_met="yes", broke_it=False, sent=True)), "")
    assert desk.queue.open("ana", "", 100)[0] == [], "nobody is asked twice about their own"
    asked, _, _ = desk.queue.open("bo", "", 100)
    assert {item.stratum for item in asked} == {"second_opinion"}
    assert 1 <= len(asked) <= 14
    for number, item in enumerate(asked):
        desk.label(Label(item.name, "bo", verdict="pass" if number else "fail"), "")
    found = desk.insights.agreement()
    assert (found.human_human.items, found.human_human.counts[1]) == (len(asked), 1)


def test_the_lot_is_fair_and_the_same_everywhere() -> None:
    drawn = [lot(f"evaluations/e/trials/candidate~s{i}~0~0", "queue") for i in range(2000)]
    assert 0.17 < sum(x < 0.2 for x in drawn) / 2000 < 0.23
    assert lot("x", "queue") == lot("x", "queue") != lot("x", "double")


def test_the_machine_beside_people(desk: Desk, evaluate: Evaluate) -> None:
    judge_pass = [check("pass", type_="judge", votes=("yes", "yes", "yes"))]
    judge_fail = [check("fail", type_="judge", votes=("no", "no", "no"))]
    evaluate("e1", {"a": [judge_pass] * 30, "b": [judge_fail] * 30, "c": [PASS] * 5})
    items, _, _ = desk.queue.open("ana", "e1", 100)
    for item in items:
        wrong = item.name.endswith("a~0~0") or item.name.endswith("b~1~0")
        machine = "~a~" in item.name or "~c~" in item.name
        desk.label(Label(item.name, "ana", verdict="pass" if machine != wrong else "fail"), "")
    found = desk.insights.agreement("e1")
    assert found.machine_human.items == len(items)
    assert found.judge_human.items == sum("~c~" not in item.name for item in items)
    assert found.machine.rate is None
    assert "still missing" in found.machine.note
    assert found.judge.note == "asked of no evaluation"
    assert desk.insights.agreement().machine.note == "asked of no evaluation"


async def test_people_and_machine_stand_side_by_side(desk: Desk) -> None:
    session = await desk.sessions.open_chat(ANA, "models/shop", hidden=False)
    _, turn = desk.sessions.record(session.id, said("hi", "ho"))
    desk.label(Label(session.turn_name(turn), "ana", thumb="down", error_classes=("rude", "off_topic")), "")
    form = EndForm(goal_met="no", broke_it=False, correct=2, sent=True)
    desk.label(Label(session.name, "ana", form=form), "")
    other = await desk.sessions.open_chat(replace(ANA, task="promise-refund"), "models/shop", hidden=False)
    desk.label(Label(other.name, "ana", form=EndForm(goal_met="yes", broke_it=True, sent=True)), "")
    (score,) = desk.scores()
    assert (score.sessions, score.finished, score.replies) == (2, 2, 1)
    assert score.thumbs == {"down": 1}
    assert score.errors == {"rude": 1, "off_topic": 1}
    assert score.verdicts["fail"] == 1, "attempts to break it are no ordinary use"
    assert score.pass_rate is not None
    assert score.pass_rate[0] == 0.0
    assert score.defects == 1
    assert score.mean("correct") == 2
    assert score.machine_rate is None
