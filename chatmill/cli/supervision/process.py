"""One service as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chatmill.cli.supervision import home as homes

LAUNCHER = Path(__file__).with_name("launch.py")


@dataclass(frozen=True, slots=True)
class Part:
    """A service to start.

    Attributes:
        name: section name, for example `factory`.
        module: what `python -m` is given.
        host: address it will listen on.
        port: port it will listen on, never 0.
        grpc: whether it answers gRPC health checks; the bridge speaks HTTP.
    """

    name: str
    module: str
    host: str
    port: int
    grpc: bool = True


class ServiceProcess:
    """A part at work.

    Args:
        part: what to start.
        arguments: what the module is given on its command line.
        home: folder whose `logs/` takes the output.
    """

    def __init__(self, part: Part, arguments: Sequence[str], home: Path) -> None:
        self.part = part
        self.arguments = list(arguments)
        self.log = homes.log_path(home, part.name)
        self._process: asyncio.subprocess.Process | None = None
        self._log_start = 0

    @property
    def pid(self) -> int:
        """Process id of the newest start; 0 before the first."""
        return self._process.pid if self._process else 0

    @property
    def returncode(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._process.returncode if self._process else None

    async def start(self) -> None:
        """Start the process, in a session of its own: Ctrl-C in the terminal is for the supervisor alone."""
        homes.make_room(self.log)
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",
                str(LAUNCHER),
                str(os.getpid()),
                sys.executable,
                "-m",
                self.part.module,
                *self.arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )

    async def wait(self) -> int:
        """Wait for its end and take what it left of its process group along; returns the exit code."""
        assert self._process is not None
        code = await self._process.wait()
        self._signal_group(signal.SIGTERM)
        return code

    async def stop(self, seconds: float) -> bool:
        """Ask it to stop, and after `seconds` make it; whether it stopped by itself."""
        if self._process is None or self._process.returncode is not None:
            return True
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), seconds)
        except TimeoutError:
            self._signal_group(signal.SIGKILL)
            await self._process.wait()
            return False
        self._signal_group(signal.SIGTERM)
        return True

    def kill(self) -> None:
        """End it and its group at once."""
        if self._process is not None and self._process.returncode is None:
            self._signal_group(signal.SIGKILL)

    def last_words(self) -> list[str]:
        """The newest lines that it wrote since its start."""
        with contextlib.suppress(OSError), self.log.open("rb") as file:
            file.seek(max(self._log_start, self.log.stat().st_size - 64 * 1024))
            return file.read().decode("utf-8", "replace").splitlines()[-12:]
        return []

    def _signal_group(self, number: int) -> None:
        assert self._process is not None
        # it leads a session of its own, so the group's id is its process id even after it has ended
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)
