"""Keeps the processes of a mesh alive, and ends them in order.

A service that exits before it was ever ready ends the mesh: it would not start any better a second time. One that dies
later is started again, after half a second and then twice as long each time; after `LIMIT` deaths within `WINDOW`
seconds the mesh ends, with the last lines of that service's log, since a service that keeps dying needs a person. The
others go on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from chatmill import disk
from chatmill.cli.supervision.process import Part, ServiceProcess
from chatmill.config import Config
from chatmill.errors import ChatmillError, ResourceExhausted, Unavailable
from chatmill.runtime import endpoint

LIMIT = 5
WINDOW = 120.0
FIRST_DELAY = 0.5
START_SECONDS = 600.0
"""A service that is not ready by then has hung; loading libraries takes minutes on a machine that is busy otherwise."""
STAGGER = 1.0
"""Longest wait, in seconds, for one service to end before the next is told to."""
STOP_SECONDS = 20.0
"""Time to write checkpoints and close stores, after running calls have had theirs."""


class Listener(Protocol):
    """Is told what happens to the services."""

    def ready(self, part: Part, seconds: float) -> None:
        """The service answers, so many seconds after it was started."""

    def died(self, part: Part, code: int, last_words: Sequence[str], delay: float) -> None:
        """The service ended unasked; it is started again in `delay` seconds."""

    def stopped(self, part: Part, graceful: bool) -> None:
        """The service ended on request, by itself or killed after its time ran out."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for what.

    Attributes:
        first_delay: seconds before the first restart; doubles with each death in `window`.
        limit: deaths within `window` seconds after which the mesh ends.
        window: see `limit`.
        start: seconds in which a service must become ready.
        stop: seconds that a service gets to stop, beyond what the configuration grants its calls.
    """

    first_delay: float = FIRST_DELAY
    limit: int = LIMIT
    window: float = WINDOW
    start: float = START_SECONDS
    stop: float = STOP_SECONDS


class Supervisor:
    """The processes of one mesh.

    Args:
        parts: what to start, in this order; stopped in the reverse one.
        arguments: service name to what it is told on its command line.
        config: the configuration that the services run under; for health checks and the time they get to stop.
        listener: is told what happens.
        patience: how long to wait for what.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        arguments: Mapping[str, Sequence[str]],
        config: Config,
        listener: Listener,
        patience: Patience | None = None,
    ) -> None:
        self._processes = [ServiceProcess(part, arguments[part.name], config.home) for part in parts]
        self._config = config
        self._listener = listener
        self._patience = patience or Patience()
        self._watchers: list[asyncio.Task[None]] = []
        self._failed: asyncio.Future[ChatmillError] = asyncio.get_running_loop().create_future()

    @property
    def pids(self) -> dict[str, int]:
        """Service name to the process id of its newest start."""
        return {process.part.name: process.pid for process in self._processes}

    def log(self, name: str) -> Path:
        """Where the output of a service goes."""
        return next(process.log for process in self._processes if process.part.name == name)

    async def start(self) -> None:
        """Start all services at once and wait until each is ready.

        Raises:
            Unavailable: one ended or hung instead; its last words are in the message. The others have been stopped.
            ResourceExhausted: reason `DISK_FULL`; that was why.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for process in self._processes:
                    group.create_task(self._start(process))
        except BaseExceptionGroup as errors:
            await self.stop()
            raise errors.exceptions[0] from None
        except BaseException:
            await self.stop()
            raise
        self._watchers = [asyncio.create_task(self._watch(process)) for process in self._processes]

    async def failure(self) -> ChatmillError:
        """Wait until a service has died once too often; why the mesh must end."""
        return await asyncio.shield(self._failed)

    async def stop(self) -> None:
        """Stop all in the reverse order of their start; each gets the time that the configuration grants.

        The next one is told when the one before has ended, or a second after it was told.
        """
        for watcher in self._watchers:
            watcher.cancel()
        config = self._config
        calls = config.mesh.drain_seconds + config.mesh.grace_seconds + self._patience.stop
        stopping = []
        for process in reversed(self._processes):
            if process.pid and process.returncode is None:
                checkpoint = config.factory.worker_grace_seconds if process.part.name == "factory" else 0.0
                task = asyncio.create_task(self._stop(process, calls + checkpoint))
                stopping.append(task)
                # its calls of the others are over by then; what is left is the interpreter's own end
                await asyncio.wait((task,), timeout=STAGGER)
        await asyncio.gather(*stopping)

    def kill(self) -> None:
        """End all at once; for the second Ctrl-C."""
        for process in self._processes:
            process.kill()

    async def _stop(self, process: ServiceProcess, seconds: float) -> None:
        self._listener.stopped(process.part, await process.stop(seconds))

    async def _start(self, process: ServiceProcess) -> None:
        began = time.monotonic()
        with disk.clear_errors(str(process.log), self._config.home):
            await process.start()
        ended = asyncio.create_task(process.wait())
        ready = asyncio.create_task(self._until_ready(process))
        try:
            await asyncio.wait((ended, ready), timeout=self._patience.start, return_when=asyncio.FIRST_COMPLETED)
            if ready.done() and not ready.cancelled():
                ready.result()
                self._listener.ready(process.part, time.monotonic() - began)
                return
            if ended.done():
                raise self._error(process, f"ended with code {ended.result()} while starting")
            raise self._error(process, f"was not ready after {self._patience.start:.0f} s")
        finally:
            for task in (ended, ready):
                task.cancel()
            await asyncio.gather(ended, ready, return_exceptions=True)

    async def _until_ready(self, process: ServiceProcess) -> None:
        """Return when the service says that it serves."""
        part = process.part
        while not (self._announced(process) if part.grpc else await _listens(part)):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
        if part.grpc:
            from chatmill.runtime import channel, health

            async with channel.connect(endpoint.target_of(part.host, part.port), self._config) as connection:
                while not await health.check(connection):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

    def _announced(self, process: ServiceProcess) -> bool:
        found = endpoint.read(self._config.home, process.part.name)
        return found is not None and found.pid == process.pid

    async def _watch(self, process: ServiceProcess) -> None:
        """Start the service again whenever it dies, until it does so too often."""
        deaths: deque[float] = deque()
        while True:
            code = await process.wait()
            deaths.append(time.monotonic())
            while deaths[0] < deaths[-1] - self._patience.window:
                deaths.popleft()
            if len(deaths) >= self._patience.limit:
                times = f"died {len(deaths)} times within {self._patience.window:.0f} s, last with code {code}"
                self._fail(self._error(process, times))
                return
            delay = self._patience.first_delay * 2 ** (len(deaths) - 1)
            self._listener.died(process.part, code, process.last_words(), delay)
            await asyncio.sleep(delay)
            # a start that fails is one more death
            with contextlib.suppress(Unavailable, ResourceExhausted):
                await self._start(process)
                continue
            process.kill()

    def _error(self, process: ServiceProcess, what: str) -> ChatmillError:
        """Why the mesh ends: the service's last words, or the full disk that kept it from saying any."""
        what = f"{process.part.name} {what}"
        if disk.free(self._config.home) < disk.PROBE:
            return disk.full(f"{self._config.home} ({what})", self._config.home)
        lines = process.last_words()
        said = "\n".join(f"    {line}" for line in lines) if lines else "    (it wrote nothing)"
        return Unavailable(f"{what}. The end of its log, {process.log}:\n{said}")

    def _fail(self, error: ChatmillError) -> None:
        if not self._failed.done():
            self._failed.set_result(error)


async def _listens(part: Part) -> bool:
    try:
        _, writer = await asyncio.open_connection(part.host, part.port)
    except OSError:
        return False
    writer.close()
    return True
