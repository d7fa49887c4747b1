"""A disk that is full or can't be written, recognised whoever reports it, and said in one clear line.

Stands on the standard library alone: databases and Rust libraries are recognised by what they say.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chatmill.errors import ChatmillError, FailedPrecondition, ResourceExhausted

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
SAID = ("No space left on device", "StorageFull", "unexpected pos", "disk is full", "could not extend file")
"""How safetensors, torch, SQLite and PostgreSQL report a full disk: as text only."""
LEAST_FREE = 16 * 1024 * 1024
"""Bytes that must be free before a mesh starts: its databases, logs and one small adapter fit."""
PROBE = 64 * 1024
"""Bytes that a service tries to write before it starts: its run file and a few rows fit."""


def is_full(error: BaseException | None) -> bool:
    """Whether the error, or one that led to it, says that a disk is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(text in str(error) for text in SAID):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def clear_errors(what: str, folder: Path | None = None) -> Iterator[None]:
    """Turns a full disk, or one that can't be written, into one clear error; other errors pass.

    Args:
        what: what is being written, for the message.
        folder: where; its free space is then said.

    Raises:
        ResourceExhausted: reason `DISK_FULL`.
        FailedPrecondition: reason `HOME_NOT_WRITABLE`.
    """
    try:
        yield
    except ChatmillError:
        raise
    except Exception as error:
        if is_full(error):
            raise full(what, folder) from error
        if isinstance(error, OSError) and error.errno in FORBIDDEN and _within(error, folder):
            raise FailedPrecondition(
                f"{what} can't be written ({os.strerror(error.errno)}). Give the service write permission there, or "
                "set mesh.home to another folder.",
                reason="HOME_NOT_WRITABLE",
            ) from error
        raise


def _within(error: OSError, folder: Path | None) -> bool:
    """Whether the error is about the folder; work that writes there may read elsewhere, too."""
    return folder is None or error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(folder)


def full(what: str, folder: Path | None = None) -> ResourceExhausted:
    """The error for a disk that was full when `what` was written."""
    room = f" ({free(folder) / 2**20:.1f} MiB are free there)" if folder is not None else ""
    return ResourceExhausted(
        f"The disk is full: {what} can't be written{room}. Free some space (or set mesh.home to another disk) and "
        "start again; what existed before is unchanged.",
        reason="DISK_FULL",
        quota="disk",
    )


def free(folder: Path) -> int:
    """Free bytes on the disk of `folder`, or of the nearest folder above it that is there."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_room(home: Path) -> None:
    """Before a mesh starts: its home can be made and written, and `LEAST_FREE` bytes are free.

    Raises:
        ResourceExhausted: reason `DISK_FULL`.
        FailedPrecondition: reason `HOME_NOT_WRITABLE`.
    """
    found = free(home)
    if found < LEAST_FREE:
        raise ResourceExhausted(
            f"The disk of {home} is full: {found / 2**20:.1f} MiB are free, and a mesh takes {LEAST_FREE // 2**20} MiB "
            "to start. Free some space, or choose a folder on another disk with --home or CHATMILL_HOME.",
            reason="DISK_FULL",
            quota="disk",
        )
    check_writable(home)


def check_writable(home: Path) -> None:
    """Before a service starts: a little can be written in its home.

    Raises:
        ResourceExhausted: reason `DISK_FULL`.
        FailedPrecondition: reason `HOME_NOT_WRITABLE`.
    """
    with clear_errors(str(home), home):
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home) as probe:
            probe.write(bytes(PROBE))
            probe.flush()
            os.fsync(probe.fileno())
