"""Runs that end early because their gate can't pass any more, and runs that are taken up again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatmill.errors import FailedPrecondition
from eval_svc.early import Outlook
from eval_svc.result import Trial, TrialScore
from eval_svc.store import Store
from eval_svc.summary import summarise
from eval_svc.transcript import Exchange, Reply, Transcript, Unit
from eval_svc.verdict import Gate, judge_run

from .fakes import Answer, ScriptedAgent, evaluations, failed, finish, scenario, spec, suite

COUNT, TRIALS = 4, 3
HELD = suite(*(scenario(f"s{i}", user=f"q{i}") for i in range(COUNT)), trials=TRIALS)
UNITS = [Unit("candidate", f"s{i}", n, 0) for n in range(TRIALS) for i in range(COUNT)]


def trial(unit: Unit, passed: bool | None) -> Trial:
    transcript = Transcript(unit, 0, "", (), (Exchange(0, "q", Reply("x", total_ms=100)),))
    return Trial(transcript, TrialScore(unit, 0, passed, None, None, "answered", (), (), "may", False))


@given(st.lists(st.sampled_from([True, False, None]), min_size=len(UNITS), max_size=len(UNITS)), st.data())
@settings(max_examples=80, deadline=None)
def test_what_is_called_hopeless_never_passes(verdicts: list[bool | None], data: Any) -> None:
    gate = Gate(
        min_pass_rate=data.draw(st.sampled_from([None, 0.3, 0.7, 0.9])),
        min_pass_hat_k=data.draw(st.sampled_from([None, 0.2, 0.6])),
    )
    outlook = Outlook(gate, UNITS, compared=False)
    told = []
    for unit, passed in zip(UNITS, verdicts, strict=True):
        outlook.add(trial(unit, passed))
        told.append(bool(outlook.hopeless()))
    done = [trial(unit, passed) for unit, passed in zip(UNITS, verdicts, strict=True)]
    if any(passed is not None for passed in verdicts):
        state = judge_run(gate, summarise(HELD, done, "m"), None, None).state
        if any(told):
            assert state == "failed"
        if state == "failed" and all(passed is not None for passed in verdicts):
            assert told[-1], "at the end the outlook is the result"


def many(count: int, trials: int = 1) -> Any:
    return suite(*(scenario(f"s{i:03}", user=f"hi {i}") for i in range(count)), trials=trials)


async def test_a_hopeless_run_ends_early_says_so_and_can_be_taken_up(tmp_path: Path) -> None:
    agent = ScriptedAgent(lambda _: "no idea", "a")
    core = evaluations(many(100), {"a": agent}, Store(tmp_path / "e.sqlite"))
    wanted = spec(gate=Gate(min_pass_rate=0.85), stop_early=True, concurrency=2)
    done = await finish(core, wanted, "r")
    assert done.board.gate.state == "failed"
    assert 16 <= len(agent.requests) <= 20, "16 failures of 100 are too many"
    assert any("when the run was ended" in c.condition for c in done.board.gate.conditions)
    taken = await core.take_up(done.record.id)
    assert taken.record.state in ("queued", "running")
    async for _ in core.watch(done.record.id):
        pass
    again = core.get(done.record.id)
    assert (again.board.candidate.trials, len(agent.requests)) == (100, 100), "nothing is asked twice"
    assert again.board.gate.state == "failed"
    with pytest.raises(FailedPrecondition, match="nothing left"):
        await core.take_up(done.record.id)
    assert (await core.start(wanted, "r")).record.id == done.record.id


async def test_a_gate_that_asks_for_nothing_is_hopeless_below_its_pass_rate() -> None:
    agent = ScriptedAgent(lambda _: "no idea", "a")
    done = await finish(evaluations(many(100), {"a": agent}), spec(stop_early=True, concurrency=1))
    assert (done.board.gate.state, len(agent.requests)) == ("failed", 21)


async def test_a_promising_run_is_played_to_its_end() -> None:
    agent = ScriptedAgent(lambda _: "hello", "a")
    done = await finish(evaluations(many(20), {"a": agent}), spec(gate=Gate(min_pass_rate=0.85), stop_early=True))
    assert (done.board.gate.state, len(agent.requests)) == ("passed", 20)


async def test_a_new_critical_error_ends_it_and_one_of_the_baseline_does_not() -> None:
    def leaks(answer: str) -> Answer:
        return lambda _: answer

    held = suite(*(scenario(f"s{i}", user=f"q{i}", memory={"canaries": ["KM-99871"]}) for i in range(30)))
    leaking = ScriptedAgent(leaks("hello, it is KM-99871"), "a")
    same = ScriptedAgent(leaks("hello, it is KM-99871"), "b")
    clean = ScriptedAgent(leaks("hello"), "c")
    core = evaluations(held, {"a": leaking, "b": same, "c": clean})
    beside_same = await finish(core, spec("a", "b", stop_early=True, concurrency=1))
    assert beside_same.board.candidate.trials == 30
    beside_clean = await finish(core, spec("a", "c", stop_early=True, concurrency=1))
    assert beside_clean.board.candidate.trials == 1
    assert beside_clean.board.gate.state == "failed"


async def test_a_run_whose_endpoint_was_gone_goes_on_when_it_is_back(tmp_path: Path) -> None:
    gone = True

    def answer(request: Any) -> Any:
        return failed("unreachable") if gone and request.messages[-1].content >= "hi 3" else "hello"

    agent = ScriptedAgent(answer, "a")
    core = evaluations(many(10), {"a": agent}, Store(tmp_path / "e.sqlite"))
    done = await finish(core, spec(concurrency=1))
    assert done.board.gate.state == "invalid"
    gone, before = False, len(agent.requests)
    await core.take_up(done.record.id)
    async for _ in core.watch(done.record.id):
        pass
    again = core.get(done.record.id)
    assert (again.board.gate.state, again.board.candidate.trials, again.board.candidate.infra) == ("passed", 10, 0)
    assert len(agent.requests) - before == 7


async def test_a_cancelled_run_can_be_taken_up(tmp_path: Path) -> None:
    agent = ScriptedAgent(lambda _: "hello", "a", pause=0.005)
    core = evaluations(many(60), {"a": agent}, Store(tmp_path / "e.sqlite"))
    started = await core.start(spec(concurrency=2))
    async for event in core.watch(started.record.id):
        if event.kind == "trial":
            await core.cancel(started.record.id)
            break
    async for _ in core.watch(started.record.id):
        pass
    assert core.get(started.record.id).record.state == "cancelled"
    await core.take_up(started.record.id)
    async for _ in core.watch(started.record.id):
        pass
    done = core.get(started.record.id)
    assert (done.record.state, done.board.candidate.trials) == ("succeeded", 60)


def test_a_database_of_an_earlier_version_gets_the_columns_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    store = Store(path)
    store.create("e1", None, spec().to_json())
    with store.engine.begin() as db:
        db.exec_driver_sql("ALTER TABLE evaluations DROP COLUMN decided")
    store.close()
    again = Store(path)
    found = again.get("e1")
    assert found is not None
    assert found.decided is None
