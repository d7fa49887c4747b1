from __future__ import annotations

import pytest

from chatmill.errors import FailedPrecondition, InvalidArgument, NotFound
from eval_svc.people import leaks
from eval_svc.people.convert import session_to_proto
from eval_svc.people.desk import Desk

from .conftest import ANA, said

PAIR = ("models/shop", "models/chatmill-tiny")


async def answered(desk: Desk, left: str = "one", right: str = "two") -> str:
    session = await desk.sessions.open_battle(ANA, *PAIR)
    desk.sessions.record(session.id, said("hello", left, side="left"))
    desk.sessions.record(session.id, said("hello", right, side="right"))
    return session.id


async def test_sides_are_drawn_by_lot(desk: Desk) -> None:
    left = {(await desk.sessions.open_battle(ANA, *PAIR)).opening.left.name for _ in range(40)}
    assert left == {"models/shop/versions/3", "models/chatmill-tiny/versions/3"}  # misses one with 2^-39


async def test_names_are_hidden_until_the_vote(desk: Desk) -> None:
    session = await answered(desk)
    before = session_to_proto(desk.sessions.get(session))
    assert "shop" not in str(before)
    assert "tiny" not in str(before)
    after = session_to_proto(desk.sessions.vote(session, "left", leaked=False, note="clearer"))
    assert {after.battle.left_model, after.battle.right_model} == {f"{name}/versions/3" for name in PAIR}


async def test_a_second_vote_is_not_blind_and_is_refused(desk: Desk) -> None:
    session = await answered(desk)
    desk.sessions.vote(session, "tie", leaked=False, note="")
    assert desk.sessions.vote(session, "tie", leaked=False, note="").vote is not None, "a retry is no second vote"
    with pytest.raises(FailedPrecondition, match="vote already"):
        desk.sessions.vote(session, "left", leaked=False, note="")
    with pytest.raises(FailedPrecondition, match="finished"):
        desk.sessions.record(session, said("more", "x", side="left"))


async def test_a_vote_takes_an_answer_of_both_sides(desk: Desk) -> None:
    session = await desk.sessions.open_battle(ANA, *PAIR)
    desk.sessions.record(session.id, said("hello", "one", side="left"))
    desk.sessions.record(session.id, said("hello", "", side="right", status="UNAVAILABLE"))
    with pytest.raises(FailedPrecondition, match="both sides"):
        desk.sessions.vote(session.id, "left", leaked=False, note="")


async def test_a_side_that_tells_its_name_voids_the_vote(desk: Desk) -> None:
    told = await answered(desk, left="I am Chatmill-Tiny.", right="I am chatmill-tiny")
    assert "said 'chatmill-tiny'" in desk.sessions.vote(told, "left", leaked=False, note="").vote.void_reason  # type: ignore[union-attr]
    seen = await answered(desk)
    assert "could tell" in desk.sessions.vote(seen, "left", leaked=True, note="").vote.void_reason  # type: ignore[union-attr]
    scores = {s.model.name: s.votes for s in desk.scores()}
    assert scores["models/shop/versions/3"] == {"void": 2}


async def test_only_comparisons_of_two_models_have_sides(desk: Desk) -> None:
    chat = await desk.sessions.open_chat(ANA, "models/shop", hidden=False)
    with pytest.raises(NotFound, match="no comparison"):
        desk.sessions.battle(chat.id)
    with pytest.raises(InvalidArgument, match="different versions"):
        await desk.sessions.open_battle(ANA, "models/shop", "models/shop/versions/3")


@pytest.mark.parametrize(
    ("model", "reply", "told"),
    [
        ("models/shop/versions/2", "Welcome to our shop!", ""),
        ("models/shop/versions/2", "I am models/shop/versions/2.", "models/shop/versions/2"),
        ("models/shop-v2/versions/1", "this is Shop-v2 speaking", "shop-v2"),
        ("models/shop-v2/versions/1", "the workshop-v20 is closed", ""),
        ("models/x/versions/1", "As Qwen, I can help", "qwen"),
        ("models/x/versions/1", "我是通义千问", "通义千问"),
        ("models/x/versions/1", "a llamas' farm", ""),
    ],
)
def test_only_words_that_point_to_a_model_are_a_leak(model: str, reply: str, told: str) -> None:
    assert leaks.identity(model, [reply]) == told


async def test_wins_losses_and_ties_are_counted_for_both(desk: Desk) -> None:
    for choice in ("left", "right", "tie", "both_bad"):
        desk.sessions.vote(await answered(desk), choice, leaked=False, note="")  # type: ignore[arg-type]
    first, second = desk.scores()
    assert first.votes["win"] + second.votes["win"] == 2
    assert first.votes["win"] == second.votes["loss"]
    assert first.votes["tie"] == second.votes["both_bad"] == 1
    assert first.win_rate is not None
    assert first.win_rate[1].low < first.win_rate[0] < first.win_rate[1].high or first.votes["win"] in (0, 2)
