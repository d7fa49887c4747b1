"""Blocking work in a thread, seen from an event loop as a stream of progress that can be stopped."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias, TypeVar

from chatmill.errors import Cancelled

P = TypeVar("P")
R = TypeVar("R")
Work: TypeAlias = Callable[[Callable[[P], None], Callable[[], None]], R]


async def iterate(values: Iterator[R]) -> AsyncIterator[R]:
    """`values`, each made in a thread; the next is made only when the one before has been taken."""
    while True:
        value = await asyncio.to_thread(_next, values)
        if value is None:
            return
        yield value


async def stream(executor: ThreadPoolExecutor, work: Work[P, R], waiting: P) -> AsyncIterator[P | R]:
    """Run `work(report, check)` in a thread; yields what it reports, and at the end its result.

    When the iterator is closed or its task is cancelled, `check` raises `Cancelled` in the thread, and the iterator
    ends only after the thread did: nothing goes on behind a caller who has left.

    Args:
        executor: its threads are used; when all are busy the work waits.
        work: the work; it must call `check` often.
        waiting: yielded at once, so that a caller whose work has to wait sees that it was taken.
    """
    loop = asyncio.get_running_loop()
    reports: asyncio.Queue[P | None] = asyncio.Queue()
    stopped = threading.Event()

    def check() -> None:
        if stopped.is_set():
            raise Cancelled("the call was cancelled; nothing was created.")

    def report(progress: P) -> None:
        loop.call_soon_threadsafe(reports.put_nowait, progress)

    def run() -> R:
        check()
        return work(report, check)

    submitted = executor.submit(run)
    running = asyncio.wrap_future(submitted)
    running.add_done_callback(lambda _: reports.put_nowait(None))
    try:
        yield waiting
        while (progress := await reports.get()) is not None:
            yield progress
        yield await running
    finally:
        stopped.set()
        if not submitted.cancel():  # it has begun
            await asyncio.wait([running])
            running.exception()  # asked for, so that a stopped work's Cancelled is not logged as never retrieved


def _next(values: Iterator[R]) -> R | None:
    # StopIteration can't pass through a future
    return next(values, None)
