"""Random numbers that nobody can guess, without asking the system for each.

Every question to the system lets go of the interpreter, and another thread that takes it may keep it for milliseconds.
"""

from __future__ import annotations

import os
from collections import deque

_AT_ONCE = 256
_SIZE = 16
_drawn: deque[bytes] = deque()
os.register_at_fork(after_in_child=_drawn.clear)  # or parent and child would draw the same


def random_bytes() -> bytes:
    """16 bytes of the system's generator for secrets, given out once. For any thread."""
    while True:
        try:
            return _drawn.pop()
        except IndexError:
            fresh = os.urandom(_AT_ONCE * _SIZE)
            _drawn.extend(fresh[i : i + _SIZE] for i in range(0, len(fresh), _SIZE))
