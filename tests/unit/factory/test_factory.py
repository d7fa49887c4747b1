"""Jobs from request to registered model, in real workers; what happens when something is stopped or killed."""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from chatmill import disk
from chatmill.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from factory_svc.bases import Bases
from factory_svc.examples import Item, Turn
from factory_svc.factory import Factory
from factory_svc.jobs import Event, EventKind, Job, JobSpec, State
from factory_svc.registry import Registry
from factory_svc.store import JobStore

from .conftest import HANDOVER, SYSTEM, FakeSource

LONG = {"max_steps": 2000, "batch_size": 4, "max_length": 128, "precision": "fp32", "progress_steps": 1}


def _prompt(folder: Path, **changes: Any) -> JobSpec:
    """A training that takes no time, since it loads no torch."""
    return JobSpec(
        **{
            "dataset": "datasets/shop",
            "model_id": "shop",
            "method": "prompt",
            "base": str(folder),
            "system_prompt": SYSTEM,
        }
        | changes
    )


def _lora(base: Path, **parameters: Any) -> JobSpec:
    return _prompt(base, method="lora", parameters={**LONG, **parameters})


async def _all(factory: Factory, job: Job, after: int = 0) -> list[Event]:
    return [event async for event in factory.watch(job.id, after)]


async def _until_step(factory: Factory, job: Job, step: int) -> None:
    async for event in factory.watch(job.id):
        if event.kind is EventKind.PROGRESS and event.payload["step"] >= step:
            return
    raise AssertionError(f"the job ended before step {step}: {await factory.get(job.id)}")


def _worker_pid(factory: Factory, job: Job) -> int:
    worker = factory._running[job.id].worker
    assert worker is not None
    return worker.pid


async def test_a_job_makes_a_version_with_its_whole_history(factory: Factory, registry: Registry, base: Path) -> None:
    job = await factory.submit(_prompt(base, labels={"team": "care"}, seed=5, languages=("en",)))
    assert job.state is State.QUEUED
    events = await _all(factory, job)
    done = await factory.get(job.id)
    assert done.error is None
    assert [e.payload["state"] for e in events if e.kind is EventKind.STATE] == ["QUEUED", "RUNNING", "SUCCEEDED"]
    assert [e.sequence for e in events] == list(range(1, len(events) + 1))
    assert events[-1].kind is EventKind.FINISHED
    entry = registry.get(done.model)
    assert entry.name == "models/shop/versions/1"
    assert entry.kind == "prompt"
    assert entry.base == "models/tiny-base/versions/1"
    assert entry.base_revision == registry.get(entry.base).revision
    assert entry.conversation.system_prompt == SYSTEM
    assert entry.conversation.chat_template_digest == registry.get(entry.base).conversation.chat_template_digest
    assert any(HANDOVER in e["assistant"] for e in entry.conversation.examples)
    assert entry.data is not None
    assert (entry.data.dataset, entry.data.dataset_digest, entry.data.items) == ("datasets/shop", "digest-of-shop", 24)
    assert entry.training is not None
    assert (entry.training.job, entry.training.seed, entry.training.method) == (job.name, 5, "prompt")
    assert entry.labels == {"team": "care"}
    assert entry.environment["python"]


async def test_events_replay_from_any_number(factory: Factory, base: Path) -> None:
    job = await factory.submit(_prompt(base))
    first = await _all(factory, job)
    for after in (0, 2, len(first) - 1, len(first)):
        assert await _all(factory, job, after) == first[after:]


async def test_the_same_request_id_is_the_same_job(factory: Factory, base: Path) -> None:
    first = await factory.submit(_prompt(base), "r")
    await _all(factory, first)
    again = await factory.submit(_prompt(base), "r")
    assert again.id == first.id
    assert again.state is State.SUCCEEDED


async def test_jobs_wait_their_turn(factory: Factory, source: FakeSource, base: Path) -> None:
    source.gate = asyncio.Event()
    jobs = [await factory.submit(_prompt(base)) for _ in range(3)]
    await source.reached.wait()
    assert [(await factory.get(j.id)).state for j in jobs[1:]] == [State.QUEUED, State.QUEUED]
    assert (await factory.cancel(jobs[1].id)).state is State.CANCELLED
    source.gate.set()
    for job in jobs:
        await _all(factory, job)
    ended = [await factory.get(j.id) for j in jobs]
    assert [j.state for j in ended] == [State.SUCCEEDED, State.CANCELLED, State.SUCCEEDED]
    assert ended[0].ended is not None
    assert ended[2].started is not None
    assert ended[0].ended <= ended[2].started
    assert ended[1].started is None


async def test_closing_a_watch_does_not_stop_the_job(factory: Factory, source: FakeSource, base: Path) -> None:
    source.gate = asyncio.Event()
    job = await factory.submit(_prompt(base))
    watch = factory.watch(job.id)
    await anext(watch)
    await watch.aclose()  # type: ignore[attr-defined]
    source.gate.set()
    await _all(factory, job)
    assert (await factory.get(job.id)).state is State.SUCCEEDED


