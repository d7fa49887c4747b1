"""The whole way on a made-up client: invented conversations become a tuned model, served and scored beside its base.

Runs samples/recipe.yaml as `chatmill run` does, and says what to do next. With --keep the mesh stays up afterwards.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from chatmill.cli import run as run_command
from chatmill.cli import settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    run_command.add_options(parser)
    parser.add_argument("--keep", action="store_true", help="keep the mesh up afterwards, as `chatmill up` does")


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    code = settings.run_async(run_command.follow(arguments, _recipe()))
    if not arguments.json and code in (0, 1):
        print(_next(settings.load(arguments).home))
    if not arguments.keep:
        return code
    from chatmill.cli import up

    arguments.services = None
    return up.run(arguments) or code


def _recipe() -> Path:
    from chatmill.cli.supervision.parts import samples_folder
    from chatmill.errors import NotFound

    folder = samples_folder()
    if folder is None:
        raise NotFound("the samples are not installed; run the demo from a clone, or install the whole package")
    return folder / "recipe.yaml"


def _up_text() -> str:
    from chatmill.cli.supervision.parts import BRIDGE, installed

    page = "the testers' page in a browser and " if BRIDGE in installed() else ""
    return f"keep the mesh up, for {page}Generate over gRPC"


def _next(home: Path) -> str:
    import json
    import os
    import shutil
    import sys

    from chatmill.recipe.running import SCOREBOARD

    model = json.loads((home / SCOREBOARD).read_text(encoding="utf-8"))["model"]
    program = "chatmill" if shutil.which("chatmill") else os.path.relpath(sys.argv[0])
    rows = [
        (f"chat {model}", "talk to it"),
        (f"models show {model}", "how it came to be, and its scores"),
        ("datasets items shop", "what it was trained on"),
        ("up", _up_text()),
        ("run recipe.yaml", "the same with your own conversations; docs/recipe.md"),
    ]
    width = max(len(command) for command, _ in rows)
    return "\nWhat next:\n" + "\n".join(f"  {program} {command:<{width}}  {text}" for command, text in rows)
