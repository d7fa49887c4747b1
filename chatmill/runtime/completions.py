"""A server of gRPC's inner layer, joined to asyncio's event loop.

gRPC's core tells in a completion queue what has happened: a call came, a message was read, another one has left. Here
one thread waits for the first such event and wakes up the event loop, which then takes all further ones itself, until
nothing is left, and only then lets the thread wait again. So a burst of calls passes from one thread to the other once,
and what a call does next is answered in the loop's own thread, without a future, a task or a wake-up of its own.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from chatmill.runtime.inner import layer

log = logging.getLogger(__name__)

Handler: TypeAlias = Callable[[Any], None]
"""What an operation's tag is: called in the event loop's thread with the event, which says whether it went well."""

AT_ONCE = 64
"""Events that are handled before the loop gets on with other things."""
HELD_SECONDS = 0.05
"""How long the thread waits for the loop to take what there is. Where something holds up the loop for longer, the
thread goes on reading, so that pings are answered."""
LOOK_SECONDS = 1.0
"""How often the thread looks whether the event loop is still there while nothing comes."""
_NOW = 0.0


class Completions:
    """A server whose events are handled in the event loop that is running when this is made.

    Args:
        options: gRPC's channel arguments.
        shut: called when it has ended. From then on an operation of a call that is still there would end the process.

    Attributes:
        queue: gRPC's own, to start operations with. Their tags are `Handler`s.
        server: gRPC's own, which knows neither handlers nor coroutines.
        ended: set when no call is left after `shut`.
    """

    def __init__(self, options: Sequence[tuple[str, Any]], shut: Callable[[], None]) -> None:
        self.queue: Any = layer.CompletionQueue()
        self.server: Any = layer.Server(tuple(options), False)
        self.server.register_completion_queue(self.queue)
        self.ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._found: deque[Any] = deque()
        self._taken = threading.Lock()
        self._taken.acquire()
        self._shutting = False
        self._tell = shut
        # It keeps queue and server alive: gRPC would wait for ever for the calls of one that nobody refers to any more.
        self._thread = threading.Thread(target=self._wait, name="grpc-completions", daemon=True)

    def start(self) -> None:
        """Begin to handle events."""
        self.server.start()
        self._thread.start()

    def shut(self) -> None:
        """Take no more calls, and end when none is left."""
        if not self._shutting:
            self._shutting = True
            self.server.shutdown(self.queue, self._on_shut)

    def join(self) -> None:
        """Wait until the thread has gone, which it does as soon as this has `ended`."""
        self._thread.join()

    def take(self) -> bool:
        """Handle what has happened so far, without waiting; whether there was anything."""
        found, poll = self._found, self.queue.poll
        timeout, shutdown = layer.CompletionType.queue_timeout, layer.CompletionType.queue_shutdown
        for taken in range(AT_ONCE):
            event = found.popleft() if found else poll(_NOW)
            kind = event.completion_type
            if kind == timeout:
                return taken > 0
            if kind == shutdown:
                self.ended.set()
                return False
            try:
                event.tag(event)
            except Exception:
                log.exception("an event of gRPC's was not handled")
            # An event that keeps a call alive would keep the server from ending.
            del event
        return True

    def _take_all(self) -> None:
        more = True
        try:
            more = self.take()
        finally:
            if more:
                self._loop.call_soon(self._take_all)
            elif self._taken.locked():
                self._taken.release()

    def _on_shut(self, event: Any) -> None:
        self._tell()
        self._destroy()

    def _destroy(self) -> None:
        self.queue.shutdown()
        self.server.destroy()

    def _wait(self) -> None:
        kind = layer.CompletionType
        while not self._loop.is_closed():
            event = self.queue.poll(time.time() + LOOK_SECONDS)
            if event.completion_type == kind.queue_timeout:
                continue
            ended = event.completion_type == kind.queue_shutdown
            self._found.append(event)
            del event
            try:
                self._loop.call_soon_threadsafe(self._take_all)
            except RuntimeError:
                break  # it was closed just now
            if ended:
                return
            self._taken.acquire(timeout=HELD_SECONDS)
        self._abandon()

    def _abandon(self) -> None:
        """The event loop was closed and nobody has stopped the server: end it here, so that clients are told."""
        self.shut()
        self.server.cancel_all_calls()
        while True:
            event = self._found.popleft() if self._found else self.queue.poll()
            if event.completion_type == layer.CompletionType.queue_shutdown:
                return
            if event.tag == self._on_shut:
                self._destroy()
            del event
