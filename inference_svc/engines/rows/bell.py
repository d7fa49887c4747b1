"""Wakes the event loop from compiled code.

A thread that wakes the event loop from Python has to let go of the interpreter to do so, and gets it back when the loop
has done its work or after the interpreter's switch interval: half a millisecond between two steps, in which no core
computes. So what a step has put out is announced by the next one, once it runs without the interpreter. Linux only;
elsewhere there is none, and Python wakes the loop. This module knows no engine.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from collections.abc import Callable


class Bell:
    """A file that the loop watches, and a cell that says whether it is to be written to.

    Args:
        loop: the running one.
        rung: called on it.

    Attributes:
        cell: -1, or the file to write eight bytes of the number 1 to. Who does so sets it to -1 first.
        taken: somebody looks at the cell whenever a step begins.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, rung: Callable[[], None]) -> None:
        self._loop, self._rung = loop, rung
        self._file = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.cell = ctypes.c_int64(-1)
        self.taken = False
        loop.add_reader(self._file, self._answer)

    @property
    def armed(self) -> bool:
        """It has been asked for and nobody has rung it yet."""
        return self.cell.value >= 0

    def arm(self) -> None:
        """Let the next step ring."""
        self.cell.value = self._file

    def disarm(self) -> None:
        """Nobody needs to ring any more."""
        self.cell.value = -1

    def close(self) -> None:
        """Give the file back; on the loop, when no step runs any more."""
        self._loop.remove_reader(self._file)
        os.close(self._file)

    def _answer(self) -> None:
        os.eventfd_read(self._file)
        self._rung()


def made(loop: asyncio.AbstractEventLoop, rung: Callable[[], None]) -> Bell | None:
    """A bell, where there can be one."""
    return Bell(loop, rung) if sys.platform == "linux" else None
