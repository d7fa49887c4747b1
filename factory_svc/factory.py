"""The factory itself: accepts trainings, runs them one after the other in workers, and enters the results.

A job outlives whoever asked for it: clients only watch. What has been accepted is in the store, so a restart goes on
with the queue; a job that was running when the service ended is FAILED and says where its checkpoint lies.

While the disk is full, what became of a job can't be written. Whoever watches it is told at once, and the writing is
tried again until there is room.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import ParamSpec, TypeVar

from chatmill import disk
from chatmill.errors import Aborted, ChatmillError, FailedPrecondition, Internal, ResourceExhausted, Unavailable
from factory_svc import acceptance
from factory_svc.bases import Bases
from factory_svc.entry import Entry
from factory_svc.jobs import Event, Job, JobSpec, State, left_behind
from factory_svc.methods import METHODS
from factory_svc.prepare import Prepared, write_examples
from factory_svc.process import WorkerProcess
from factory_svc.registry import Registry
from factory_svc.results import make_entry
from factory_svc.sources import ItemSource
from factory_svc.store import JobStore
from factory_svc.task import Progress, TrainingOutcome, TrainingTask
from factory_svc.worker import error_to_dict
from factory_svc.workplace import EXAMPLES, Workplace

ROOM_SECONDS = 2.0
"""How often a job whose state can't be written for lack of room is tried again."""

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(slots=True)
class _Running:
    """A job at work.

    Attributes:
        task: the coroutine that runs it.
        worker: its process, once there is one.
        stop: why it is to stop: `cancel`, `shutdown`, or empty.
        unwritten: what its watchers are told while its state can't be written.
    """

    task: asyncio.Task[None]
    worker: WorkerProcess | None = None
    stop: str = ""
    unwritten: ChatmillError | None = None


