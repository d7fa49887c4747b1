"""A scripted agent that answers by rules, and what tests build around it."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chatmill.errors import NotFound
from eval_svc.dialogue import Play
from eval_svc.evaluations import Evaluations
from eval_svc.execution import Tools
from eval_svc.ports import ModelScore
from eval_svc.scenario_file import scenario_from_mapping
from eval_svc.spec import Spec, TargetSpec
from eval_svc.store import Store
from eval_svc.suite import Suite, SuiteLibrary
from eval_svc.target import Target, TargetInfo, TurnRequest
from eval_svc.transcript import HANDOVER_TOOL, Failure, Reply, ToolCall

_NUMBERS = itertools.count()
Answer = Callable[[TurnRequest], Reply | str]


def said(text: str, **more: Any) -> Reply:
    """A complete reply."""
    return Reply(text=text, finish_reason="stop", first_token_ms=20, total_ms=50, tokens_in=40, tokens_out=9, **more)


def handover(reason: str = "complaint", text: str = "") -> Reply:
    """A reply that passes the customer on."""
    call = ToolCall(HANDOVER_TOOL, {"reason": reason})
    return Reply(text, (call,), reason, "tool_calls", first_token_ms=20, total_ms=50, tokens_in=40, tokens_out=9)


def failed(kind: Any, status: str = "UNAVAILABLE", text: str = "") -> Reply:
    """A reply that did not come through."""
    return Reply(text=text, total_ms=50, failure=Failure(kind, status, "scripted"))


@dataclass
class ScriptedAgent:
    """Answers by a function, and keeps every request."""

    answer: Answer
    name: str = field(default_factory=lambda: f"scripted-{next(_NUMBERS)}")
    requests: list[TurnRequest] = field(default_factory=list)
    pause: float = 0.0
    most_at_once: int = 0
    _now: int = 0

    async def describe(self) -> TargetInfo:
        return TargetInfo(self.name, f"models/{self.name}/versions/1", "rev", "test")

    async def reply(self, request: TurnRequest) -> Reply:
        self.requests.append(request)
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            await asyncio.sleep(self.pause)
            found = self.answer(request)
        finally:
            self._now -= 1
        return said(found) if isinstance(found, str) else found


@dataclass
class Agents:
    """Targets by model name."""

    by_name: dict[str, Target]

    def target(self, spec: TargetSpec) -> Target:
        name = spec.model.removeprefix("models/").split("/")[0]
        if name not in self.by_name:
            raise NotFound(f"no model {spec.model}")
        return self.by_name[name]


@dataclass
class Scores:
    """Scores that were written back."""

    written: list[tuple[str, ModelScore]] = field(default_factory=list)

    async def record(self, model: str, score: ModelScore) -> None:
        self.written.append((model, score))


def scenario(name: str, user: str = "hi", value: str = "hello", **more: Any) -> dict[str, Any]:
    """A scenario of one turn as a mapping."""
    turn = {"user": user, "expect": [{"type": "contains_any", "value": [value]}]}
    return {"schema": 1, "id": name, "kind": "happy", "turns": [turn], **more}


def suite(*raw: Mapping[str, Any], trials: int = 1) -> Suite:
    """A suite of mappings."""
    return Suite("test", "1", tuple(scenario_from_mapping(r, str(r.get("id"))) for r in raw), "Test", trials=trials)


class Fixed(SuiteLibrary):
    """A library that holds one suite."""

    def __init__(self, held: Suite) -> None:
        super().__init__(())
        object.__setattr__(self, "held", held)

    def find(self, name: str) -> Suite:
        held: Suite = self.held  # type: ignore[attr-defined]
        return held


def evaluations(held: Suite, agents: Mapping[str, Target], store: Store | None = None, **tools: Any) -> Evaluations:
    """A service core on a memory database."""
    play = Play(retries=1, backoff_s=0.0)
    # a run asks for the version that a name stood for, so every agent goes by its own name too
    agents = {**agents, **{getattr(a, "name", name): a for name, a in agents.items()}}
    return Evaluations(store or Store("sqlite://"), Fixed(held), None, Tools(Agents(dict(agents)), play=play, **tools))


def spec(candidate: str = "a", baseline: str | None = None, **more: Any) -> Spec:
    """A spec for models by name."""
    other = TargetSpec(f"models/{baseline}") if baseline else None
    return Spec(TargetSpec(f"models/{candidate}"), suite="suites/test", baseline=other, **more)


async def finish(core: Evaluations, wanted: Spec, request_id: str = "") -> Any:
    """Run to the end and give the evaluation."""
    started = await core.start(wanted, request_id)
    async for _ in core.watch(started.record.id):
        pass
    return core.get(started.record.id)


def flaky(chance: float, seed: int, right: str = "hello", wrong: str = "bye") -> Answer:
    """Right with that chance, independent of the request's seed."""
    rng = random.Random(seed)
    return lambda _: right if rng.random() < chance else wrong


def in_turn(answers: Sequence[Reply | str]) -> Answer:
    """The answers one after the other, by how many customer turns there have been."""
    return lambda request: answers[sum(1 for m in request.messages if m.role == "user") - 1]