async def test_a_job_that_is_read_is_cancelled_at_once(factory: Factory, source: FakeSource, base: Path) -> None:
    source.gate = asyncio.Event()
    job = await factory.submit(_prompt(base))
    await source.reached.wait()
    assert (await factory.cancel(job.id)).state is State.CANCELLING
    source.gate.set()
    await _all(factory, job)
    assert (await factory.get(job.id)).state is State.CANCELLED
    with pytest.raises(FailedPrecondition, match="has ended already"):
        await factory.cancel(job.id)


async def test_a_killed_worker_is_a_failed_job_and_the_queue_goes_on(
    factory: Factory, registry: Registry, base: Path
) -> None:
    job = await factory.submit(_lora(base))
    waiting = await factory.submit(_prompt(base))
    await _until_step(factory, job, 3)
    os.kill(_worker_pid(factory, job), signal.SIGKILL)
    await _all(factory, job)
    failed = await factory.get(job.id)
    assert failed.state is State.FAILED
    assert failed.error is not None
    assert failed.error["reason"] == "WORKER_DIED"
    assert "was killed by SIGKILL" in failed.error["message"]
    assert "batch_size" in failed.error["message"]
    await _all(factory, waiting)
    assert (await factory.get(waiting.id)).model == "models/shop/versions/1"


@pytest.mark.slow
async def test_a_training_worker_is_cancelled(factory: Factory, registry: Registry, base: Path) -> None:
    job = await factory.submit(_lora(base))
    await _until_step(factory, job, 3)
    pid = _worker_pid(factory, job)
    assert os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, 0), "what is served goes first"
    assert (await factory.cancel(job.id)).state is State.CANCELLING
    await _all(factory, job)
    assert (await factory.get(job.id)).state is State.CANCELLED
    assert not _alive(pid)
    assert [e.model_id for e in registry.read().entries.values()] == ["tiny-base"]


@pytest.mark.slow
async def test_stopping_the_service_leaves_a_checkpoint_and_says_so(
    tmp_path: Path, registry: Registry, bases: Bases, source: FakeSource, base: Path
) -> None:
    home = tmp_path / "home"
    first = Factory(home, JobStore.in_folder(home), registry, bases, source, grace=60)
    await first.start()
    job = await first.submit(_lora(base))
    waiting = await first.submit(_prompt(base))
    await _until_step(first, job, 3)
    watch = asyncio.create_task(_all(first, job))
    await first.close()
    with pytest.raises(Unavailable, match="watch again"):
        await watch

    second = Factory(home, JobStore.in_folder(home), registry, bases, source)
    await second.start()
    stopped = await second.get(job.id)
    assert stopped.state is State.FAILED
    assert stopped.error is not None
    assert stopped.error["reason"] == "INTERRUPTED"
    assert "A checkpoint lies in" in stopped.error["message"]
    assert any(os.listdir(stopped.error["metadata"]["checkpoints"]))
    await _all(second, waiting)
    assert (await second.get(waiting.id)).state is State.SUCCEEDED, "the queue outlives the service"
    await second.close()


