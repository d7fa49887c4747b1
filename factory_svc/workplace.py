"""The folders that jobs work in, `home/jobs/{id}`, and what is left of them afterwards.

A job that succeeded or was cancelled leaves nothing: its files are in the registry, or nobody wants them. One that
failed keeps what helps to find out why (the task, the worker's log) and its checkpoints; its examples, a second copy of
people's conversations, are removed. Only the newest `KEPT` of such folders stay.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection
from pathlib import Path

KEPT = 10
"""Folders of failed jobs that are kept."""
EXAMPLES = "examples.jsonl"
CHECKPOINTS = "checkpoints"
LOG = "worker.log"


class Workplace:
    """The folders of all jobs of a factory.

    Args:
        home: `CHATMILL_HOME`.
    """

    def __init__(self, home: Path) -> None:
        self._root = home / "jobs"

    def folder(self, job_id: str) -> Path:
        """Where a job works; it may not exist."""
        return self._root / job_id

    def checkpoints(self, job_id: str) -> Path:
        """Where its checkpoints lie."""
        return self.folder(job_id) / CHECKPOINTS

    def log(self, job_id: str) -> Path | None:
        """The log of its worker, if that has said anything."""
        log = self.folder(job_id) / LOG
        return log if log.exists() and log.stat().st_size else None

    def clear(self, job_id: str) -> None:
        """Remove all of it."""
        shutil.rmtree(self.folder(job_id), ignore_errors=True)

    def keep_evidence(self, job_id: str) -> None:
        """Of a job that failed, keep what tells why."""
        for path in _children(self.folder(job_id)):
            if path.name in (CHECKPOINTS, LOG, "task.json"):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def tidy(self, working: Collection[str]) -> None:
        """Keep the newest `KEPT` folders besides those of the jobs at work."""
        done = [path for path in _children(self._root) if path.name not in working]
        for path in sorted(done, key=lambda p: p.stat().st_mtime, reverse=True)[KEPT:]:
            shutil.rmtree(path, ignore_errors=True)


def _children(folder: Path) -> list[Path]:
    with contextlib.suppress(FileNotFoundError):
        return list(folder.iterdir())
    return []
