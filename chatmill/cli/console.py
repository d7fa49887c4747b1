"""What the commands write: results to stdout, the way to them to stderr; plain lines where no terminal is."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn
from rich.table import Table

from chatmill.recipe.observer import Progress as StepProgress
from chatmill.recipe.observer import StepResult

if TYPE_CHECKING:
    from google.protobuf.message import Message

PLAIN_WIDTH = 200
SECONDS_BETWEEN_LINES = 10.0


def stdout() -> Console:
    """For results."""
    return _console(stderr=False)


def stderr() -> Console:
    """For progress, notes and errors."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    # a pipe has no width, and 80 columns would break every path
    width = None if stream.isatty() else PLAIN_WIDTH
    # brackets in names, labels and messages are text
    return Console(stderr=stderr, highlight=False, markup=False, soft_wrap=True, width=width)


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table in the house's form; a column whose name ends in `>` is aligned to the right."""
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold", pad_edge=False, box=None)
    for name in columns:
        made.add_column(name.rstrip(">"), justify="right" if name.endswith(">") else "left", overflow="fold")
    return made


def plain(message: Message) -> dict[str, Any]:
    """A message of the contract as data, its fields named as in the contract."""
    from google.protobuf.json_format import MessageToDict

    found: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return found


def print_json(value: Any) -> None:
    """A JSON value to stdout, for programs."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


class Steps:
    """Shows the steps of a run: a bar in a terminal, else a line at the beginning, at times, and at the end of each.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Progress | None = None
        self._task: Any = None
        self._last_line = 0.0
        if console.is_terminal:
            self._live = Progress(
                SpinnerColumn(),
                TextColumn("[bold]{task.description:<9}"),
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                TextColumn("{task.fields[text]}", markup=False),
                console=console,
                transient=True,
            )

    def __enter__(self) -> Steps:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.stop()

    def began(self, step: str, detail: str) -> None:
        """A step begins."""
        if self._live is not None:
            self._task = self._live.add_task(step, total=None, text=detail)
        else:
            self._last_line = time.monotonic()
            self._line(f"{step:<9} {detail} ...")

    def progress(self, step: str, progress: StepProgress) -> None:
        """A step goes on."""
        if self._live is not None:
            self._live.update(self._task, completed=progress.done, total=progress.total or None, text=progress.text)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            share = f"{progress.done / progress.total:4.0%} " if progress.total else ""
            self._line(f"{step:<9} {share}{progress.text}")

    def note(self, step: str, text: str) -> None:
        """Something to know."""
        self._line(f"{step:<9} note: {text}", style="yellow")

    def ended(self, result: StepResult) -> None:
        """A step ended."""
        if self._live is not None and self._task is not None:
            self._live.remove_task(self._task)
            self._task = None
        how = "already there, inputs unchanged" if result.reused else duration(result.seconds)
        self._line(f"{result.step:<9} {result.summary} ({how})", style="dim" if result.reused else "green")

    def _line(self, text: str, style: str | None = None) -> None:
        console = self._live.console if self._live is not None else self._console
        console.print(text, style=style)
