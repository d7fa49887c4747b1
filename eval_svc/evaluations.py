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
    Unavailable,
)
from eval_svc.board import Board
from eval_svc.comparison import Comparison, compare
from eval_svc.drafts import Draft, draft_scenarios
from eval_svc.execution import BOARD, CANCELLED, Execution, Tools, board_of, settle
from eval_svc.ports import described
from eval_svc.replay import HeldBack, replay_suite
from eval_svc.result import GRADER_VERSION, Trial
from eval_svc.scoring import score_trial
from eval_svc.spec import Spec
from eval_svc.store import ENDED, Event, Record, State, Store
from eval_svc.suite import Suite, SuiteLibrary
from eval_svc.summary import ArmSummary
from eval_svc.target import TargetInfo
from eval_svc.transcript import Unit

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
"""How long after a full disk it is tried again to write how an evaluation ended."""


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
        self._ending = asyncio.Lock()
        self._mender: asyncio.Task[None] | None = None
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
            await self._let_go(known.id)
            async with self._ending:
                if self._record(known.id).state not in ENDED:
                    self._launch(known.id)
            return self.get(known.id)
        suite, targets = await self.examine(spec)
        record, created = self.store.create(
            uuid.uuid4().hex[:16],
            request_id,
            spec.to_json(),
            suite=suite.snapshot(),
            suite_id=suite.id,
            suite_digest=suite.digest,
            targets={arm: asdict(info) for arm, info in targets.items()},
            grader=GRADER_VERSION,
        )
        if created:
            self._launch(record.id)
            await self.emit(record.id, "state", {"state": "queued"})
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
        asked = {"candidate": (spec.candidate, "spec.candidate.model")}
        if spec.baseline is not None:
            asked["baseline"] = (spec.baseline, "spec.baseline.model")
        if spec.judge is not None:
            asked["judge"] = (spec.judge.target, "spec.judge.target.model")
        if spec.customer is not None:
            asked["customer"] = (spec.customer, "spec.customer.model")
        return {part: await described(self.tools.agents, target, field) for part, (target, field) in asked.items()}

    async def resume(self) -> int:
        """Take up what had not ended when the service last did; returns how many."""
        unfinished = self.store.unfinished()
        for record in unfinished:
            if record.suite is None:
                died = Unavailable("the service died before it began")
                await self._end(record.id, "failed", error=_error(died), incomplete=died.message)
            elif record.state == "cancelling":
                await self._end(record.id, "cancelled", incomplete=CANCELLED)
            else:
                self._launch(record.id)
        return len(unfinished)

    async def take_up(self, evaluation: str) -> Evaluation:
        """Go on with one that ended before all was played, or lost dialogues to infrastructure; nothing that has its
        answer is asked again.

        Raises:
            NotFound: no such evaluation.
            FailedPrecondition: all is played, it is being cancelled, or it failed before there was anything to play.
            Unavailable: the service stops.
        """
        if self._draining:
            raise Unavailable("the evaluation service is stopping; resume when it is back", reason="DRAINING")
        await self._let_go(evaluation)
        async with self._ending:
            record, running = self._record(evaluation), evaluation in self._running
            if running and record.state == "cancelling":
                raise FailedPrecondition(f"evaluations/{evaluation} is being cancelled; resume it when it has ended")
            if not running and (record.state in ENDED or record.state == "cancelling"):
                lost = any(t.score.infra is not None for t in await asyncio.to_thread(self._trials, evaluation))
                whole = record.state == "succeeded" and evaluation not in self._unwritten
                if whole and not (record.incomplete or record.decided or lost):
                    raise FailedPrecondition(f"evaluations/{evaluation} is complete; there is nothing left to play")
                if record.suite is None:
                    raise FailedPrecondition(f"evaluations/{evaluation} failed before it began; run it again")
                spec = replace(Spec.from_json(record.spec), stop_early=False)
                await asyncio.to_thread(self.store.reopen, evaluation, spec.to_json())
            self._launch(evaluation)
        return self.get(evaluation)

    def _trials(self, evaluation: str) -> list[Trial]:
        return list(self.store.trials(evaluation))

    def drafts(self, dataset: str, most: int, seed: int, max_turns: int) -> AsyncIterator[Draft]:
        """Scenarios out of held-back conversations. Raises as `draft_scenarios`."""
        if self.held_back is None:
            raise FailedPrecondition("scenarios out of datasets need the dataset service, and none is configured")
        return draft_scenarios(self.held_back, dataset, most=most, seed=seed, max_turns=max_turns)

    async def _let_go(self, evaluation: str) -> None:
        """Wait for the task of one that has played all it will: until it is gone, no other can be launched."""
        running = self._running.get(evaluation)
        if running is not None and (evaluation in self._unwritten or self._record(evaluation).state in ENDED):
            await asyncio.wait([running[0]])

    def _launch(self, evaluation: str) -> None:
        if evaluation in self._running:
            return
        self._unwritten.pop(evaluation, None)
        execution = Execution(evaluation, self.store, self.tools, self.emit)
        task = asyncio.create_task(self._run(evaluation, execution), name=f"evaluation {evaluation}")
        self._running[evaluation] = (task, execution)
        task.add_done_callback(lambda _: self._running.pop(evaluation, None))

    async def _run(self, evaluation: str, execution: Execution) -> None:
        try:
            async with self._slots:
                await execution.run()
        except ChatmillError as error:
            await self._fail(evaluation, error)
        except Exception as error:
            log.exception("evaluation %s broke", evaluation)
            defect = f"a defect of the evaluation service: {type(error).__name__}: {error}"
            await self._fail(evaluation, Unavailable(defect))

    async def _fail(self, evaluation: str, error: ChatmillError) -> None:
        try:
            async with self._ending:
                await self._end(evaluation, "failed", error=_error(error), incomplete=error.message)
        except Exception as full:  # whoever watches is told instead, and it is written when there is room
            log.error("the end of evaluation %s can't be written: %s", evaluation, full)
            self._unwritten[evaluation] = error
            if not self._draining and (self._mender is None or self._mender.done()):
                self._mender = asyncio.create_task(self._mend(), name="ends that could not be written")
            async with self._changed:
                self._changed.notify_all()

    async def _mend(self) -> None:
        """Write the ends that a full disk kept from being written, as soon as there is room."""
        while self._unwritten:
            await asyncio.sleep(RETRY_SECONDS)
            for evaluation in list(self._unwritten):
                async with self._ending:
                    error = self._unwritten.get(evaluation)
                    if error is None:  # it was cancelled or taken up meanwhile
                        continue
                    with contextlib.suppress(Exception):
                        await self._end(evaluation, "failed", error=_error(error), incomplete=error.message)

    async def _end(self, evaluation: str, state: State, **values: Any) -> None:
        """Write how one ended that is not running any more. Raises ResourceExhausted if the disk is full."""
        self.store.update(evaluation, state=state, ended_at=time.time(), **values)
        with contextlib.suppress(Exception):  # what can't be counted is no reason to hide how it ended
            await asyncio.to_thread(settle, self.store, evaluation)
        self.store.add_event(evaluation, "state", {"state": state})
        self.store.add_event(evaluation, "finished", {})
        self._unwritten.pop(evaluation, None)
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
        async with self._ending:
            record, unwritten = self._record(evaluation), evaluation in self._unwritten
            running = None if unwritten else self._running.get(evaluation)
            if record.state in ENDED and not unwritten:
                ended = f"evaluations/{evaluation} has ended ({record.state})"
                raise FailedPrecondition(f"{ended}; there is nothing to cancel")
            if running is None:
                await self._end(evaluation, "cancelled", incomplete=CANCELLED)
            else:
                self.store.update(evaluation, state="cancelling")
                running[1].cancel()
                await self.emit(evaluation, "state", {"state": "cancelling"})
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
        tasks = [task for task, _ in running]
        if self._mender is not None:
            self._mender.cancel()  # the next start takes up what is left
            tasks.append(self._mender)
        await asyncio.gather(*tasks, return_exceptions=True)
        async with self._changed:
            self._changed.notify_all()


def _error(error: ChatmillError) -> dict[str, str]:
    return {"code": error.code, "message": error.message, "reason": error.reason}
