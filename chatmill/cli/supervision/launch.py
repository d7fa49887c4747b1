"""Becomes a program that ends when its parent does; run as a script, by path, with nothing but the standard library.

`launch.py PARENT_PID PROGRAM ARGUMENT...`: asks Linux for SIGTERM at the parent's death, then turns into the program,
which keeps the process id and the request. So a supervisor that is killed leaves no service behind. Elsewhere than on
Linux only the second half happens.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ask, check that the parent did not die in between, become the program."""
    parent, *program = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent):
            sys.exit(1)
    os.execv(program[0], program)  # noqa: S606 - the program is our own interpreter


main()
