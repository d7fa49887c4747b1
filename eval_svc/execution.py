"""One evaluation at work: builds the plan from the stored spec, runs it, counts, and writes the score back.

It knows the store and the runner; it knows neither gRPC nor how many evaluations run beside it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from pydantic import TypeAdapter

from chatmill.errors import ChatmillError
from eval_svc.board import Board, make_board
from eval_svc.customer import KeptCustomer
from eval_svc.dialogue import Play
from eval_svc.early import Outlook
from eval_svc.glitches import Budgets
from eval_svc.judging import TargetJudge
from eval_svc.ports import Agents, ModelScore, ScoreBook
from eval_svc.result import Trial
from eval_svc.runner import ARMS, MAX_INFRA_SHARE, Arm, Plan, Progress, Runner
from eval_svc.scorers import Services
from eval_svc.scorers.base import Embedder
from eval_svc.scoring import Scoring
from eval_svc.spec import Spec, TargetSpec
from eval_svc.store import Record, Store
from eval_svc.suite import Suite
from eval_svc.target import Target, TargetInfo
from eval_svc.timing import Timed, time_replies
from eval_svc.transcript import Exchange, Unit

BOARD = TypeAdapter(Board)
CANCELLED = "it was cancelled"
"""Why a cancelled evaluation is incomplete."""
PROGRESS_SECONDS = 0.5
"""Progress events come at most this often; the last one always comes."""

Emit = Callable[[str, str, Mapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Tools:
    """What runs need beyond their suite.

    Attributes:
        agents: makes targets.
        scores: where scores are written back; None: nowhere.
        embedder: for semantic checks; None: they stay unscored. One whose `loaded` is False will take seconds at its
            first call, which is told.
        concurrency: dialogues at a time where the spec does not say.
        max_runs: evaluations at a time; more wait.
        play: retries and pauses.
        budgets: when a reply is slow.
        latency_turns: replies of each side that are timed one at a time after the run, where the spec does not say.
    """

    agents: Agents
    scores: ScoreBook | None = None
    embedder: Embedder | None = None
    concurrency: int = 8
    max_runs: int = 2
    play: Play = field(default_factory=Play)
    budgets: Budgets = field(default_factory=Budgets)
    latency_turns: int = 0

    def scoring(self, spec: Spec, record: Record, store: Store) -> Scoring:
        """The scoring that a spec asks for; what the judge says is kept with the evaluation."""
        judge = None
        if spec.judge is not None:
            found = record.targets["judge"]
            judge = TargetJudge(
                self.agents.target(replace(spec.judge.target, model=found["model"])),
                identity=f"{spec.judge.target.base_url} {found['model']} {found['revision']}",
                answers=Judgements(store, record.id),
                backoff_s=self.play.backoff_s,
            )
        return Scoring(
            policies=spec.policies,
            budgets=self.budgets,
            services=Services(judge=judge, embedder=self.embedder),
            judge_gates=spec.judge is not None and spec.judge.gates,
            fail_fast=judge is not None,
        )


@dataclass(frozen=True, slots=True)
class Judgements:
    """The answers of the judge, and of the played customer, in an evaluation."""

    store: Store
    evaluation: str

    def find(self, key: str) -> str | None:
        """See `Answers`."""
        return self.store.judgement(self.evaluation, key)

    def keep(self, key: str, answer: str) -> None:
        """See `Answers`."""
        self.store.put_judgement(self.evaluation, key, answer)


class Execution:
    """One evaluation at work; also the journal and the observer of its run."""

    def __init__(self, evaluation: str, store: Store, tools: Tools, emit: Emit) -> None:
        self.evaluation = evaluation
        self.store = store
        self.tools = tools
        self.emit = emit
        self._stop = asyncio.Event()
        self._why: Literal["", "cancelled", "suspended"] = ""
        self._answered: dict[Unit, dict[int, Exchange]] = {}
        self._told = 0.0

    def cancel(self) -> None:
        """End it for good; it keeps what it has."""
        self._why = "cancelled"
        self._stop.set()

    def suspend(self) -> None:
        """End it for now; its state stays running, so that the next start takes it up."""
        self._why = self._why or "suspended"
        self._stop.set()

    async def run(self) -> None:
        """Run to the end. Raises a ChatmillError if it can't."""
        record = self._record()
        if self._suspended():
            return
        assert record.suite is not None
        spec = Spec.from_json(record.spec)
        self.store.update(self.evaluation, state="running" if not self._why else "cancelling")
        await self.emit(self.evaluation, "state", {"state": "running"})
        plan = self._plan(record, spec, Suite.from_snapshot(record.suite))
        targets = {arm: self.tools.agents.target(pinned(spec, record, arm)) for arm in plan.arms}
        self._answered = await asyncio.to_thread(self.store.turns, self.evaluation)
        customer = self._customer(spec)
        if customer is None and (left_out := sum(1 for s in plan.suite.scenarios if s.simulated)):
            text = f"{left_out} simulated scenarios are not played: no model plays the customer"
            await self.emit(self.evaluation, "warning", {"text": text})
        scoring = self.tools.scoring(spec, record, self.store)
        if not getattr(scoring.services.embedder, "loaded", True) and _needs_embedder(plan.suite):
            text = "loading the sentence model for the first semantic check takes a few seconds"
            await self.emit(self.evaluation, "warning", {"text": text})
        runner = Runner(plan, targets, scoring, self, self, self._stop, customer, _hopeless(spec, plan))
        outcome = await runner.run()
        lost = sum(1 for t in outcome.trials if t.score.infra is not None)
        if outcome.complete and not self._why and lost <= MAX_INFRA_SHARE * len(outcome.trials):
            await self._time_replies(plan, targets, spec)
        if self._suspended():
            return
        cancelled = self._why == "cancelled" and not outcome.complete
        self.store.update(
            self.evaluation,
            state="cancelled" if cancelled else "succeeded",
            incomplete=CANCELLED if cancelled else outcome.reason,
            decided=outcome.decided or None,
            ended_at=time.time(),
        )
        board = await asyncio.to_thread(settle, self.store, self.evaluation)
        if outcome.reason and not cancelled:
            await self.emit(self.evaluation, "warning", {"text": outcome.reason})
        if outcome.decided:
            text = f"ended early: {outcome.decided}; the gate can't pass any more"
            await self.emit(self.evaluation, "warning", {"text": text})
        if not cancelled:
            await self._write_back(self._record(), board)
        await self.emit(self.evaluation, "state", {"state": "cancelled" if cancelled else "succeeded"})
        await self.emit(self.evaluation, "finished", {})

    def _customer(self, spec: Spec) -> Target | None:
        if spec.customer is None:
            return None
        identity = f"{spec.customer.base_url} {spec.customer.model}"
        answers = Judgements(self.store, self.evaluation)
        return KeptCustomer(self.tools.agents.target(spec.customer), identity, answers)

    async def _time_replies(self, plan: Plan, targets: Mapping[Arm, Target], spec: Spec) -> None:
        count = self.tools.latency_turns if spec.latency_turns is None else spec.latency_turns

        async def keep(timed: Timed) -> None:
            self.store.put_time(self.evaluation, timed)

        await time_replies(
            plan.suite.scenarios,
            targets,
            {arm: plan.play_of(arm) for arm in plan.arms},
            count,
            seed=plan.seed,
            run_id=plan.run_id,
            done=self.store.times(self.evaluation),
            keep=keep,
            stop=self._stop,
        )

    def _suspended(self) -> bool:
        return self._why == "suspended"

    def _record(self) -> Record:
        record = self.store.get(self.evaluation)
        assert record is not None
        return record

    def _plan(self, record: Record, spec: Spec, suite: Suite) -> Plan:
        return Plan(
            run_id=record.id,
            suite=suite,
            arms=ARMS if spec.baseline is not None else ARMS[:1],
            trials=spec.trials,
            seed=spec.seed,
            concurrency=spec.concurrency or self.tools.concurrency,
            systems=system_prompts(spec, record),
            simulate=spec.customer is not None,
            play=replace(
                self.tools.play,
                max_output_tokens=spec.max_output_tokens,
                temperature=spec.temperature,
                turn_timeout_s=spec.turn_timeout_s,
            ),
        )

    def answered(self, unit: Unit) -> Mapping[int, Exchange]:
        """See `Journal`."""
        return self._answered.get(unit, {})

    def done(self) -> Mapping[Unit, Trial]:
        """See `Journal`."""
        return {t.unit: t for t in self.store.trials(self.evaluation) if t.score.infra is None}

    async def turn(self, unit: Unit, exchange: Exchange) -> None:
        """See `Journal`. Written in place: a thread would cost more than the half millisecond that it takes."""
        self.store.put_turn(self.evaluation, unit, exchange)

    async def trial(self, trial: Trial) -> None:
        """See `Journal`."""
        self.store.put_trial(self.evaluation, trial)

    async def scored(self, trial: Trial) -> None:
        """See `Observer`."""
        await self.emit(self.evaluation, "trial", asdict(trial.unit))

    async def progressed(self, progress: Progress) -> None:
        """See `Observer`."""
        now = time.monotonic()
        if progress.done < progress.total and now - self._told < PROGRESS_SECONDS:
            return
        self._told = now
        self.store.update(self.evaluation, progress=asdict(progress))
        await self.emit(self.evaluation, "progress", asdict(progress))

    async def _write_back(self, record: Record, board: Board) -> None:
        """Put the candidate's score into its registry entry; a failure is told, and ends nothing."""
        candidate = targets_of(record)[0]
        if self.tools.scores is None or not candidate.model.startswith("models/") or board.gate.state == "invalid":
            return
        interval = board.candidate.pass_rate_interval
        score = ModelScore(
            evaluation=f"evaluations/{record.id}",
            suite=record.suite_id,
            suite_digest=record.suite_digest,
            pass_rate=board.candidate.pass_rate,
            interval=interval if not math.isinf(interval.low) else type(interval)(0.0, 1.0),
            verdict=board.comparison.verdict if board.comparison else "",
            gate_passed=board.gate.state == "passed",
            ended_at=record.ended_at or time.time(),
        )
        try:
            await self.tools.scores.record(candidate.model, score)
        except ChatmillError as error:
            await self.emit(self.evaluation, "warning", {"text": f"the score was not written back: {error.message}"})


