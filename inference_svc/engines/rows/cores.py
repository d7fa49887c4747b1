"""Keeps the two threads of a step on a core each, where there are two cores.

The threads of an operation wait for each other, spinning. When the event loop or a client takes the core of one, the
scheduler may move that one to the core of the other, where both then take turns at spinning and computing, for
milliseconds. Those who disturb are free to go where they like; the threads of a step stay. Linux only.

On more cores an operation may take fewer threads than there are. Libgomp then ends the others and starts new ones for
the next, which would begin on the one core that their starter is kept on. This module knows no model.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys

from inference_svc.engines.rows import native

log = logging.getLogger(__name__)

THREADS = 2
"""As many threads, and cores, there have to be."""


class Cores:
    """The cores that the calling thread may use, and whether it is kept on one. For one thread, the one that steps run
    on; threads that it starts while it is kept begin on its core.

    Args:
        library: `cores.c`, compiled.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._all = os.sched_getaffinity(0)
        self._settle = library.settle
        self._numbers = (ctypes.c_int32 * len(self._all))(*sorted(self._all))
        self._kept = self._given_up = False

    def keep(self) -> None:
        """The calling thread and the one that works with it stay on a core each from now on. Does nothing where that is
        forbidden, and the log says so once."""
        if self._kept or self._given_up:
            return
        self._kept = True
        if error := self._settle(self._numbers, len(self._numbers)):
            self._given_up = True
            log.warning("the threads of a step can't be kept on a core each: %s", os.strerror(error))
            self.let_go()

    def let_go(self) -> None:
        """The calling thread may go anywhere again. The other one stays where it is, and takes no part in steps on one
        thread."""
        if self._kept:
            self._kept = False
            # Forbidden as well, or none of these cores is left.
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, self._all)


def made(threads: int) -> Cores | None:
    """The cores of the calling thread, if steps of so many threads can be kept there."""
    if sys.platform != "linux" or not threads == THREADS == len(os.sched_getaffinity(0)):
        return None
    try:
        library = native.load("cores")
    except OSError as error:
        log.warning("%s: steps beside a busy event loop take a little longer than they could", error)
        return None
    return Cores(library) if _works_with_torch(library) else None


def _works_with_torch(library: ctypes.CDLL) -> bool:
    """Whether its threads are those of torch: another OpenMP has its own."""
    try:
        both = library, native.torch_library()
        ours, theirs = (ctypes.cast(one.omp_get_thread_num, ctypes.c_void_p).value for one in both)
    except (OSError, AttributeError):
        return False
    return ours == theirs
