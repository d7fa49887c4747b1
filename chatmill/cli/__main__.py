"""Entry of the command: picks the module of the command that was asked for, and turns errors into one clear line."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from chatmill import __version__
from chatmill.errors import ChatmillError

COMMANDS = {
    "up": "start the mesh: the services, each a process of its own",
    "run": "do what a recipe says: dataset, training, evaluation, scoreboard",
    "demo": "run the recipe of the made-up client in samples/",
    "eval": "score models: run suites, look at results, write scenarios",
    "chat": "talk to a model in the terminal",
    "models": "list and show models with their scores, set aliases",
    "datasets": "list and show datasets, their statistics and items",
    "config": "check the configuration and say where each value comes from",
}
"""Name to help line. `chatmill.cli.NAME` has `configure(parser)` and `run(arguments) -> exit code`."""

EPILOG = """exit codes: 0 done (run: gate passed), 1 gate failed, 2 invalid or could not be done, 130 interrupted
`chatmill COMMAND --help` explains a command; docs/cli.md and docs/recipe.md are the manuals."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name); returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in COMMANDS:
        return _top(words)
    name = words[0]
    module = importlib.import_module(f"chatmill.cli.{name}")
    parser = argparse.ArgumentParser(
        prog=f"chatmill {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.configure(parser)
    _common(parser)
    parser.set_defaults(command_name=name)
    # apart and first, so that they may stand behind the name of an action, too: `models list --home DIR`
    everywhere = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog=parser.prog)
    _common(everywhere)
    found, rest = everywhere.parse_known_args(words[1:])
    arguments = parser.parse_args(rest, found)
    try:
        return int(module.run(arguments))
    except ChatmillError as error:
        if arguments.debug:
            raise
        print(f"error: {error.message}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # the reader of our output left; Python would complain once more when it flushes at exit
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if arguments.debug:
            raise
        from chatmill import disk

        where = f"{error.filename}: " if error.filename else ""
        full = disk.full(str(error.filename or "a file")).message if disk.is_full(error) else ""
        print(f"error: {full or f'{where}{error.strerror or error}'}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _top(words: list[str]) -> int:
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="chatmill",
        usage="chatmill [--version] COMMAND ...",
        description="Conversations go in; a tuned, served and scored chat model comes out.\n\ncommands:\n" + listing,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"chatmill {__version__}")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    arguments, _ = parser.parse_known_args(words)
    if arguments.command is None:
        parser.print_help()
        return 0 if not words else 2
    from chatmill.plugins import nearest

    if words[0].startswith("-"):
        command = next((word for word in words if word in COMMANDS), "COMMAND")
        rest = list(words)
        if command in rest:
            rest.remove(command)
        print(f"error: options go after the command: chatmill {command} {shlex.join(rest)}", file=sys.stderr)
        return 2
    print(
        f"error: unknown command {arguments.command!r}{nearest(arguments.command, COMMANDS) or '.'} "
        f"Commands: {', '.join(COMMANDS)}.",
        file=sys.stderr,
    )
    return 2


def _common(parser: argparse.ArgumentParser) -> None:
    """Options that every command has."""
    group = parser.add_argument_group("options of every command")
    group.add_argument("--config", type=Path, metavar="FILE", help="configuration; ./chatmill.yaml if it is there")
    group.add_argument("--home", type=Path, metavar="DIR", help="folder of all state (mesh.home)")
    group.add_argument(
        "-o",
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one option of the configuration, for example factory.port=0",
    )
    group.add_argument("--debug", action="store_true", help="show the whole stack of an error")


if __name__ == "__main__":
    sys.exit(main())
