"""Blocking work as a stream."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from chatmill.errors import Cancelled
from dataset_svc import work


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


async def test_reports_come_in_order_and_the_result_last(executor: ThreadPoolExecutor) -> None:
    def job(report: Callable[[int], None], check: Callable[[], None]) -> str:
        for i in range(5):
            check()
            report(i)
        return "done"

    assert [event async for event in work.stream(executor, job, -1)] == [-1, 0, 1, 2, 3, 4, "done"]


async def test_an_error_ends_the_stream_after_its_reports(executor: ThreadPoolExecutor) -> None:
    def job(report: Callable[[int], None], check: Callable[[], None]) -> str:
        report(1)
        raise KeyError("x")

    stream = work.stream(executor, job, 0)
    assert [await anext(stream), await anext(stream)] == [0, 1]
    with pytest.raises(KeyError):
        await anext(stream)


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_leaving_returns_only_when_the_work_has_ended(executor: ThreadPoolExecutor, how: str) -> None:
    began, ended = threading.Event(), threading.Event()
    outcome: list[BaseException] = []

    def job(report: Callable[[int], None], check: Callable[[], None]) -> str:
        report(1)
        began.set()
        try:
            while True:
                check()
                threading.Event().wait(0.005)
        except Cancelled as error:
            outcome.append(error)
            threading.Event().wait(0.1)  # tidying up takes a moment
            ended.set()
            raise

    stream = work.stream(executor, job, 0)

    async def listen() -> None:
        async for _ in stream:
            pass

    if how == "cancel":
        task = asyncio.create_task(listen())
        await asyncio.to_thread(began.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        assert [await anext(stream), await anext(stream)] == [0, 1]
        await stream.aclose()  # type: ignore[attr-defined]
    assert ended.is_set()
    assert len(outcome) == 1


async def test_work_that_waits_for_a_thread_is_never_begun_once_left(executor: ThreadPoolExecutor) -> None:
    gate, ran = threading.Event(), threading.Event()
    executor.submit(gate.wait, 10)

    def job(report: Callable[[int], None], check: Callable[[], None]) -> str:
        ran.set()
        return "done"

    stream = work.stream(executor, job, 0)
    assert await anext(stream) == 0
    await asyncio.wait_for(stream.aclose(), 5)  # type: ignore[attr-defined]
    gate.set()
    executor.shutdown()
    assert not ran.is_set()


async def test_iterate_makes_one_value_at_a_time() -> None:
    made: list[int] = []

    def make(value: int) -> int:
        made.append(value)
        return value

    async for value in work.iterate(map(make, range(3))):
        assert made == list(range(value + 1))
    assert made == [0, 1, 2]
