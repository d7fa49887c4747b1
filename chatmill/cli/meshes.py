"""Finds the mesh that a command talks to: the one that runs, else one of its own for as long as the command lasts."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from chatmill.cli.console import duration
from chatmill.cli.supervision import home as homes
from chatmill.cli.supervision import parts as mesh_parts
from chatmill.cli.supervision.process import Part
from chatmill.cli.supervision.supervisor import Supervisor
from chatmill.config import SERVICES, Config
from chatmill.errors import ChatmillError, Unavailable
from chatmill.runtime import channel, endpoint, health

PEERS_OF = {
    "dataset": ("dataset",),
    "factory": ("factory",),
    "inference": ("inference", "factory"),
    "eval": SERVICES,
}
"""Service to those that must be there for it to do its work."""


@dataclass(frozen=True, slots=True)
class Found:
    """A mesh to talk to.

    Attributes:
        config: the configuration under which its services are reached.
        local: whether it runs on this machine, with the same files.
        pids: service name to process id, as far as they are known.
        private: whether it was started for this command and ends with it.
    """

    config: Config
    local: bool
    pids: Callable[[], Mapping[str, int]]
    private: bool


class Announcer:
    """Writes what happens to the services as lines.

    Args:
        console: where to.
        quiet: leave out what is as it should be.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._bar: Progress | None = None
        self._awaited: list[str] = []

    @contextlib.contextmanager
    def starting(self, names: Sequence[str]) -> Iterator[None]:
        """While the services start: in a terminal, a bar that names those still awaited."""
        if not self._console.is_terminal:
            yield
            return
        self._awaited = list(names)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True) as self._bar:
            self._bar.add_task(f"starting {', '.join(names)}", total=len(names))
            yield
        self._bar = None

    def ready(self, part: Part, seconds: float) -> None:
        """The service answers."""
        if self._bar is not None and part.name in self._awaited:
            self._awaited.remove(part.name)
            self._bar.update(self._bar.task_ids[0], advance=1, description=f"starting {', '.join(self._awaited)}")
        if not self._quiet:
            where = endpoint.target_of(part.host, part.port)
            self._line(f"{part.name:<9} ready at {where} ({duration(seconds)})", "green")

    def died(self, part: Part, code: int, last_words: Sequence[str], delay: float) -> None:
        """The service ended unasked."""
        self._line(f"{part.name} died with code {code}; starting it again in {delay:g} s. Its last words:", "red")
        for line in last_words:
            self._line(f"    {line}", None)

    def stopped(self, part: Part, graceful: bool) -> None:
        """The service ended on request."""
        if not graceful:
            self._line(f"{part.name} did not stop in time and was killed", "red")
        elif not self._quiet:
            self._line(f"{part.name:<9} stopped", None)

    def _line(self, text: str, style: str | None) -> None:
        self._console.print(text, style=style)


@asynccontextmanager
async def found_or_started(
    arguments: argparse.Namespace,
    config: Config,
    console: Console,
    services: Iterable[str] = SERVICES,
    roots: Iterable[Path] = (),
) -> AsyncIterator[Found]:
    """The mesh that runs, else one of our own with what `services` need.

    Args:
        arguments: the command's, for the services' command lines.
        config: where to look.
        console: where to say what is done.
        services: those that the command talks to.
        roots: more folders that a mesh of our own may read, because the person at the command line named them.

    Raises:
        Unavailable: the mesh runs only in part, doesn't answer, or can't be started.
        FailedPrecondition: reason `HOME_IN_USE`.
    """
    needed = tuple(name for name in SERVICES if any(name in PEERS_OF[service] for service in services))
    peers = config.mesh.peers
    if any(getattr(peers, name) for name in SERVICES):
        await _check(config, needed)
        yield Found(config, local=False, pids=dict, private=False)
        return
    endpoints = {name: endpoint.read(config.home, name) for name in needed}
    running = {name: found for name, found in endpoints.items() if found is not None}
    if running and len(running) == len(needed):
        targets = {name: found.target for name, found in running.items()}
        at = replace(config, mesh=replace(config.mesh, peers=replace(peers, **targets)))
        await _check(at, needed)
        pids = {name: found.pid for name, found in running.items()}
        yield Found(at, local=True, pids=lambda: pids, private=False)
        return
    if running:
        missing = ", ".join(name for name in needed if name not in running)
        raise Unavailable(
            f"the mesh in {config.home} runs without {missing}. Wait if it is starting; otherwise stop it and start "
            f"all of it with `chatmill up`.",
            reason="MESH_INCOMPLETE",
        )
    async with _started(arguments, config, console, needed, roots) as found:
        yield found


async def _check(config: Config, names: Iterable[str]) -> None:
    """Raises Unavailable if one of them doesn't say that it serves."""
    for name in names:
        async with channel.connect_service(name, config) as connection:
            if not await health.check(connection):
                raise Unavailable(
                    f"{name} at {connection.target} is there but not serving; it is starting, draining or broken. "
                    f"Its log is {homes.log_path(config.home, name)}.",
                    reason="NOT_SERVING",
                )


@asynccontextmanager
async def _started(
    arguments: argparse.Namespace, config: Config, console: Console, names: Sequence[str], roots: Iterable[Path]
) -> AsyncIterator[Found]:
    """A mesh on free ports of loopback that ends with the context."""
    parts = mesh_parts.private(names)
    told = mesh_parts.arguments_of(config, arguments, parts, roots)
    targets = {part.name: endpoint.target_of(part.host, part.port) for part in parts}
    at = replace(config, mesh=replace(config.mesh, peers=replace(config.mesh.peers, **targets)))
    with homes.occupied(config.home, f"chatmill {arguments.command_name}"):
        listed = ", ".join(names)
        console.print(f"no mesh is running in {config.home}; starting {listed} for this command", style="dim")
        announcer = Announcer(console, quiet=True)
        supervisor = Supervisor(parts, told, config, announcer)
        with announcer.starting(names):
            await supervisor.start()
        try:
            async with _ending_with(supervisor):
                yield Found(at, local=True, pids=lambda: supervisor.pids, private=True)
        finally:
            await supervisor.stop()


@asynccontextmanager
async def _ending_with(supervisor: Supervisor) -> AsyncIterator[None]:
    """Cancel the body, and raise why, when the mesh can't be kept alive."""
    body = asyncio.current_task()
    assert body is not None
    failed: list[ChatmillError] = []

    async def watch() -> None:
        failed.append(await supervisor.failure())
        body.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not failed:
            raise
        body.uncancel()
        raise failed[0] from None
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher
