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
    import sys

    code = settings.run_async(run_command.follow(arguments, _recipe()))
    if not arguments.json and code in (0, 1):
        print(_next(), file=sys.stdout)
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


def _next() -> str:
    return """
What next:
  chatmill chat MODEL                talk to it (the model's name stands above)
  chatmill up                        keep the mesh up, for `Generate` over gRPC
  chatmill models show MODEL         how it came to be, and its scores
  chatmill run my/recipe.yaml        the same with your own conversations; docs/recipe.md"""
