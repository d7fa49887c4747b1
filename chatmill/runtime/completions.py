"""gRPC's completion queue, joined to asyncio's event loop.

gRPC's core tells in a completion queue what has happened: a call came, a message was read, another one has left. Here
one thread waits for the first such event and wakes up the event loop, which then takes all further ones itself, until
nothing is left, and only then lets the thread wait again. So a burst of calls passes from one thread to the other once,
and what a call does next is answered in the loop's own thread, without a future, a task or a wake-up of its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

from grpc._cython import cygrpc

Handler: TypeAlias = Callable[[Any], None]
"""What an operation's tag is: called in the event loop's thread with the event, which says whether it went well."""

AT_ONCE = 64
"""Events that are handled before the loop gets on with other things."""
HELD_SECONDS = 0.05
"""How long the thread waits for the loop to take what there is. Where something holds up the loop for longer, the
thread goes on reading, so that pings are answered."""
_NOW = 0.0
_TIMEOUT = cygrpc.CompletionType.queue_timeout
_SHUTDOWN = cygrpc.CompletionType.queue_shutdown


class Completions:
    """A completion queue whose events are handled in the event loop that is running when this is made.

    Attributes:
        queue: gRPC's own, to start operations with. Their tags are `Handler`s.
    """

    def __init__(self) -> None:
        self.queue = cygrpc.CompletionQueue()
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._found: deque[Any] = deque()
        self._taken = threading.Lock()
        self._taken.acquire()
        self._thread = threading.Thread(target=self._wait, name="grpc-completions", daemon=True)

    def start(self) -> None:
        """Begin to handle events."""
        self._thread.start()

    async def end(self) -> None:
        """Handle what is still under way and stop. Nothing new may be started."""
        self.queue.shutdown()
        await self._ended.wait()

    def take(self) -> bool:
        """Handle what has happened so far, without waiting; whether there was anything."""
        found, poll = self._found, self.queue.poll
        for taken in range(AT_ONCE):
            event = found.popleft() if found else poll(_NOW)
            kind = event.completion_type
            if kind is _TIMEOUT:
                return taken > 0
            if kind is _SHUTDOWN:
                self._ended.set()
                return False
            event.tag(event)
            # An event that keeps a call alive would keep the queue from shutting down.
            del event
        return True

    def _take_all(self) -> None:
        if self.take():
            self._loop.call_soon(self._take_all)
        elif self._taken.locked():
            self._taken.release()

    def _wait(self) -> None:
        while True:
            event = self.queue.poll()
            ended = event.completion_type is _SHUTDOWN
            self._found.append(event)
            del event
            self._loop.call_soon_threadsafe(self._take_all)
            if ended:
                return
            self._taken.acquire(timeout=HELD_SECONDS)
