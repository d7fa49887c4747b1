"""Check the configuration: print every option that holds and where its value comes from, or what is wrong with it."""

from __future__ import annotations

import argparse

from chatmill.cli import settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "action",
        choices=("check", "manual"),
        help="check: what holds here and now; manual: all options with their meaning",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    from chatmill import config as configuration

    print(configuration.manual() if arguments.action == "manual" else configuration.describe(settings.load(arguments)))
    return 0
