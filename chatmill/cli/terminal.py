"""Asking a person at a terminal from inside an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def restored(interactive: bool) -> Iterator[None]:
    """Line editing, and the terminal as it was: a prompt that is left by Ctrl-C never puts it back itself."""
    if not interactive:
        yield
        return
    import readline  # noqa: F401 - gives `input` editing and history
    import termios

    before = termios.tcgetattr(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


async def ask(prompt: str) -> str:
    """A line from the terminal; the thread that waits for it doesn't hold up the end of the process.

    Raises:
        EOFError: there is no more.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[str] = loop.create_future()

    def deliver(line: str | None) -> None:
        if answer.done():
            return
        if line is None:
            answer.set_exception(EOFError())
        else:
            answer.set_result(line)

    def read() -> None:
        line = None
        with contextlib.suppress(EOFError, ValueError):  # ValueError: stdin was closed
            line = input(prompt)
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(deliver, line)

    threading.Thread(target=read, daemon=True).start()
    return await answer
