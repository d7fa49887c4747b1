"""Start the mesh and keep it running until Ctrl-C or SIGTERM.

Each service is a process of its own (`python -m dataset_svc` and so on) whose output goes to HOME/logs/SERVICE.log. A
service that dies is started again, with growing delays; one that dies five times within two minutes ends the mesh (exit
code 1), and so does one that can't start (exit code 2).
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING

from chatmill.cli import settings

if TYPE_CHECKING:
    from rich.console import Console

    from chatmill.cli.supervision.process import Part
    from chatmill.cli.supervision.supervisor import Supervisor


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--services", metavar="A,B", help="only these, of dataset, factory, inference, eval and bridge; all without it"
    )


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    from chatmill.cli.supervision import parts

    config = settings.load(arguments)
    names = parts.chosen(arguments.services)
    return asyncio.run(_up(arguments, config, names))


async def _up(arguments: argparse.Namespace, config: settings.Config, names: Sequence[str]) -> int:
    from chatmill.cli import console as consoles
    from chatmill.cli.meshes import Announcer
    from chatmill.cli.supervision import home, parts
    from chatmill.cli.supervision.supervisor import Supervisor

    console = consoles.stdout()
    chosen = parts.configured(config, names)
    if not config.home.exists():
        # Nobody can be at work in it, and a refusal shall not leave it behind, empty.
        parts.check_ports(chosen)
    with home.occupied(config.home, "chatmill up"):
        parts.check_ports(chosen)
        samples = parts.samples_folder()
        told = parts.arguments_of(config, arguments, chosen, [samples] if samples else [])
        announcer = Announcer(console)
        supervisor = Supervisor(chosen, told, config, announcer)
        stop = _stop_on_signals(supervisor)
        console.print(f"starting {', '.join(names)} in {config.home}")
        starting = asyncio.create_task(supervisor.start())
        stopping = asyncio.create_task(stop.wait())
        with announcer.starting(names):
            await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return 0
        await starting
        _show(console, supervisor, chosen, config)
        if not arguments.services and parts.BRIDGE not in names:
            console.print(parts.BRIDGE_MISSING, style="dim")
        failing = asyncio.create_task(supervisor.failure())
        await asyncio.wait((failing, stopping), return_when=asyncio.FIRST_COMPLETED)
        failed = failing.result() if failing.done() else None
        for task in (failing, stopping):
            task.cancel()
        await supervisor.stop()
    if failed is not None:
        consoles.stderr().print(f"error: {failed.message}")
        return 1
    return 0


def _stop_on_signals(supervisor: Supervisor) -> asyncio.Event:
    """Set by the first SIGINT or SIGTERM; a second one ends all services at once."""
    stop = asyncio.Event()

    def told() -> None:
        if stop.is_set():
            supervisor.kill()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told)
    return stop


def _show(console: Console, supervisor: Supervisor, chosen: Sequence[Part], config: settings.Config) -> None:
    from chatmill.cli.console import table
    from chatmill.runtime.endpoint import target_of

    made = table("service", "address", "process>", "log")
    for part in chosen:
        address = target_of(part.host, part.port)
        shown = address if part.grpc else f"{'https' if config.mesh.security.cert_file else 'http'}://{address}/test"
        made.add_row(part.name, shown, str(supervisor.pids[part.name]), str(supervisor.log(part.name)))
    console.print()
    console.print(made)
    console.print(
        "\nThe mesh is up. In another terminal: `chatmill run RECIPE`, `chatmill chat MODEL`, `chatmill models`.\n"
        "Ctrl-C stops it.",
    )