async def test_a_service_that_died_says_what_became_of_its_jobs(
    tmp_path: Path, registry: Registry, bases: Bases, source: FakeSource, base: Path
) -> None:
    home = tmp_path / "home"
    store = JobStore.in_folder(home)
    spec = _prompt(base)
    for job_id, states in (("ran", [State.RUNNING]), ("stopping", [State.RUNNING, State.CANCELLING]), ("new", [])):
        store.add(Job(id=job_id, spec=spec, created=datetime.now(UTC), base_name=bases.resolve(str(base)).name))
        for state in states:
            store.change(job_id, state)
    store.close()
    factory = Factory(home, JobStore.in_folder(home), registry, bases, source)
    await factory.start()
    ran = await factory.get("ran")
    assert ran.state is State.FAILED
    assert ran.error is not None
    assert "was stopped while trainingJobs/ran was running" in ran.error["message"]
    assert (await factory.get("stopping")).state is State.CANCELLED
    await _all(factory, await factory.get("new"))
    assert (await factory.get("new")).state is State.SUCCEEDED
    await factory.close()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"method": "lara"}, NotFound, "did you mean 'lora'"),
        ({"base": "tiny-bose"}, NotFound, "There is no base model"),
        ({"base": ""}, InvalidArgument, "spec.base: the method prompt needs a base"),
        ({"method": "scratch"}, InvalidArgument, "spec.base: the method scratch takes no base"),
        ({"dataset": "datasets/nope"}, NotFound, "There is no dataset"),
        ({"model_id": "My Model"}, InvalidArgument, "spec.model_id"),
        ({"parameters": {"examples": -3}}, InvalidArgument, "spec.parameters.examples: must be at least 0"),
        ({"parameters": {"exampels": 3}}, InvalidArgument, "spec.parameters.exampels: unknown parameter; did you mean"),
    ],
)
async def test_a_wrong_request_is_refused_before_any_work(
    factory: Factory, base: Path, change: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        await factory.submit(_prompt(base, **change))
    assert await factory.page(10, None, None) == []


async def test_an_empty_split_is_refused(factory: Factory, source: FakeSource, base: Path) -> None:
    source.found = []
    with pytest.raises(FailedPrecondition, match="no item in its training split"):
        await factory.submit(_prompt(base))


async def test_what_is_left_out_is_warned_of(factory: Factory, source: FakeSource, base: Path) -> None:
    source.found.append(Item("datasets/shop/items/x", (Turn("user", "hello?"),), language="en"))
    job = await factory.submit(_prompt(base))
    warnings = [e.payload["text"] for e in await _all(factory, job) if e.kind is EventKind.WARNING]
    assert warnings == ["1 of 25 conversations left out: no assistant turn after a user turn."]


async def test_a_language_that_nobody_speaks_fails_with_the_reason(factory: Factory, base: Path) -> None:
    job = await factory.submit(_prompt(base, languages=("fr",)))
    await _all(factory, job)
    failed = await factory.get(job.id)
    assert failed.state is State.FAILED
    assert failed.error is not None
    assert failed.error["reason"] == "NOTHING_TO_TRAIN"
    assert "(fr)" in failed.error["message"]


@pytest.mark.parametrize("full", [State.RUNNING, State.SUCCEEDED])
async def test_while_the_disk_is_full_watchers_are_told_and_the_job_goes_on_afterwards(
    tmp_path: Path,
    registry: Registry,
    bases: Bases,
    source: FakeSource,
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    full: State,
) -> None:
    class SmallDisk(JobStore):
        room = False

        def change(self, job_id: str, state: State, **more: Any) -> Job:
            if state is full and not self.room:
                raise disk.full("the job database")
            return super().change(job_id, state, **more)

    monkeypatch.setattr("factory_svc.factory.ROOM_SECONDS", 0.01)
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    store = SmallDisk(f"sqlite:///{home}/factory.sqlite")
    factory = Factory(home, store, registry, bases, source)
    await factory.start()
    job = await factory.submit(_prompt(base))
    with pytest.raises(ResourceExhausted, match="The disk is full"):
        await _all(factory, job)
    store.room = True
    while (running := factory._running.get(job.id)) and running.unwritten:  # noqa: ASYNC110 - no event tells of it
        await asyncio.sleep(0.01)
    events = await _all(factory, job)
    assert [e.payload["state"] for e in events if e.kind is EventKind.STATE] == ["QUEUED", "RUNNING", "SUCCEEDED"]
    assert registry.get((await factory.get(job.id)).model).model_id == "shop"

    store.room = False
    stuck = await factory.submit(_prompt(base))
    with pytest.raises(ResourceExhausted):
        await _all(factory, stuck)
    await asyncio.wait_for(factory.close(), 5)


@pytest.mark.slow
async def test_a_failed_job_keeps_what_tells_why_and_nothing_else(
    tmp_path: Path, registry: Registry, bases: Bases, source: FakeSource, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factory_svc.workplace.KEPT", 2)
    home = tmp_path / "home"
    factory = Factory(home, JobStore.in_folder(home), registry, bases, source)
    await factory.start()
    for left in ("old", "older"):
        (home / "jobs" / left).mkdir(parents=True)
        os.utime(home / "jobs" / left, (1, 1))
    good = await factory.submit(_prompt(base))
    await _all(factory, good)
    assert not (home / "jobs" / good.id).exists()
    bad = await factory.submit(_prompt(base, method="lora", parameters={"max_length": 8, "max_steps": 1}))
    await _all(factory, bad)
    failed = await factory.get(bad.id)
    assert failed.state is State.FAILED
    kept = home / "jobs" / bad.id
    assert not (kept / "examples.jsonl").exists()
    assert (kept / "task.json").is_file()
    assert failed.error is not None
    log = kept / "worker.log"
    assert (str(log) in failed.error["message"]) == bool(log.stat().st_size)
    await factory.close()
    assert len(list((home / "jobs").iterdir())) == 2


@pytest.mark.slow
async def test_a_worker_says_why_it_failed(factory: Factory, base: Path) -> None:
    spec = _lora(base, max_length=8, max_steps=1)
    job = await factory.submit(spec)
    await _all(factory, job)
    failed = await factory.get(job.id)
    assert failed.error is not None
    assert failed.error["code"] == "INVALID_ARGUMENT"
    assert "Nothing is left to train on" in failed.error["message"]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
