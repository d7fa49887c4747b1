"""Do what a recipe says: conversations become a dataset, a tuned model and its scores beside the baseline's.

Uses the mesh that runs (`chatmill up`); without one it starts its own for as long as the run lasts. Steps whose inputs
have not changed are taken from earlier runs. Exit code 0: the gate passed; 1: it failed; 2: invalid, or something went
wrong.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatmill.cli import settings

if TYPE_CHECKING:
    from rich.console import Console

    from chatmill.recipe.definition import Recipe


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "recipe", type=Path, metavar="RECIPE", help="the recipe, a YAML file; docs/recipe.md explains it"
    )
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what `run` and `demo` share."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the recipe, for example source=mine.jsonl or method.parameters.epochs=2; "
        "an empty value takes the key away",
    )
    parser.add_argument("--force", action="store_true", help="redo the steps whose inputs have not changed as well")
    parser.add_argument("--json", action="store_true", help="print the scoreboard as JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    return settings.run_async(follow(arguments, arguments.recipe))


async def follow(arguments: argparse.Namespace, path: Path) -> int:
    """Run the recipe at `path` with the options of `add_options`; returns the exit code."""
    from chatmill.recipe import reading

    recipe = reading.load(path, arguments.set)  # before the configuration and the heavy imports: what is wrong, at once
    from chatmill.cli import board as boards
    from chatmill.cli import console as consoles
    from chatmill.recipe import scoreboard

    board = await _run(arguments, settings.load(arguments), recipe, consoles.stderr())
    if arguments.json:
        consoles.print_json(board)
    else:
        boards.show(board, consoles.stdout())
    return scoreboard.exit_code(board)


async def _run(
    arguments: argparse.Namespace, config: settings.Config, recipe: Recipe, console: Console
) -> dict[str, Any]:
    import asyncio
    import contextlib

    from chatmill.cli.console import Steps
    from chatmill.cli.meshes import found_or_started
    from chatmill.cli.supervision.memory import MemoryWatch
    from chatmill.recipe import running, steps
    from chatmill.recipe.mesh import connected

    if not any(getattr(config.mesh.peers, name) for name in settings.SERVICES):
        steps.missing_sources(recipe)
    async with found_or_started(arguments, config, console, roots=_named_folders(recipe)) as found:
        memory = MemoryWatch(found.pids)
        watching = asyncio.create_task(memory.watch())
        try:
            with Steps(console) as shown:
                async with connected(found.config) as mesh:
                    return await running.run(
                        recipe,
                        mesh,
                        shown,
                        config.home,
                        force=arguments.force,
                        machine=lambda: _machine(memory) if found.local else {},
                    )
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching


def _machine(memory: Any) -> dict[str, Any]:
    import os
    import platform

    memory.look()
    return {
        "peak_memory_bytes": memory.peak_bytes or None,
        "peak_memory_bytes_by_service": memory.peak_by_service,
        "cpu_count": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


def _named_folders(recipe: Recipe) -> list[Path]:
    """What a mesh of our own may read because the recipe, or the person who ran it, named it."""
    folders = [Path(source).parent for source in recipe.dataset.sources]
    if recipe.suite.path.startswith("/"):
        suite = Path(recipe.suite.path)
        folders.append(suite if suite.is_dir() else suite.parent)
    if recipe.method.base.startswith("/"):
        folders.append(Path(recipe.method.base))
    return folders
