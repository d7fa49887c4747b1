"""Starts a worker and follows it. The worker is a fresh interpreter, never a fork of a process that runs gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from chatmill.errors import Aborted, ChatmillError
from factory_svc.task import Progress, TrainingOutcome, TrainingTask
from factory_svc.worker import error_from_dict

_ROOT = str(Path(__file__).resolve().parent.parent)
"""What a worker must have on its path to import this package, wherever the service was started."""
_LINE_LIMIT = 64 * 1024 * 1024
"""Longest line that a worker may write, in bytes; a prompt's outcome carries its examples."""
_LOG_TAIL = 600
"""Characters of the worker's log that a failure shows."""


class WorkerProcess:
    """One worker at one task.

    Args:
        process: the running process.
        log: file that its standard error goes to.
    """

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log

    @classmethod
    async def start(cls, task: TrainingTask, folder: Path) -> WorkerProcess:
        """Start a worker for `task`; `folder` takes the task file and the log."""
        file = folder / "task.json"
        file.write_text(task.to_json(), encoding="utf-8")
        log = folder / "worker.log"
        paths = os.pathsep.join(p for p in (_ROOT, os.environ.get("PYTHONPATH", "")) if p)
        with log.open("ab") as stream:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "factory_svc.worker",
                str(file),
                "--owned",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stream,
                env={**os.environ, "PYTHONPATH": paths, "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1"},
                limit=_LINE_LIMIT,
                # A Ctrl-C at the terminal is the service's to handle; it tells the worker in its own time.
                start_new_session=True,
            )
        return cls(process, log)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    async def follow(self) -> AsyncIterator[Progress | TrainingOutcome]:
        """Every progress, and the outcome last.

        Raises:
            ChatmillError: the worker said why it failed.
            Aborted: reason `WORKER_DIED`; it ended without a word, for example because it was killed.
        """
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            message: dict[str, Any] = json.loads(line)
            event = message.pop("event")
            if event == "failed":
                await self._process.wait()
                raise error_from_dict(message)
            if event == "done":
                await self._process.wait()
                yield TrainingOutcome.from_dict(message["outcome"])
                return
            yield Progress(**message)
        raise self._died(await self._process.wait())

    def interrupt(self) -> None:
        """Ask it to write a checkpoint and stop."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def end(self, grace: float) -> None:
        """Interrupt it, and kill it if it has not ended within `grace` seconds."""
        self.interrupt()
        try:
            await asyncio.wait_for(self._process.wait(), grace)
        except TimeoutError:
            self.kill()
            await self._process.wait()

    def _died(self, code: int) -> ChatmillError:
        """Why a worker that said nothing ended."""
        if code < 0:
            name = signal.Signals(-code).name
            how = f"was killed by {name}"
            advice = (
                " The system kills a process that takes too much memory; a smaller batch_size or max_length, or the "
                "method qlora, needs less."
                if name == "SIGKILL"
                else ""
            )
        else:
            how, advice = f"ended with exit code {code}", ""
        tail = (
            self._log.read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL:].strip() if self._log.exists() else ""
        )
        last = f" Its last words: {tail.splitlines()[-1][:300]}" if tail and code > 0 else ""
        return Aborted(
            f"The training process {how} before it was done.{advice}{last} Its log is {self._log}.",
            reason="WORKER_DIED",
            metadata={"exit_code": str(code)},
        )
