"""The thread of the engine: what comes together is taken together, and first words leave before the next step."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time

import pytest

from inference_svc.engines.rows.worker import LONGEST_GATHER, NICENESS, TURNS, Worker


class Steps:
    """Work that notes what was there at each step."""

    def __init__(self, worker: Worker[str]) -> None:
        self.seen: list[list[str]] = []
        self.there: list[str] = []
        self._worker = worker
        self.events: list[str] = []

    @property
    def idle(self) -> bool:
        return not self.there

    def step(self) -> None:
        self.seen.append(list(self.there))
        for name in self.there:
            self._worker.put_out(name)
        self._worker.hand_over()
        self.events.append("stepped")
        self.there.clear()

    def broken(self, error: Exception) -> None:
        raise AssertionError(error)


async def _started(deliver) -> tuple[Worker[str], Steps]:
    worker: Worker[str] = Worker("test", deliver)
    steps = Steps(worker)
    await worker.call(lambda: worker.start(steps))
    return worker, steps


async def test_a_burst_is_one_step() -> None:
    done = asyncio.Event()
    worker, steps = await _started(lambda batch: done.set())

    async def submit(name: str) -> None:
        await asyncio.sleep(0)
        worker.post(lambda: steps.there.append(name))

    names = [str(number) for number in range(16)]
    await asyncio.gather(*(submit(name) for name in names))
    await done.wait()
    assert sorted(steps.seen[0], key=int) == names
    await worker.stop()


async def test_gathering_goes_on_as_long_as_more_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference_svc.engines.rows.worker.GATHER_SECONDS", 0.5)
    monkeypatch.setattr("inference_svc.engines.rows.worker.LONGEST_GATHER", 60.0)
    done = asyncio.Event()
    worker, steps = await _started(lambda batch: done.set())
    for _ in range(5):
        worker.post(lambda: steps.there.append("x"))
        # The event loop is busy with the next call.
        threading.Event().wait(0.15)
        await asyncio.sleep(0)
    await done.wait()
    await worker.stop()
    assert list(map(len, steps.seen)) == [5]


async def test_gathering_waits_for_what_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference_svc.engines.rows.worker.GATHER_SECONDS", 5.0)
    monkeypatch.setattr("inference_svc.engines.rows.worker.LONGEST_GATHER", 60.0)
    done = asyncio.Event()
    worker, steps = await _started(lambda batch: done.set())
    worker.coming = 1
    worker.post(lambda: steps.there.append("first"))
    # Long turns of a loop with nothing to do, which would end the gathering otherwise.
    for _ in range(20):
        await asyncio.sleep(0.005)
    assert not steps.seen
    worker.coming = 0
    worker.post(lambda: steps.there.append("second"))
    await done.wait()
    await worker.stop()
    assert steps.seen == [["first", "second"]]


async def test_nobody_waits_long_for_what_never_comes() -> None:
    done = asyncio.Event()
    worker, steps = await _started(lambda batch: done.set())
    worker.coming = 1
    worker.post(lambda: steps.there.append("first"))
    await asyncio.wait_for(done.wait(), 100 * LONGEST_GATHER)
    await worker.stop()
    assert steps.seen == [["first"]]


async def test_gathering_has_an_end() -> None:
    worker, steps = await _started(lambda batch: None)
    patience = time.perf_counter() + 1000 * LONGEST_GATHER
    count = 0
    while len(steps.seen) < 3 and time.perf_counter() < patience:
        worker.post(lambda: steps.there.append("x"))
        count += 1
        await asyncio.sleep(0)
    assert len(steps.seen) >= 3
    await worker.stop()
    assert sum(map(len, steps.seen)) <= count


async def test_what_was_handed_over_is_passed_on_before_the_step_goes_on() -> None:
    order: list[str] = []
    woken = asyncio.Event()
    worker, steps = await _started(lambda batch: woken.set())
    steps.events = order

    async def reader() -> None:
        await woken.wait()
        for _ in range(TURNS - 1):
            await asyncio.sleep(0)
        order.append("passed on")

    task = asyncio.create_task(reader())
    await asyncio.sleep(0)
    worker.post(lambda: steps.there.append("x"))
    await task
    await worker.stop()
    assert order == ["passed on", "stepped"]


async def test_a_loop_that_is_busy_holds_nobody_up() -> None:
    worker, steps = await _started(lambda batch: None)
    stepped = threading.Event()
    worker.post(lambda: steps.there.append("x"))
    step = steps.step
    steps.step = lambda: (step(), stepped.set())  # type: ignore[method-assign]
    # Blocks the event loop on purpose.
    assert stepped.wait(2.0)
    await worker.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere niceness is a whole process's")
async def test_the_event_loop_goes_first() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    worker, _ = await _started(lambda batch: None)
    theirs = await worker.call(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    await worker.stop()
    assert theirs == min(19, before + NICENESS)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


class Counting:
    """Work of some steps, each of which puts out its number."""

    def __init__(self, worker: Worker[int], steps: int, *, rings: bool) -> None:
        self.left, self.last = steps, steps
        self._worker, self._rings = worker, rings
        self.arrived = threading.Semaphore(0)
        self.in_time: list[bool] = []

    @property
    def idle(self) -> bool:
        return not self.left

    def step(self) -> None:
        bell = self._worker.bell
        assert bell is not None
        if self.left < self.last and self._rings:
            assert bell.armed
            file = bell.cell.value
            bell.disarm()
            os.eventfd_write(file, 1)
            self.in_time.append(self.arrived.acquire(timeout=5))
        self._worker.put_out(self.left)
        self.left -= 1

    def broken(self, error: Exception) -> None:
        raise AssertionError(error)


@pytest.mark.skipif(sys.platform != "linux", reason="there are no bells elsewhere")
@pytest.mark.parametrize("rings", [True, False])
async def test_what_a_step_put_out_leaves_when_the_next_rings_or_has_not_rung(rings: bool) -> None:
    got: list[int] = []
    done = asyncio.Event()

    def deliver(batch: list[int]) -> None:
        for number in batch:
            got.append(number)
            work.arrived.release()
            if number == 1:
                done.set()

    worker: Worker[int] = Worker("test", deliver)
    work = Counting(worker, 5, rings=rings)
    assert worker.bell is not None
    worker.bell.taken = True
    await worker.call(lambda: worker.start(work))
    await asyncio.wait_for(done.wait(), 10)
    assert got == [5, 4, 3, 2, 1]
    assert work.in_time == [True] * (4 if rings else 0)
    await worker.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="there are no bells elsewhere")
async def test_a_worker_that_stops_leaves_no_file_and_nothing_unsaid() -> None:
    before = len(os.listdir("/proc/self/fd"))
    got: list[str] = []
    worker: Worker[str] = Worker("test", got.extend)
    assert worker.bell is not None
    worker.bell.taken = True
    worker.put_out("last words")
    worker.hand_out()
    assert worker.bell.armed
    await worker.stop()
    assert got == ["last words"]
    assert len(os.listdir("/proc/self/fd")) == before
