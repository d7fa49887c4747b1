"""The judge as a model: what it has said is not asked again, and one that is busy is waited for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from eval_svc.evaluations import Evaluations
from eval_svc.spec import JudgeSpec, TargetSpec
from eval_svc.store import Store
from eval_svc.target import TurnRequest
from eval_svc.transcript import Failure, Reply

from .fakes import Fixed, ScriptedAgent, evaluations, failed, finish, said, scenario, spec, suite

YES, NO = '{"verdict": "yes"}', '{"verdict": "no"}'
JUDGED = spec(judge=JudgeSpec(TargetSpec("models/j"), gates=True))


def judged(*asks: str, scenarios: int = 4) -> Any:
    """Scenarios that are judged at their end, and that differ in what is said."""
    final = {"judge": [{"ask": ask} for ask in asks]}
    return suite(*(scenario(f"s{i}", user=f"hi {i}", final=final) for i in range(scenarios)))


def judge(answer: Any = YES) -> ScriptedAgent:
    return ScriptedAgent(answer if callable(answer) else lambda _: answer, "j")


def asked(agent: ScriptedAgent) -> list[tuple[str, int]]:
    return [(r.messages[0].content, r.seed) for r in agent.requests]


def core_of(held: Any, agent: ScriptedAgent, store: Store | None = None) -> Evaluations:
    return evaluations(held, {"a": ScriptedAgent(lambda _: "hello", "a"), "j": agent}, store)


async def test_scoring_again_asks_only_what_is_new() -> None:
    agent = judge()
    core = core_of(judged("Is it polite?"), agent)
    done = await finish(core, JUDGED)
    assert done.board.candidate.pass_rate == 1.0
    assert len(agent.requests) == 4 * 3
    again, changed = await core.rescore(done.record.id)
    assert (again.board.candidate.pass_rate, changed, len(agent.requests)) == (1.0, 0, 12)
    core.suites = Fixed(judged("Is it polite?", "Is it short?"))
    agent.answer = lambda _: NO
    again, changed = await core.rescore(done.record.id)
    assert (again.board.candidate.pass_rate, changed) == (0.0, 4)
    assert len(agent.requests) == 24
    assert all("Is it short?" in prompt for prompt, _ in asked(agent)[12:])


async def test_a_run_that_is_taken_up_pays_no_answer_twice(tmp_path: Path) -> None:
    stopping = asyncio.Event()
    answered: set[tuple[str, int]] = set()

    def answer(request: TurnRequest) -> str:
        answered.add((request.messages[0].content, request.seed))
        if len(answered) == 8:
            stopping.set()
        return YES

    first, second = judge(answer), judge()
    first.pause = 0.01
    store = Store(tmp_path / "eval.sqlite")
    core = core_of(judged("Is it polite?", scenarios=6), first, store)
    started = await core.start(JUDGED)
    await stopping.wait()
    await core.close()
    assert core.get(started.record.id).record.state == "running"
    later = core_of(judged("Is it polite?", scenarios=6), second, store)
    assert await later.resume() == 1
    async for _ in later.watch(started.record.id):
        pass
    board = later.get(started.record.id).board
    assert board is not None
    assert (board.candidate.pass_rate, board.candidate.unscored) == (1.0, 0)
    assert not answered & set(asked(second)), "an answer that was there was paid for again"
    assert len(answered) + len(asked(second)) == 6 * 3


async def test_a_busy_judge_is_asked_again_and_a_broken_one_is_not() -> None:
    busy = Reply(failure=Failure("rate_limited", "HTTP 429", "slow down", 0.001))
    waiting = [busy, busy, said(YES)]
    agent = judge(lambda _: waiting.pop(0) if waiting else said(YES))
    done = await finish(core_of(judged("Is it polite?", scenarios=1), agent), JUDGED)
    assert (done.board.candidate.unscored, len(agent.requests)) == (0, 5)
    broken = judge(lambda _: failed("stream_broken"))
    done = await finish(core_of(judged("Is it polite?", scenarios=1), broken), JUDGED)
    assert (done.board.candidate.unscored, len(broken.requests)) == (1, 1)
