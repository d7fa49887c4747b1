"""Evaluations as jobs: accepted, run in the background, watched, cancelled, resumed after a crash, rescored, compared.

The rules of business of the service stand here; it knows neither gRPC nor how a model is reached.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from chatmill.errors import (
    ChatmillError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from eval_svc.board import Board
from eval_svc.comparison import Comparison, compare
from eval_svc.drafts import Draft, draft_scenarios
from eval_svc.execution import BOARD, Execution, Tools, board_of, settle
from eval_svc.replay import HeldBack, replay_suite
from eval_svc.result import GRADER_VERSION, Trial
from eval_svc.scoring import score_trial
from eval_svc.spec import Spec
from eval_svc.store import ENDED, Event, Record, Store
from eval_svc.suite import Suite, SuiteLibrary
from eval_svc.summary import ArmSummary
from eval_svc.target import TargetInfo
from eval_svc.transcript import Unit

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation with its results, as far as there are any."""

    record: Record
    spec: Spec
    board: Board | None

    @property
    def name(self) -> str:
        """Resource name."""
        return f"evaluations/{self.record.id}"


class Evaluations:
    """All evaluations of a service.

    Args:
        held_back: where replay suites get their conversations; None: replay suites are refused.
        tools: what runs need beyond their suite.
    """

    def __init__(self, store: Store, suites: SuiteLibrary, held_back: HeldBack | None, tools: Tools) -> None:
        self.store = store
        self.suites = suites
        self.held_back = held_back
        self.tools = tools
        self._running: dict[str, tuple[asyncio.Task[None], Execution]] = {}
        self._unwritten: dict[str, ChatmillError] = {}
        self._changed = asyncio.Condition()
        self._draining = False
        self._slots = asyncio.Semaphore(tools.max_runs)

    async def start(self, spec: Spec, request_id: str = "") -> Evaluation:
        """Accept an evaluation and begin it in the background.

        The same request id gives the first call's evaluation, which is taken up again if the service died in the
        middle.

        Raises:
            InvalidArgument: the spec or a file of the suite is wrong.
            NotFound: no such suite, dataset or model.
            FailedPrecondition: the dataset has nothing held back.
            Unavailable: the service stops, or a target can't be reached.
        """
        if self._draining:
            raise Unavailable(
                "the evaluation service is stopping; start the evaluation again when it is back", reason="DRAINING"
            )
        known = self.store.by_request(request_id) if request_id else None
        if known is not None:
            # a run that was ended early and taken up again goes on to its end
            if replace(Spec.from_json(known.spec), stop_early=spec.stop_early) != spec:
                raise InvalidArgument.field("request_id", "belongs to an evaluation with another spec; use a new one")
            if known.state not in ENDED:
                self._launch(known.id)
            return self.get(known.id)
        suite, targets = await self.examine(spec)
        record, created = self.store.create(uuid.uuid4().hex[:16], request_id, spec.to_json())
        if created:
            self.store.update(
                record.id,
                suite=suite.snapshot(),
                suite_id=suite.id,
                suite_digest=suite.digest,
                targets={arm: asdict(info) for arm, info in targets.items()},
                grader=GRADER_VERSION,
            )
            await self.emit(record.id, "state", {"state": "queued"})
            self._launch(record.id)
        return self.get(record.id)

    async def examine(self, spec: Spec) -> tuple[Suite, Mapping[str, TargetInfo]]:
        """Everything that `start` checks, and nothing kept: what would be played against whom. Raises as `start`."""
        spec.check()
        return await self._suite(spec), await self._targets(spec)

    async def _suite(self, spec: Spec) -> Suite:
        if spec.replay is None:
            return (await asyncio.to_thread(self.suites.find, spec.suite)).select(spec.tags)
        if self.held_back is None:
            raise FailedPrecondition("replay suites need the dataset service, and none is configured")
        return await replay_suite(spec.replay, self.held_back, spec.seed)

    async def _targets(self, spec: Spec) -> Mapping[str, TargetInfo]:
        found = {"candidate": await self.tools.agents.target(spec.candidate).describe()}
        if spec.baseline is not None:
            found["baseline"] = await self.tools.agents.target(spec.baseline).describe()
        if spec.judge is not None:
            found["judge"] = await self.tools.agents.target(spec.judge.target).describe()
        if spec.customer is not None:
            found["customer"] = await self.tools.agents.target(spec.customer).describe()
        return found

    def resume(self) -> int:
        """Take up what had not ended when the service last did; returns how many."""
        unfinished = self.store.unfinished()
        for record in unfinished:
            if record.suite is None:
                self.store.update(
                    record.id, state="failed", error=_error(Unavailable("the service died before it began"))
                )
            elif record.state == "cancelling":
                self.store.update(record.id, state="cancelled")
            else:
                self._launch(record.id)
        return len(unfinished)

    async def take_up(self, evaluation: str) -> Evaluation:
        """Go on with one that ended before all was played, or lost dialogues to infrastructure; nothing that has its
        answer is asked again.

        Raises:
            NotFound: no such evaluation.
            FailedPrecondition: all is played, or it failed before there was anything to play.
            Unavailable: the service stops.
        """
        if self._draining:
            raise Unavailable("the evaluation service is stopping; resume when it is back", reason="DRAINING")
        record = self._record(evaluation)
        if record.state in ENDED:
            lost = any(t.score.infra is not None for t in await asyncio.to_thread(self._trials, evaluation))
            if record.state == "succeeded" and not (record.incomplete or record.decided or lost):
                raise FailedPrecondition(f"evaluations/{evaluation} is complete; there is nothing left to play")
            if record.suite is None:
                raise FailedPrecondition(f"evaluations/{evaluation} failed before it began; run it again")
            spec = replace(Spec.from_json(record.spec), stop_early=False)
            await asyncio.to_thread(self.store.reopen, evaluation, spec.to_json())
        if record.state != "cancelling":
            self._launch(evaluation)
        return self.get(evaluation)

    def _trials(self, evaluation: str) -> list[Trial]:
        return list(self.store.trials(evaluation))

    def drafts(self, dataset: str, most: int, seed: int, max_turns: int) -> AsyncIterator[Draft]:
        """Scenarios out of held-back conversations. Raises as `draft_scenarios`."""
        if self.held_back is None:
            raise FailedPrecondition("scenarios out of datasets need the dataset service, and none is configured")
        return draft_scenarios(self.held_back, dataset, most=most, seed=seed, max_turns=max_turns)

    def _launch(self, evaluation: str) -> None:
        if evaluation in self._running:
            return
        self._unwritten.pop(evaluation, None)
        execution = Execution(evaluation, self.store, self.tools, self.emit)
        task = asyncio.create_task(self._run(evaluation, execution), name=f"evaluation {evaluation}")
        self._running[evaluation] = (task, execution)
        task.add_done_callback(lambda _: self._running.pop(evaluation, None))

    async def _run(self, evaluation: str, execution: Execution) -> None:
        async with self._slots:
            try:
                await execution.run()
            except ChatmillError as error:
                await self._fail(evaluation, error)
            except Exception as error:
                log.exception("evaluation %s broke", evaluation)
                await self._fail(
                    evaluation, Unavailable(f"a defect of the evaluation service: {type(error).__name__}: {error}")
                )

    async def _fail(self, evaluation: str, error: ChatmillError) -> None:
        try:
            self.store.update(
                evaluation, state="failed", error=_error(error), ended_at=time.time(), incomplete=error.message
            )
            with contextlib.suppress(Exception):  # what can't be counted is no reason to hide the error
                await asyncio.to_thread(settle, self.store, evaluation)
            await self.emit(evaluation, "state", {"state": "failed"})
            await self.emit(evaluation, "finished", {})
        except ResourceExhausted as full:  # whoever watches is told instead, and the run can be taken up again
            log.error("the end of evaluation %s can't be written: %s", evaluation, full.message)
            self._unwritten[evaluation] = error
            async with self._changed:
                self._changed.notify_all()

    async def emit(self, evaluation: str, kind: str, payload: Mapping[str, Any]) -> None:
        """Append an event and wake whoever watches."""
        self.store.add_event(evaluation, kind, payload)
        async with self._changed:
            self._changed.notify_all()

    async def watch(self, evaluation: str, after: int = 0) -> AsyncIterator[Event]:
        """Events behind a sequence number, and then as they come, to the last.

        Raises:
            NotFound: no such evaluation.
            Unavailable: the service stops.
            ResourceExhausted: the disk is full, so that nothing more can be kept of it.
        """
        self._record(evaluation)
        while True:
            events = self.store.events(evaluation, after)
            for event in events:
                after = event.sequence
                yield event
                if event.kind == "finished":
                    return
            if not events:
                if evaluation in self._unwritten:
                    raise self._unwritten[evaluation]
                if self._draining and evaluation not in self._running:
                    raise Unavailable(f"the service is stopping; watch again from sequence {after}", reason="DRAINING")
                async with self._changed:
                    # a timeout besides the signal: another process may have written to a shared database
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._changed.wait(), 2.0)

    def trial_of(self, evaluation: str, event: Event) -> Trial | None:
        """The dialogue that a trial event tells of; None for other events."""
        return self.store.trial(evaluation, Unit(**event.payload)) if event.kind == "trial" else None

    def get(self, evaluation: str) -> Evaluation:
        """One evaluation. Raises NotFound."""
        return self._evaluation(self._record(evaluation))

    def newest(self, limit: int, before: str | None, state: str | None) -> list[Evaluation]:
        """Newest first; `before` is the id of the last one seen. Raises NotFound for one that isn't there."""
        last = self._record(before) if before is not None else None
        return [self._evaluation(record) for record in self.store.list(limit=limit, before=last, state=state)]

    def _evaluation(self, record: Record) -> Evaluation:
        board = BOARD.validate_json(record.board) if record.board else None
        return Evaluation(record, Spec.from_json(record.spec), board)

    def _record(self, evaluation: str) -> Record:
        record = self.store.get(evaluation)
        if record is None:
            raise NotFound(f"there is no evaluation evaluations/{evaluation}; ListEvaluations shows what there is")
        return record

    async def cancel(self, evaluation: str) -> Evaluation:
        """Ask it to stop; it keeps what it has. Raises NotFound, or FailedPrecondition if it has ended."""
        record = self._record(evaluation)
        if record.state in ENDED:
            raise FailedPrecondition(f"evaluations/{evaluation} has ended ({record.state}); there is nothing to cancel")
        self.store.update(evaluation, state="cancelling")
        await self.emit(evaluation, "state", {"state": "cancelling"})
        running = self._running.get(evaluation)
        if running is not None:
            running[1].cancel()
        return self.get(evaluation)

    def compare(self, candidate: str, baseline: str) -> tuple[Comparison, ArmSummary, ArmSummary]:
        """The candidates of two evaluations. Raises FailedPrecondition if suites differ or one has no results."""
        left, right = self.get(candidate), self.get(baseline)
        for side in (left, right):
            if side.board is None:
                raise FailedPrecondition(f"{side.name} has no results yet ({side.record.state})")
        if left.record.suite_digest != right.record.suite_digest:
            raise FailedPrecondition(
                f"{left.name} ran {left.record.suite_id} {left.record.suite_digest[:12]} and {right.name} "
                f"{right.record.suite_id} {right.record.suite_digest[:12]}; only the same suite can be compared"
            )
        assert left.board is not None
        assert right.board is not None
        return compare(left.board.candidate, right.board.candidate), left.board.candidate, right.board.candidate

    async def rescore(self, evaluation: str) -> tuple[Evaluation, int]:
        """Score the stored replies again, by the suite as it is now; returns how many verdicts changed.

        Raises FailedPrecondition if it has not ended, or the suite's turns are others than those that were played.
        """
        found = self.get(evaluation)
        record, spec = found.record, found.spec
        if record.state not in ENDED or record.suite is None:
            raise FailedPrecondition(f"evaluations/{evaluation} has not ended; rescore it when it has")
        old = Suite.from_snapshot(record.suite)
        suite = old if spec.replay is not None else await self._suite(spec)
        if suite.turns_digest != old.turns_digest:
            raise FailedPrecondition(f"the suite {suite.id} has other turns than those that were played; run it again")
        scoring = self.tools.scoring(spec, record, self.store)
        scenarios = {s.id: s for s in suite.scenarios}
        changed, trials = 0, []
        for trial in await asyncio.to_thread(self._trials, evaluation):
            score = await score_trial(scenarios[trial.unit.scenario], trial.transcript, scoring)
            changed += score.passed != trial.score.passed
            trials.append(Trial(trial.transcript, score))
        await asyncio.to_thread(self.store.put_trials, evaluation, trials)
        self.store.update(
            evaluation, suite=suite.snapshot(), suite_id=suite.id, suite_digest=suite.digest, grader=GRADER_VERSION
        )
        await asyncio.to_thread(settle, self.store, evaluation)
        return self.get(evaluation), changed

    async def report(self, evaluation: str, render: Callable[[Evaluation, Suite, list[Trial]], bytes]) -> bytes:
        """A report of an evaluation, made in a thread. Raises FailedPrecondition if nothing was played yet."""
        found = self.get(evaluation)
        if found.record.suite is None:
            raise FailedPrecondition(f"{found.name} has not begun; there is nothing to report")
        suite = Suite.from_snapshot(found.record.suite)
        if found.board is None:
            board = await asyncio.to_thread(board_of, self.store, found.record)
            found = Evaluation(found.record, found.spec, board)

        def make() -> bytes:
            return render(found, suite, list(self.store.trials(evaluation)))

        return await asyncio.to_thread(make)

    async def close(self) -> None:
        """Stop running evaluations where they are; they go on when the service starts again."""
        self._draining = True
        running = list(self._running.values())
        for _, execution in running:
            execution.suspend()
        await asyncio.gather(*(task for task, _ in running), return_exceptions=True)
        async with self._changed:
            self._changed.notify_all()


def _error(error: ChatmillError) -> dict[str, str]:
    return {"code": error.code, "message": error.message, "reason": error.reason}