class Factory:
    """The jobs of one service.

    Args:
        home: `CHATMILL_HOME`; each job works in `home/jobs/{id}`.
        store: where jobs are kept.
        registry: where results go.
        bases: finds base models.
        items: where conversations come from.
        parallel: jobs that run at the same time.
        grace: seconds that a worker gets to write its checkpoint before it is killed.
    """

    def __init__(
        self,
        home: Path,
        store: JobStore,
        registry: Registry,
        bases: Bases,
        items: ItemSource,
        *,
        parallel: int = 1,
        grace: float = 30.0,
    ) -> None:
        self._home = home
        self._workplace = Workplace(home)
        self._store = store
        self._registry = registry
        self._bases = bases
        self._items = items
        self._parallel = parallel
        self._grace = grace
        self._running: dict[str, _Running] = {}
        self._changed: dict[str, asyncio.Event] = {}
        self._draining = asyncio.Event()
        # One thread, so that the transactions of this process keep their order.
        self._thread = ThreadPoolExecutor(1, "factory-store")

    async def start(self) -> None:
        """Mark what an earlier process left unfinished, and go on with the queue."""
        for job in await self._db(self._store.unfinished):
            if job.state is State.RUNNING:
                await self._finish(job.id, State.FAILED, error=left_behind(job, self._workplace.checkpoints(job.id)))
            elif job.state is State.CANCELLING:
                await self._finish(job.id, State.CANCELLED)
        await asyncio.to_thread(self._workplace.tidy, ())
        await self._pump()

    async def submit(self, spec: JobSpec, request_id: str = "") -> Job:
        """Check a training and queue it.

        Args:
            spec: what to train.
            request_id: the same id returns the job of the first call.

        Raises:
            InvalidArgument: a parameter is wrong; one violation per field.
            NotFound: no such method, base or dataset.
            FailedPrecondition: the training split is empty, or the base can't be trained on.
            AlreadyExists: `request_id` was used for something else.
            Unavailable: the service is stopping, or the dataset service can't be reached.
        """
        if self._draining.is_set():
            raise Unavailable("The factory is stopping.", reason="DRAINING", retry_after=5.0)
        known = await self._db(self._store.by_request, request_id)
        base = None if known else await acceptance.check(spec, self._bases, self._items)
        job = Job(
            id=f"{spec.model_id}-{uuid.uuid4().hex[:8]}",
            spec=spec,
            base_name=base.name if base is not None else "",
            created=datetime.now(UTC),
        )
        accepted, _ = await self._db(self._store.add, job, request_id)
        await self._pump()
        return accepted

    async def get(self, job_id: str) -> Job:
        """One job. Raises NotFound."""
        return await self._db(self._store.get, job_id)

    async def page(self, limit: int, before: int | None, state: State | None) -> list[Job]:
        """Jobs, newest first; see `JobStore.page`."""
        return await self._db(lambda: self._store.page(limit=limit, before=before, state=state))

    async def watch(self, job_id: str, after: int = 0) -> AsyncIterator[Event]:
        """Events behind `after`, and then each new one until the job ends. Raises NotFound.

        Raises:
            Unavailable: the service is stopping; watch again with the last sequence number seen.
            ResourceExhausted: the disk is full, so that nothing more can be kept of the job.
        """
        while True:
            changed = self._changed.setdefault(job_id, asyncio.Event())
            # Asked before the events are read: a job that ends in between has events that were not read yet.
            ended = (await self.get(job_id)).state.final
            events = await self._db(self._store.events, job_id, after)
            for event in events:
                yield event
                after = event.sequence
            if events:
                continue
            if ended:
                self._changed.pop(job_id, None)
                return
            running = self._running.get(job_id)
            if running is not None and running.unwritten is not None:
                raise running.unwritten
            if self._draining.is_set():
                raise Unavailable(
                    "The factory is stopping; watch again with the last sequence number seen.",
                    reason="DRAINING",
                    retry_after=5.0,
                )
            await changed.wait()

    async def cancel(self, job_id: str) -> Job:
        """Ask a job to stop. Raises NotFound, and FailedPrecondition if it has ended."""
        job = await self.get(job_id)
        if job.state.final:
            raise FailedPrecondition(
                f"{job.name} has ended already ({job.state}).", reason="JOB_ENDED", metadata={"state": str(job.state)}
            )
        if job.state is State.QUEUED:
            return await self._finish(job_id, State.CANCELLED)
        if job.state is State.RUNNING:
            job = await self._change(job_id, State.CANCELLING)
            self._stop(job_id, "cancel")
        return job

    async def drain(self) -> None:
        """Take no more jobs, and end all watches."""
        self._draining.set()
        for changed in self._changed.values():
            changed.set()

    async def close(self) -> None:
        """Let running jobs write a checkpoint, and give everything back."""
        await self.drain()
        for job_id in list(self._running):
            self._stop(job_id, "shutdown")
        await asyncio.gather(*(r.task for r in self._running.values()), return_exceptions=True)
        self._thread.shutdown()
        self._store.close()

    # -------------------------------------------------------------------------------------------------- running

    async def _pump(self) -> None:
        """Start queued jobs as far as there is room."""
        if self._draining.is_set():
            return
        waiting = [j for j in await self._db(self._store.unfinished) if j.state is State.QUEUED]
        for job in waiting[: max(0, self._parallel - len(self._running))]:
            if job.id not in self._running:
                self._running[job.id] = _Running(asyncio.create_task(self._run(job.id), name=job.name))

    async def _run(self, job_id: str) -> None:
        try:
            job = await self._once_there_is_room(job_id, lambda: self._change(job_id, State.RUNNING))
            if job is None:
                return
            model = (await self._work(job)).name
            await self._end(job_id, State.SUCCEEDED, model=model)
        except ChatmillError as error:
            await self._failed(job_id, error)
        except Exception as error:
            log.exception("training job failed", extra={"fields": {"job": job_id}})
            await self._failed(job_id, Internal(f"The training failed unexpectedly: {type(error).__name__}: {error}"))
        finally:
            del self._running[job_id]
            await asyncio.to_thread(self._workplace.tidy, self._running)
            await self._pump()

    async def _work(self, job: Job) -> Entry:
        folder = self._workplace.folder(job.id)
        with disk.clear_errors(str(folder), self._home):
            folder.mkdir(parents=True, exist_ok=True)
            prepared = await self._prepare(job, folder)
        base = self._registry.get(job.base_name) if job.base_name else None
        location, revision = self._location(job, base)
        task = TrainingTask(
            method=job.spec.method,
            parameters=job.spec.parameters,
            output=folder / "output",
            data=prepared.file,
            base=location,
            base_revision=revision,
            system_prompt=job.spec.system_prompt,
            seed=job.spec.seed,
            checkpoints=self._workplace.checkpoints(job.id),
        )
        outcome = await self._train(job, task, folder)
        await self._report(job.id, Progress(outcome.steps, outcome.steps, phase="registering"))
        return await asyncio.to_thread(self._register, job, outcome, base, prepared)

    def _location(self, job: Job, base: Entry | None) -> tuple[str | None, str | None]:
        if base is None:
            return None, None
        if METHODS.get(job.spec.method).kind == "prompt":
            return base.name, None
        return self._bases.location(base)

    async def _prepare(self, job: Job, folder: Path) -> Prepared:
        """Write the examples for the worker, and tell what became of the items."""
        await self._report(job.id, Progress(phase="reading the dataset"))
        dataset = await self._items.describe(job.spec.dataset)
        items = self._items.training_items(job.spec.dataset, job.spec.languages)
        file = folder / EXAMPLES
        prepared = await write_examples(job.spec, dataset, items, file, lambda: self._stop_if_asked(job.id))
        for text in prepared.warnings():
            await self._warn(job.id, text)
        for text in prepared.notes():
            await self._report(job.id, Progress(phase="reading the dataset", note=text))
        return prepared

    async def _train(self, job: Job, task: TrainingTask, folder: Path) -> TrainingOutcome:
        self._stop_if_asked(job.id)
        with disk.clear_errors(str(folder), self._home):
            worker = await WorkerProcess.start(task, folder)
        running = self._running[job.id]
        running.worker = worker
        if running.stop:
            worker.interrupt()
        try:
            async for message in worker.follow():
                if isinstance(message, TrainingOutcome):
                    return message
                await self._report(job.id, message)
        finally:
            await worker.end(self._grace)
        raise AssertionError("a worker ends with an outcome or an error")

    def _register(self, job: Job, outcome: TrainingOutcome, base: Entry | None, prepared: Prepared) -> Entry:
        entry = make_entry(job, outcome, base, prepared)
        return self._registry.add(entry, outcome.output if entry.artifacts else None)

    async def _failed(self, job_id: str, error: ChatmillError) -> None:
        stop = self._running[job_id].stop
        if (await self.get(job_id)).state.final:  # cancelled at the moment in which it was to start
            return
        if stop == "cancel":
            await self._end(job_id, State.CANCELLED)
            return
        if stop == "shutdown":
            error = left_behind(await self.get(job_id), self._workplace.checkpoints(job_id))
        elif (written := self._workplace.log(job_id)) is not None and str(written) not in error.message:
            error.message += f" The log of the training is {written}."
        await self._end(job_id, State.FAILED, error=error)

    async def _end(self, job_id: str, state: State, *, model: str = "", error: ChatmillError | None = None) -> None:
        """Tidy up, and write how the job ended."""
        tidy = self._workplace.keep_evidence if state is State.FAILED else self._workplace.clear
        await asyncio.to_thread(tidy, job_id)
        await self._once_there_is_room(job_id, lambda: self._finish(job_id, state, model=model, error=error), error)

    async def _once_there_is_room(
        self, job_id: str, write: Callable[[], Awaitable[Job]], told: ChatmillError | None = None
    ) -> Job | None:
        """Do `write`, again and again while the disk is full; None if the service stopped before there was room.

        Args:
            job_id: whose state is written.
            write: writes it.
            told: what the job's watchers hear meanwhile; that the disk is full without it.
        """
        running = self._running[job_id]
        while True:
            try:
                job = await write()
            except ResourceExhausted as full:
                if running.unwritten is None:
                    log.error(
                        "the state of a job can't be written: %s", full.message, extra={"fields": {"job": job_id}}
                    )
                running.unwritten = told or full
                self._notify(job_id)
            else:
                running.unwritten = None
                return job
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._draining.wait(), ROOM_SECONDS)
                return None

    def _stop(self, job_id: str, why: str) -> None:
        running = self._running.get(job_id)
        if running is None:
            return
        running.stop = why
        if running.worker is not None:
            running.worker.interrupt()
            asyncio.get_running_loop().call_later(self._grace, running.worker.kill)

    def _stop_if_asked(self, job_id: str) -> None:
        if self._running[job_id].stop:
            raise Aborted(f"trainingJobs/{job_id} was stopped.", reason="INTERRUPTED")

    # ------------------------------------------------------------------------------------------------ telling

    async def _report(self, job_id: str, progress: Progress) -> None:
        await self._db(self._store.progress, job_id, asdict(progress))
        self._notify(job_id)

    async def _warn(self, job_id: str, text: str) -> None:
        await self._db(self._store.warn, job_id, text)
        self._notify(job_id)

    async def _change(self, job_id: str, state: State) -> Job:
        job = await self._db(self._store.change, job_id, state)
        self._notify(job_id)
        return job

    async def _finish(self, job_id: str, state: State, *, model: str = "", error: ChatmillError | None = None) -> Job:
        details = error_to_dict(error) if error is not None else None
        job = await self._db(lambda: self._store.change(job_id, state, model=model, error=details))
        self._notify(job_id)
        self._changed.pop(job_id, None)
        return job

    def _notify(self, job_id: str) -> None:
        changed = self._changed.pop(job_id, None)
        if changed is not None:
            changed.set()

    async def _db(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: function(*args, **kwargs))