def _needs_embedder(suite: Suite) -> bool:
    return any(check.scorer.stage == "semantic" for scenario in suite.scenarios for check in scenario.checks())


def _hopeless(spec: Spec, plan: Plan) -> Callable[[Trial], str] | None:
    """What ends a run early, if it is to."""
    if not spec.stop_early:
        return None
    units = [unit for scenario, unit in plan.units() if unit.variant == 0 and not scenario.simulated]
    outlook = Outlook(spec.gate, units, compared=spec.baseline is not None)

    def hopeless(trial: Trial) -> str:
        outlook.add(trial)
        return outlook.hopeless()

    return hopeless


def pinned(spec: Spec, record: Record, arm: Arm) -> TargetSpec:
    """The target of a side, by the version that its name stood for when the run was accepted: aliases may move."""
    target = spec.candidate if arm == "candidate" else spec.baseline
    assert target is not None
    return replace(target, model=record.targets[arm]["model"])


def system_prompts(spec: Spec, record: Record) -> Mapping[Arm, str]:
    """What each side is told at the beginning: what the spec says; else its own prompt, as in service.

    A side that brings none, such as an untuned base, is told the other's: both must know whom they speak for, or the
    comparison is one of prompts. Said by us and not left to the endpoint, a prompt can be looked for in replies.
    """
    candidate, baseline = targets_of(record)
    if spec.system_prompt or baseline is None:
        return dict.fromkeys(ARMS, spec.system_prompt or candidate.system_prompt)
    return {
        "candidate": candidate.system_prompt or baseline.system_prompt,
        "baseline": baseline.system_prompt or candidate.system_prompt,
    }


def targets_of(record: Record) -> tuple[TargetInfo, TargetInfo | None]:
    """Candidate and baseline as they were found."""
    baseline = record.targets.get("baseline")
    return TargetInfo(**record.targets["candidate"]), TargetInfo(**baseline) if baseline else None


def board_of(store: Store, record: Record) -> Board:
    """Count what an evaluation has so far."""
    assert record.suite is not None
    candidate, baseline = targets_of(record)
    spec = Spec.from_json(record.spec)
    incomplete = record.incomplete or ("" if record.state == "succeeded" else f"it is {record.state}")
    trials = list(store.trials(record.id))
    return make_board(
        Suite.from_snapshot(record.suite),
        trials,
        candidate,
        baseline,
        spec.gate,
        incomplete,
        record.decided or "",
        store.times(record.id),
    )


def settle(store: Store, evaluation: str) -> Board:
    """Count again and keep the result."""
    record = store.get(evaluation)
    assert record is not None
    board = board_of(store, record)
    store.update(evaluation, board=BOARD.dump_json(board).decode())
    return board
