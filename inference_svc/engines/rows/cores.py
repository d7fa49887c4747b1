"""Keeps the threads of a step on a core each while there are as many of them as cores.

The threads of an operation wait for the last of them, spinning. When the event loop or a client takes the core of one,
the scheduler may move that one to the core of another, where both then take turns at spinning and computing, for
milliseconds. Those who disturb are free to go where they like; the threads of a step stay. Linux only. This module
knows no model.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys

from inference_svc.engines.rows import native

log = logging.getLogger(__name__)


class Cores:
    """The cores that the calling thread may use, and who is kept where. For one thread, the one that steps run on;
    threads that it starts while it is kept begin on its core.

    Args:
        library: `cores.c`, compiled.

    Attributes:
        count: how many there are.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._all = os.sched_getaffinity(0)
        self.count = len(self._all)
        self._settle = library.settle
        self._numbers = (ctypes.c_int32 * self.count)(*sorted(self._all))
        self._kept = self._given_up = False

    def keep(self) -> None:
        """The calling thread and those that work with it stay on a core each from now on. Does nothing where that is
        forbidden, and the log says so once."""
        if self._kept or self._given_up:
            return
        self._kept = True
        if error := self._settle(self._numbers, self.count):
            self.let_go()
            self._given_up = True
            log.warning("the threads of a step can't be kept on a core each: %s", os.strerror(error))

    def let_go(self) -> None:
        """The calling thread may go anywhere again. Those that work with it stay where they are, and take no part in
        steps on fewer threads."""
        if self._kept:
            self._kept = False
            os.sched_setaffinity(0, self._all)


def made(threads: int) -> Cores | None:
    """The cores of the calling thread, if there is one for each of so many threads and they can be kept there."""
    if sys.platform != "linux" or len(os.sched_getaffinity(0)) != threads:
        return None
    try:
        return Cores(native.load("cores"))
    except OSError as error:
        log.warning("%s: steps beside a busy event loop take a little longer than they could", error)
        return None
