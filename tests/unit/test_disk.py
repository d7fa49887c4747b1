"""Full disks, whoever reports them."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest

from chatmill import disk
from chatmill.errors import FailedPrecondition, NotFound, ResourceExhausted


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        sqlite3.OperationalError("database or disk is full"),
    ],
)
def test_a_full_disk_is_recognised_whoever_reports_it(tmp_path: Path, error: Exception) -> None:
    said = r"The disk is full: it can't be written \(.* MiB are free"
    with pytest.raises(ResourceExhausted, match=said) as caught, disk.clear_errors("it", tmp_path):
        raise ValueError("a library's own words") from error
    assert caught.value.reason == "DISK_FULL"
    assert "Free some space" in caught.value.message
    assert "\n" not in caught.value.message


def test_what_is_no_disk_error_passes(tmp_path: Path) -> None:
    for error in (ValueError("x"), OSError(errno.EIO, "I/O error"), NotFound("x")):
        with pytest.raises(type(error)) as caught, disk.clear_errors("it", tmp_path):
            raise error
        assert caught.value is error


def test_a_forbidden_folder_is_named_and_others_are_not_blamed_on_it(tmp_path: Path) -> None:
    with (
        pytest.raises(FailedPrecondition, match=r"it can't be written .* write permission"),
        disk.clear_errors("it", tmp_path),
    ):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "x"))
    with pytest.raises(PermissionError), disk.clear_errors("it", tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied", "/somewhere/else")


def test_a_mesh_needs_some_room_to_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "not" / "there" / "yet"
    disk.check_room(home)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=3 * 2**20))
    with pytest.raises(ResourceExhausted, match=r"3\.0 MiB are free, and a mesh takes 16 MiB to start.*--home"):
        disk.check_room(home)


def test_a_home_is_tried_by_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceExhausted, match="The disk is full"):
        disk.check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"exists|directory"):
        disk.check_writable(tmp_path / "file")
