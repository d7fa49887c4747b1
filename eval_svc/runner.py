"""Runs a plan: every unit once, several dialogues at a time, resumable, cancellable, with progress.

It knows neither gRPC nor the database: answered turns and scored dialogues go to a `Journal`, events to an `Observer`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from eval_svc.dialogue import Dialogue, Play
from eval_svc.result import Trial
from eval_svc.scenario import Scenario
from eval_svc.scoring import Scoring, score_trial
from eval_svc.suite import Suite
from eval_svc.target import Target
from eval_svc.transcript import Exchange, Unit

Arm = Literal["candidate", "baseline"]
ARMS: tuple[Arm, ...] = ("candidate", "baseline")

MAX_INFRA_SHARE = 0.05
"""With more dialogues lost to infrastructure than this share, a run says nothing and is invalid."""


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Attributes:
        run_id: for conversation ids; it does not enter the seeds.
        arms: the sides, in the order in which they alternate.
        trials: how often each scenario is played; None: as scenario and suite say.
        seed: of the run.
        concurrency: dialogues at a time, both sides together.
        play: what is the same for both sides.
        systems: the system prompt of each side; without one `play` says it.
        simulate: play simulated scenarios too; without a model for the customer they are left out.
    """

    run_id: str
    suite: Suite
    arms: tuple[Arm, ...]
    trials: int | None = None
    seed: int = 0
    concurrency: int = 8
    play: Play = field(default_factory=Play)
    systems: Mapping[Arm, str] = field(default_factory=dict)
    simulate: bool = False

    def units(self) -> Iterator[tuple[Scenario, Unit]]:
        """All units: the suite once per trial, both sides next to each other, so that drift hits them alike.

        Other wordings are played once each: they show robustness and enter no pass rate.
        """
        for trial in range(max((self.trials_of(s) for s in self.suite.scenarios), default=0)):
            for scenario in self.suite.scenarios:
                if scenario.simulated and not self.simulate:
                    continue
                variants = range(scenario.variants if trial == 0 else 1) if trial < self.trials_of(scenario) else ()
                for variant in variants:
                    for arm in self.arms:
                        yield scenario, Unit(arm, scenario.id, trial, variant)

    def play_of(self, arm: Arm) -> Play:
        """How the dialogues of one side are played."""
        return replace(self.play, system=self.systems.get(arm, self.play.system))

    def trials_of(self, scenario: Scenario) -> int:
        """How often this scenario is played."""
        return self.trials or scenario.trials or self.suite.trials


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is; counts are dialogues of both sides.

    Attributes:
        errors: dialogues with a major or critical error.
        infra: dialogues lost to infrastructure.
        seconds_left: by the present pace; 0 before the first is done.
    """

    done: int = 0
    total: int = 0
    passed: int = 0
    errors: int = 0
    infra: int = 0
    seconds_left: float = 0.0


class Journal(Protocol):
    """Where a run keeps what it has, so that it can be taken up again."""

    def answered(self, unit: Unit) -> Mapping[int, Exchange]:
        """Turns of the unit that are already answered, by index."""

    def done(self) -> Mapping[Unit, Trial]:
        """Dialogues that are done, without those that infrastructure kept from being scored."""

    async def turn(self, unit: Unit, exchange: Exchange) -> None:
        """Keep an answered turn; durable when it returns."""

    async def trial(self, trial: Trial) -> None:
        """Keep a scored dialogue."""


class Observer(Protocol):
    """Who wants to know how it goes."""

    async def progressed(self, progress: Progress) -> None:
        """The counts changed."""

    async def scored(self, trial: Trial) -> None:
        """A dialogue is done; not called again for those of an earlier attempt."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        trials: all that is done, in no particular order.
        complete: every unit was played.
        reason: why it is not, in words.
        decided: why the rest was left out although nothing went wrong: `hopeless` said so.
    """

    trials: tuple[Trial, ...]
    complete: bool
    reason: str = ""
    decided: str = ""


class Runner:
    """One run of a plan.

    Args:
        targets: an agent for each arm of the plan.
        customer: plays simulated customers.
        hopeless: told of each dialogue that is done, earlier ones included; says why the rest needn't be played.
        stop: set it to end the run; dialogues in flight are dropped, their answered turns are kept.
    """

    def __init__(
        self,
        plan: Plan,
        targets: Mapping[Arm, Target],
        scoring: Scoring,
        journal: Journal,
        observer: Observer,
        stop: asyncio.Event | None = None,
        customer: Target | None = None,
        hopeless: Callable[[Trial], str] | None = None,
    ) -> None:
        self.plan = plan
        self.targets = targets
        self.scoring = scoring
        self.journal = journal
        self.observer = observer
        self.customer = customer
        self.hopeless = hopeless
        self.stop = stop or asyncio.Event()
        self.trials: dict[Unit, Trial] = {}
        self._total = 0
        self._fresh = 0
        self._began = 0.0
        self._in_flight = 0
        self._reason = ""
        self._decided = ""
        self._counts = Progress()
        self._simulated = {s.id for s in plan.suite.scenarios if s.simulated}

    async def run(self) -> Outcome:
        """Play what is not done yet. A unit that fails for a defect of ours raises; everything done so far is kept."""
        units = list(self.plan.units())
        wanted = {unit for _, unit in units}
        self._total = len(units)
        for trial in self.journal.done().values():
            if trial.unit in wanted:
                self._count(trial)
        todo = iter([(scenario, unit) for scenario, unit in units if unit not in self.trials])
        self._began = time.monotonic()
        await self.observer.progressed(self.progress())
        workers = [asyncio.create_task(self._work(todo)) for _ in range(min(self.plan.concurrency, self._total) or 1)]
        stopper = asyncio.create_task(self.stop.wait())
        try:
            await self._until_done(workers, stopper)
        finally:
            for task in (*workers, stopper):
                task.cancel()
            await asyncio.gather(*workers, stopper, return_exceptions=True)
        complete = len(self.trials) == self._total and not self._reason
        decided = "" if complete else self._decided
        reason = self._reason or ("" if complete or decided else "stopped")
        return Outcome(tuple(self.trials.values()), complete, reason, decided)

    async def _until_done(self, workers: Sequence[asyncio.Task[None]], stopper: asyncio.Task[bool]) -> None:
        pending: set[asyncio.Task[None] | asyncio.Task[bool]] = {*workers, stopper}
        while pending - {stopper} and not self.stop.is_set():
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()

    async def _work(self, todo: Iterator[tuple[Scenario, Unit]]) -> None:
        for scenario, unit in todo:
            if self._reason or self._decided:
                return
            self._in_flight += 1
            try:
                trial = await self._play(scenario, unit)
            finally:
                self._in_flight -= 1
            self._count(trial)
            self._fresh += 1
            await self.journal.trial(trial)
            await self.observer.scored(trial)
            await self.observer.progressed(self.progress())
            self._check_infra()

    async def _play(self, scenario: Scenario, unit: Unit) -> Trial:
        async def record(exchange: Exchange) -> None:
            await self.journal.turn(unit, exchange)

        dialogue = Dialogue(
            scenario,
            unit,
            self.targets[unit.arm],
            self.plan.play_of(unit.arm),
            self.scoring,
            run_seed=self.plan.seed,
            conversation=f"{self.plan.run_id}/{unit}",
            record=record,
            known=self.journal.answered(unit),
            in_flight=lambda: self._in_flight,
            customer=self.customer,
        )
        transcript = await dialogue.run()
        return Trial(transcript, await score_trial(scenario, transcript, self.scoring))

    def _check_infra(self) -> None:
        """Give up once the run can no longer become valid: an endpoint that is gone would else be called for hours."""
        lost = self._counts.infra
        if lost > max(MAX_INFRA_SHARE * self._total, 2):
            failure = next(t.score.infra for t in self.trials.values() if t.score.infra is not None)
            self._reason = (
                f"{lost} of {self._total} dialogues were lost to infrastructure ({failure.status}: {failure.detail})"
            )

    def progress(self) -> Progress:
        """The counts now."""
        elapsed = time.monotonic() - self._began
        done = len(self.trials)
        pace = elapsed / self._fresh if self._fresh else 0.0
        return replace(self._counts, done=done, total=self._total, seconds_left=pace * (self._total - done))

    def _count(self, trial: Trial) -> None:
        """Keep the counts up to date; counting all again with each dialogue would grow with the square of the run."""
        self.trials[trial.unit] = trial
        if self.hopeless is not None:
            self._decided = self._decided or self.hopeless(trial)
        counts, score = self._counts, trial.score
        self._counts = replace(
            counts,
            passed=counts.passed + bool(score.passed),
            errors=counts.errors + any(e.severity != "minor" for e in score.errors()),
            infra=counts.infra + (score.infra is not None and trial.unit.scenario not in self._simulated),
        )
