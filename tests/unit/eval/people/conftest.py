"""A desk over a store of its own, and machine-scored trials to judge."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chatmill.errors import NotFound
from eval_svc.execution import settle
from eval_svc.people import guide
from eval_svc.people.desk import Desk
from eval_svc.people.records import Model, Turn
from eval_svc.people.sessions import Request
from eval_svc.result import CheckResult, Trial, TrialScore, TurnScore
from eval_svc.scenario_file import scenario_from_mapping
from eval_svc.spec import Spec, TargetSpec
from eval_svc.store import Store
from eval_svc.suite import Suite
from eval_svc.transcript import Exchange, Reply, Transcript, Unit

ANA = Request("ana", "1", "everyday", language="en", app_version="1.0")


class FakeModels:
    """Two models; the newest version of each is 3."""

    async def resolve(self, model: str, field: str) -> Model:
        await asyncio.sleep(0)  # who answers is asked of another service
        parts = model.split("/")
        if len(parts) < 2 or parts[1] not in ("shop", "chatmill-tiny"):
            raise NotFound(f"no model {model}")
        version = parts[3] if len(parts) > 3 and parts[2] == "versions" else "3"
        return Model(f"models/{parts[1]}/versions/{version}", f"sha256:{parts[1]}{version}")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "eval.sqlite")
    yield made
    made.close()


@pytest.fixture
def desk(store: Store) -> Desk:
    return Desk(store, lambda: guide.load(None, None), FakeModels())


@pytest.fixture
def break_request() -> Request:
    return Request("ana", "1", "promise-refund", language="en", app_version="1.0")


def said(user: str, reply: str, **more: Any) -> Turn:
    return Turn(user=user, reply=reply, started_at=1.0, first_token_ms=20.0, total_ms=80.0, **more)


def check(
    verdict: Any, *, type_: str = "contains_any", votes: Sequence[str] = (), severity: Any = "major"
) -> CheckResult:
    return CheckResult(
        id="c", type=type_, gate="hard", forbid=False, verdict=verdict, score=None, weight=1.0,
        error="wrong_answer", severity=severity, votes=tuple(votes),
    )  # fmt: skip


Evaluate = Callable[..., str]


def put_evaluation(
    store: Store, evaluation: str, trials: dict[str, Sequence[Sequence[CheckResult]]], arm: Any = "candidate"
) -> str:
    """Put a finished evaluation into a store: `{scenario: [checks of trial 0, of trial 1, ...]}`; returns its id."""
    turn = {"expect": [{"type": "contains_any", "value": ["about"]}]}
    scenarios = tuple(
        scenario_from_mapping(
            {
                "schema": 1, "id": name, "kind": "happy", "title": f"About {name}", "policy": ["returns"],
                "memory": {"facts": ["Customer: Ana."]}, "turns": [{"user": f"ask {name}", **turn}],
            }
        )
        for name in trials
    )  # fmt: skip
    suite = Suite("shop", "1", scenarios)
    spec = Spec(candidate=TargetSpec("models/shop"), suite="shop", policies={"returns": "30 days."})
    store.create(evaluation, None, spec.to_json())
    for name, checks in trials.items():
        for number, found in enumerate(checks):
            store.put_trial(evaluation, trial(Unit(arm, name, number, 0), found))
    target = {"name": "shop", "model": "models/shop/versions/3", "revision": "r"}
    store.update(
        evaluation, state="succeeded", suite=suite.snapshot(), suite_id="shop", suite_digest=suite.digest,
        grader="1", ended_at=5.0, targets={"candidate": target},
    )  # fmt: skip
    settle(store, evaluation)
    return evaluation


@pytest.fixture
def evaluate(store: Store) -> Evaluate:
    """`put_evaluation` into the store of the test."""
    return partial(put_evaluation, store)


def trial(unit: Unit, checks: Sequence[CheckResult]) -> Trial:
    reply = Reply(text=f"about {unit.scenario}", finish_reason="stop", total_ms=50)
    transcript = Transcript(unit, 1, "You are Mila.", (), (Exchange(0, f"ask {unit.scenario}", reply),))
    passed = not any(c.failed and c.gate == "hard" for c in checks)
    turn = TurnScore(0, tuple(checks), (), passed, 100.0 * passed)
    score = TrialScore(
        unit, 1, passed, 100.0 * passed, 100.0 * passed, "answered", (turn,), (), "may", handed_over=False
    )
    return Trial(transcript, score)
