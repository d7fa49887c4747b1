"""One mesh per home: two factories on one registry, or two stores on one file, would spoil each other's work."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chatmill import disk
from chatmill.errors import FailedPrecondition

LOG_BYTES = 20 * 1024 * 1024
"""A log that is larger than this when a mesh starts makes way for a new one; the old one is kept as `.1`."""


@contextmanager
def occupied(home: Path, by: str) -> Iterator[None]:
    """Hold the home for a mesh; the system lets go of it when this process ends, however it ends.

    Args:
        home: folder of the mesh's state; made if it isn't there.
        by: the command, for the message that another one gets.

    Raises:
        FailedPrecondition: reason `HOME_IN_USE`; another mesh runs in this home. Reason `HOME_NOT_WRITABLE`.
        ResourceExhausted: reason `DISK_FULL`; there is too little room for a mesh to start.
    """
    disk.check_room(home)
    path = home / "run" / "mesh.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPrecondition(
                f"{home} is in use by {_holder(path)}. Wait for it or stop it, or choose another folder with --home.",
                reason="HOME_IN_USE",
            ) from None
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "by": by}) + "\n")
        file.flush()
        yield


def _holder(path: Path) -> str:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return f"`{held['by']}` (process {held['pid']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another mesh"


def log_path(home: Path, service: str) -> Path:
    """Where a service's output goes."""
    return home / "logs" / f"{service}.log"


def make_room(path: Path) -> None:
    """Put a log that has grown large aside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_BYTES:
        path.replace(path.with_name(path.name + ".1"))
