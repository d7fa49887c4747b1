"""The whole service core with a scripted agent: run, compare, cancel, resume, rescore, infra."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from chatmill.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from eval_svc.evaluations import Evaluations
from eval_svc.spec import TargetSpec
from eval_svc.store import Store
from eval_svc.verdict import Gate

from .fakes import (
    Scores,
    ScriptedAgent,
    evaluations,
    failed,
    finish,
    handover,
    in_turn,
    scenario,
    spec,
    suite,
)

GOOD = ScriptedAgent(lambda _: "hello there", "good")
BAD = ScriptedAgent(lambda _: "no idea", "bad")


def many(count: int, **more: Any) -> Any:
    return suite(*(scenario(f"s{i:03}", user=f"hi {i}", **more) for i in range(count)))


async def test_candidate_beside_baseline() -> None:
    scores = Scores()
    core = evaluations(many(40), {"a": GOOD, "b": BAD}, scores=scores)
    done = await finish(core, spec("a", "b", trials=3, gate=Gate(min_pass_rate=0.9)))
    board = done.board
    assert done.record.state == "succeeded"
    assert (board.candidate.pass_rate, board.baseline.pass_rate) == (1.0, 0.0)
    assert board.candidate.pass_hat_k == (1.0, 1.0, 1.0)
    assert board.candidate.trials == 120
    assert board.comparison.verdict == "better"
    assert board.comparison.p_value < 1e-6
    assert len(board.comparison.fixed) == 40
    assert board.gate.state == "passed"
    assert board.gate.exit_code == 0
    assert [model for model, _ in scores.written] == ["models/good/versions/1"]
    assert scores.written[0][1].verdict == "better"


async def test_a_worse_candidate_fails_the_gate() -> None:
    core = evaluations(many(40), {"a": BAD, "b": GOOD})
    board = (await finish(core, spec("a", "b"))).board
    assert board.comparison.verdict == "worse"
    assert board.gate.state == "failed"
    assert board.gate.exit_code == 1
    assert [c.condition for c in board.gate.conditions if not c.passed] == ["candidate - baseline surely above -5%"]


async def test_both_sides_meet_the_same_seeds_and_prompts() -> None:
    left, right = ScriptedAgent(lambda _: "hello"), ScriptedAgent(lambda _: "hello")
    core = evaluations(many(5), {"a": left, "b": right})
    await finish(core, spec("a", "b", trials=2, system_prompt="Be kind.", seed=7))

    def seen(agent: ScriptedAgent) -> set[tuple[Any, ...]]:
        return {(r.messages, r.seed, r.system) for r in agent.requests}

    assert seen(left) == seen(right)
    assert len({r.seed for r in left.requests}) == 10
    other = ScriptedAgent(lambda _: "hello")
    await finish(evaluations(many(5), {"a": other}), spec("a", trials=2, system_prompt="Be kind.", seed=8))
    assert not {r.seed for r in other.requests} & {r.seed for r in left.requests}


async def test_memory_reaches_the_agent_as_facts() -> None:
    agent = ScriptedAgent(lambda _: "hello")
    held = suite(scenario("s", memory={"profile": {"order": "A-77"}, "facts": ["Likes tea."]}))
    await finish(evaluations(held, {"a": agent}), spec(system_prompt="You are Mila."))
    assert agent.requests[0].prompt == "You are Mila.\norder: A-77 Likes tea."


async def test_concurrency_is_bounded_and_used() -> None:
    agent = ScriptedAgent(lambda _: "hello", pause=0.01)
    await finish(evaluations(many(30), {"a": agent}), spec(concurrency=6))
    assert agent.most_at_once == 6


async def test_events_count_up_without_gaps_and_replay() -> None:
    core = evaluations(many(3), {"a": GOOD})
    started = await core.start(spec())
    first = [event async for event in core.watch(started.record.id)]
    assert [event.sequence for event in first] == list(range(1, len(first) + 1))
    assert [event.kind for event in first if event.kind != "progress"] == [
        "state",
        "state",
        "trial",
        "trial",
        "trial",
        "state",
        "finished",
    ]
    again = [event async for event in core.watch(started.record.id, after=4)]
    assert [event.sequence for event in again] == list(range(5, len(first) + 1))
    last = [event for event in first if event.kind == "progress"][-1]
    assert (last.payload["done"], last.payload["total"], last.payload["passed"]) == (3, 3, 3)


class SlowToLoad:
    """An embedder that says whether its model is there."""

    def __init__(self) -> None:
        self.loaded = False

    def __call__(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        self.loaded = True
        return [[1.0] for _ in texts]


async def test_that_the_sentence_model_is_loading_is_told_before_the_first_dialogue_and_once() -> None:
    semantic = [{"user": "hi", "expect": [{"type": "semantic", "value": "hello"}]}]
    held = suite(scenario("s"), {**scenario("m"), "turns": semantic})
    core = evaluations(held, {"a": GOOD}, embedder=SlowToLoad())

    async def notes(core: Evaluations) -> list[str]:
        events = [e async for e in core.watch((await core.start(spec())).record.id)]
        first = next(i for i, e in enumerate(events) if e.kind == "trial")
        assert not [e for e in events[first:] if e.kind == "warning"]
        return [e.payload["text"] for e in events if e.kind == "warning"]

    (told,) = await notes(core)
    assert "loading" in told
    assert not await notes(core), "it is there now"
    assert not await notes(evaluations(many(1), {"a": GOOD}, embedder=SlowToLoad())), "nothing needs it"


async def test_infrastructure_is_not_the_agents_error() -> None:
    def answer(request: Any) -> Any:
        return failed("unreachable") if request.messages[-1].content == "hi 0" else "hello"

    agent = ScriptedAgent(answer)
    board = (await finish(evaluations(many(40), {"a": agent}), spec())).board
    assert (board.candidate.infra, board.candidate.pass_rate, board.candidate.trials) == (1, 1.0, 39)
    assert board.gate.state == "passed"
    assert sum(1 for r in agent.requests if r.messages[-1].content == "hi 0") == 2, "one retry"


async def test_too_much_infrastructure_makes_a_run_invalid_and_ends_it_early() -> None:
    agent = ScriptedAgent(lambda _: failed("unreachable"))
    done = await finish(evaluations(many(100), {"a": agent}), spec(concurrency=2))
    assert done.board.gate.state == "invalid"
    assert done.board.gate.exit_code == 2
    assert "lost to infrastructure" in done.record.incomplete
    assert len(agent.requests) < 40


async def test_a_timeout_is_the_agents_error() -> None:
    agent = ScriptedAgent(lambda _: failed("timeout", "DEADLINE_EXCEEDED", "hello, your"))
    board = (await finish(evaluations(many(6), {"a": agent}), spec())).board
    assert (board.candidate.infra, board.candidate.pass_rate) == (0, 0.0)
    assert board.candidate.errors == {"timeout": 6}
    assert board.gate.state == "failed"
    assert [c.condition for c in board.gate.conditions if not c.passed] == [
        "pass rate >= 80% (asked where nothing else is)"
    ]


async def test_an_agent_that_never_comes_back_is_cut_off() -> None:
    agent = ScriptedAgent(lambda _: "hello", pause=3600)
    core = evaluations(many(1), {"a": agent})
    started = await core.start(spec(turn_timeout_s=0.1))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(_drain(core, started.record.id), 1)
    await core.cancel(started.record.id)
    await _drain(core, started.record.id)
    assert core.get(started.record.id).record.state == "cancelled"


async def _drain(core: Any, evaluation: str) -> None:
    async for _ in core.watch(evaluation):
        pass


async def test_cancel_keeps_what_it_has() -> None:
    agent = ScriptedAgent(lambda _: "hello", pause=0.01)
    core = evaluations(many(200), {"a": agent})
    started = await core.start(spec(concurrency=2))
    async for event in core.watch(started.record.id):
        if event.kind == "trial":
            await core.cancel(started.record.id)
            break
    await _drain(core, started.record.id)
    done = core.get(started.record.id)
    assert done.record.state == "cancelled"
    assert done.board.gate.state == "invalid"
    assert 0 < done.board.candidate.trials < 200
    with pytest.raises(FailedPrecondition, match="has ended"):
        await core.cancel(started.record.id)


async def test_the_same_request_id_gives_the_same_evaluation() -> None:
    core = evaluations(many(3), {"a": GOOD})
    first = await finish(core, spec(), "r-1")
    again = await core.start(spec(), "r-1")
    assert again.record.id == first.record.id
    with pytest.raises(InvalidArgument, match="another spec"):
        await core.start(spec(seed=5), "r-1")


async def test_a_suspended_run_goes_on_without_repeating_a_call(tmp_path: Path) -> None:
    path = tmp_path / "eval.sqlite"
    agent = ScriptedAgent(lambda r: f"hello {r.messages[-1].content}", "a", pause=0.002)
    held = suite(*(_two_turns(f"s{i}") for i in range(20)))
    core = evaluations(held, {"a": agent}, Store(path))
    started = await core.start(spec(trials=2, concurrency=3))
    async for event in core.watch(started.record.id):
        if event.kind == "trial" and event.sequence > 12:
            break
    await core.close()
    answered = {(r.conversation, len(r.messages)) for r in agent.requests}
    assert core.get(started.record.id).record.state == "running"

    later = ScriptedAgent(lambda r: f"hello {r.messages[-1].content}", "a")
    second = evaluations(held, {"a": later}, Store(path))
    kept = {(u, i) for u, turns in second.store.turns(started.record.id).items() for i in turns}
    assert await second.resume() == 1
    await _drain(second, started.record.id)
    done = second.get(started.record.id)
    assert done.board.candidate.trials == 40
    assert done.board.candidate.pass_rate == 1.0
    assert len(later.requests) == 80 - len(kept)
    assert len(answered) - len(kept) <= 3, "only calls in flight may be asked again"
    events = [e.sequence for e in second.store.events(started.record.id, 0)]
    assert events == list(range(1, len(events) + 1))


def _two_turns(name: str) -> dict[str, Any]:
    expect = [{"type": "contains_any", "value": "hello"}]
    return {
        "schema": 1,
        "id": name,
        "kind": "happy",
        "turns": [{"user": "one", "expect": expect}, {"user": "two", "expect": expect}],
    }


async def test_watching_ends_with_unavailable_when_the_service_stops() -> None:
    agent = ScriptedAgent(lambda _: "hello", pause=0.05)
    core = evaluations(many(50), {"a": agent})
    started = await core.start(spec(concurrency=1))

    async def watch() -> None:
        await _drain(core, started.record.id)

    watcher = asyncio.create_task(watch())
    await asyncio.sleep(0)
    await core.close()
    with pytest.raises(Unavailable, match="watch again from sequence"):
        await asyncio.wait_for(watcher, 5)
    with pytest.raises(Unavailable):
        await core.start(spec())


async def test_rescore_uses_the_suite_as_it_is_now() -> None:
    core = evaluations(many(10), {"a": GOOD})
    done = await finish(core, spec())
    assert done.board.candidate.pass_rate == 1.0
    calls = len(GOOD.requests)
    object.__setattr__(core.suites, "held", many(10, value="goodbye"))
    rescored, changed = await core.rescore(done.record.id)
    assert changed == 10
    assert rescored.board.candidate.pass_rate == 0.0
    assert rescored.record.suite_digest != done.record.suite_digest
    assert len(GOOD.requests) == calls
    object.__setattr__(core.suites, "held", suite(scenario("s000", user="another question")))
    with pytest.raises(FailedPrecondition, match="other turns"):
        await core.rescore(done.record.id)


async def test_two_evaluations_compare_only_over_the_same_suite() -> None:
    core = evaluations(many(12), {"a": GOOD, "b": BAD})
    left, right = await finish(core, spec("a")), await finish(core, spec("b"))
    comparison, _, _ = core.compare(left.record.id, right.record.id)
    assert comparison.difference == 1.0
    object.__setattr__(core.suites, "held", many(13))
    other = await finish(core, spec("b"))
    with pytest.raises(FailedPrecondition, match="same suite"):
        core.compare(left.record.id, other.record.id)


async def test_wrong_requests_are_refused_before_anything_is_kept() -> None:
    core = evaluations(many(2), {"a": GOOD})
    with pytest.raises(NotFound):
        await core.start(spec("nobody"))
    with pytest.raises(InvalidArgument, match=r"spec\.trials"):
        await core.start(spec(trials=0))
    with pytest.raises(NotFound, match="ListEvaluations"):
        core.get("nothing")
    assert core.newest(10, None, None) == []


async def test_variants_show_robustness_and_stay_out_of_the_pass_rate() -> None:
    raw = scenario("s")
    raw["turns"][0]["variants"] = ["hey you", "yo"]
    agent = ScriptedAgent(lambda r: "hello" if r.messages[-1].content != "yo" else "what?")
    board = (await finish(evaluations(suite(raw), {"a": agent}), spec(trials=2))).board
    assert (board.candidate.pass_rate, board.candidate.trials, board.candidate.robustness) == (1.0, 2, 0.5)
    assert len(agent.requests) == 4


async def test_a_handover_ends_the_dialogue_and_counts_both_ways() -> None:
    complaint = _two_turns("must") | {"final": {"outcome": ["handoff"]}}
    complaint["turns"][0].pop("expect")
    complaint["turns"][1].pop("expect")
    held = suite(complaint, _two_turns("must-not"))
    escalating = ScriptedAgent(lambda _: handover("complaint", "hello, a colleague takes over"))
    board = (await finish(evaluations(held, {"a": escalating}), spec())).board
    assert len(escalating.requests) == 2
    handovers = board.candidate.handovers
    assert (handovers.expected, handovers.missed, handovers.unexpected, handovers.needless) == (1, 0, 1, 1)
    assert board.candidate.errors == {"needless_handoff": 1}
    assert board.candidate.pass_rate == 0.5
    never = ScriptedAgent(lambda _: "hello")
    board = (await finish(evaluations(held, {"a": never}), spec())).board
    assert board.candidate.errors == {"missed_handoff": 1}


async def test_a_played_customer_informs_and_does_not_decide() -> None:
    played = {"schema": 1, "id": "sim", "kind": "simulated", "goal": "Learn the return period.", "max_turns": 4}
    held = suite(scenario("s"), played)
    customer = ScriptedAgent(in_turn(["Hi, how long can I return it?", "And what does it cost?", "[END]"]), "customer")
    agent = ScriptedAgent(lambda r: "hello" if r.messages[-1].content == "hi" else "I don't know <|end|>")
    board = (await finish(evaluations(held, {"a": agent, "c": customer}), spec(customer=TargetSpec("models/c")))).board
    assert (board.candidate.trials, board.candidate.pass_rate) == (1, 1.0)
    assert [r.messages[-1].content for r in agent.requests if len(r.messages) > 1] == ["And what does it cost?"]
    assert "Learn the return period" in customer.requests[0].system
    alone = ScriptedAgent(lambda _: "hello")
    await finish(evaluations(held, {"a": alone}), spec())
    assert len(alone.requests) == 1, "nobody plays the customer"


async def test_what_the_played_customer_said_is_kept_before_the_agent_hears_it() -> None:
    held = suite(scenario("s"), {"schema": 1, "id": "sim", "kind": "simulated", "goal": "Learn it.", "max_turns": 4})
    customer = ScriptedAgent(in_turn(["Hello?", "How long?", "[END]"]), "c")
    gone = True

    def answer(request: Any) -> Any:
        return failed("unreachable") if gone and request.messages[-1].content == "How long?" else "hello"

    core = evaluations(held, {"a": ScriptedAgent(answer, "a"), "c": customer})
    done = await finish(core, spec(customer=TargetSpec("models/c")))
    assert len(customer.requests) == 2
    gone = False
    await core.take_up(done.record.id)
    async for _ in core.watch(done.record.id):
        pass
    assert [len(r.messages) for r in customer.requests] == [1, 3, 5], "the question that stood is not asked for again"


async def test_a_judge_that_is_judged_is_refused() -> None:
    from eval_svc.spec import JudgeSpec

    core = evaluations(many(1), {"a": GOOD})
    with pytest.raises(InvalidArgument, match="allow_self"):
        await core.start(spec("a", judge=JudgeSpec(TargetSpec("models/a"))))
