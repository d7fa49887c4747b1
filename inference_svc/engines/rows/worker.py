"""The thread that torch runs on, and the two ways across: commands in, events out.

The event loop posts commands, which run between steps; whatever the rows said during a step goes back in one call.
This module knows no request and no model.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Generic, Protocol, TypeVar

from inference_svc.engines.rows import bell

log = logging.getLogger(__name__)

SWITCH_SECONDS = 0.0005
"""How soon the interpreter hands over to the event loop's thread when that has something to do. Operations of torch let
go of the interpreter for microseconds, too short for another thread to wake up in, so at Python's own 5 ms each message
to a client could wait so long while a step runs."""

TURN_SECONDS = 0.002
"""How long the thread waits at most for one turn of the event loop."""
TURNS = 3
"""Of the event loop, in which a message is passed on, written, and the write's end is seen."""
QUIET_SECONDS = 0.0003
"""A turn that took no longer had nothing to do."""
GATHER_SECONDS = 0.01
"""How long the thread waits at most, after each request, for another that comes together with it. Without that the
first of a burst starts the model, which then delays the others, and the batch fills up one small prefill at a time."""
LONGEST_GATHER = 0.04
"""How long it waits for all of them: the event loop takes some 32 calls in it."""

NICENESS = 10
"""Added to the niceness of the thread, and so of all threads that torch starts for it (Linux only): the event loop,
which wants a processor for a moment to refuse a call or pass a word on, gets it at once, though steps keep all of them
busy."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Work(Protocol):
    """What the thread keeps doing while there is something to do."""

    @property
    def idle(self) -> bool:
        """Nothing to do until the next command."""
        ...

    def step(self) -> None:
        """One bounded piece of work."""
        ...

    def broken(self, error: Exception) -> None:
        """A step raised what it should have handled: end everything that it held."""
        ...


class Worker(Generic[Item]):
    """One thread, one piece of work, one event loop that is told.

    Args:
        name: of the thread.
        deliver: called on the event loop with all items that a step put out.

    Attributes:
        bell: for steps that can ring it, or None.
        coming: requests on their way here that only wait for something which does not need the event loop. Written on
            the loop.
    """

    def __init__(self, name: str, deliver: Callable[[list[Item]], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._deliver = deliver
        self._commands: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._out: list[Item] = []
        self._batches: deque[list[Item]] = deque()
        self.bell = bell.made(self._loop, self._pass_on)
        self.coming = 0
        self._work: Work | None = None
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_SECONDS))
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put_out(self, item: Item) -> None:
        """Hand something to the event loop; called by the work, on the thread."""
        self._out.append(item)

    def hand_out(self) -> None:
        """Send what was put out to the event loop without waiting for the end of the step; called by the work, on the
        thread. Where the bell is rung by what follows, it leaves then."""
        late = self.bell is not None and self.bell.armed
        if self._out:
            self._batches.append(self._out)
            self._out = []
        if late or self.bell is None or not self.bell.taken:
            # Whoever should have rung has not: a step of another kind, say.
            self._hand_out_now()
        elif self._batches:
            self.bell.arm()

    def _hand_out_now(self) -> None:
        if self.bell is not None:
            self.bell.disarm()
        if self._out:
            self._batches.append(self._out)
            self._out = []
        if self._batches:
            self._tell(self._pass_on)

    def _pass_on(self) -> None:
        """On the event loop: deliver what is there."""
        while self._batches:
            self._deliver(self._batches.popleft())

    def hand_over(self) -> None:
        """`hand_out`, then leave the interpreter to the event loop until it has passed on what it got.

        For what a client waits for: beside a running step each turn of the loop, of which a message needs several, may
        have to wait for the interpreter, and each program on the message's way for a processor.
        """
        if not self._out:
            return
        self._hand_out_now()
        for _ in range(TURNS):
            if not self._turn():
                break

    def post(self, command: Callable[[], None]) -> None:
        """Run a command on the thread before its next step; from any thread. It must not raise."""
        self._commands.put(command)

    async def call(self, function: Callable[[], Result]) -> Result:
        """Run a function on the thread between two steps and wait for what it returns or raises."""
        future: asyncio.Future[Result] = self._loop.create_future()

        def settle(result: Result | None, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        def run() -> None:
            try:
                result = function()
            except Exception as error:
                self._tell(settle, None, error)
            else:
                self._tell(settle, result, None)

        self._commands.put(run)
        return await future

    def start(self, work: Work) -> None:
        """Set what the thread works on; called on the thread, through `call`."""
        self._work = work

    async def stop(self) -> None:
        """End the thread after its present step and wait for it."""
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join)
        self._work = None
        self._pass_on()
        if self.bell is not None:
            self.bell.close()
            self.bell = None

    def _run(self) -> None:
        _give_way()
        while self._take_commands():
            work = self._work
            if work is not None and not work.idle:
                try:
                    work.step()
                except Exception as error:
                    log.exception("a step of the engine failed; its requests are ended")
                    work.broken(error)
            if work is None or work.idle:
                self._hand_out_now()
            else:
                self.hand_out()

    def _take_commands(self) -> bool:
        """Run what was posted; waits for the first command if there is nothing else to do. False at the end."""
        wait = (self._work is None or self._work.idle) and not self._out
        taken = self._drain(None if wait else 0.0)
        # Only when there was nothing to do: running rows must not wait for those who may come.
        newest = monotonic() if wait else 0.0
        longest = newest + LONGEST_GATHER
        while taken is not None and (began := monotonic()) < (until := min(longest, newest + GATHER_SECONDS)):
            if self.coming:
                taken = self._drain(until - began)
            else:
                self._turn()
                taken = self._drain(0.0)
            if taken:
                newest = monotonic()
            elif not self.coming and monotonic() - began < QUIET_SECONDS:
                break
        return taken is not None

    def _drain(self, seconds: float | None) -> int | None:
        """Run what is posted; waits so long for the first of it, None for ever. How many commands that were, or None at
        the end."""
        taken = 0
        while True:
            try:
                command = self._commands.get(block=seconds != 0.0, timeout=seconds or None)
            except Empty:
                return taken
            if command is None:
                return None
            command()
            taken += 1
            seconds = 0.0

    def _turn(self) -> bool:
        """Let the event loop go round: what it has been told before, and the tasks which that woke, have run then.

        Returns:
            Whether it did in time.
        """
        turned = threading.Event()
        self._tell(self._loop.call_soon, turned.set)
        return turned.wait(TURN_SECONDS)

    def _tell(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            log.warning("the event loop is gone; %d results of the engine have no reader", len(arguments))


def _give_way() -> None:
    """Make the calling thread nicer. Elsewhere than on Linux niceness is a whole process's."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        # A sandbox may forbid it, and an engine without its thread would leave every request waiting.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS)
