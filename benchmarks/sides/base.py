"""What a side of the serving benchmark is."""

from __future__ import annotations

import asyncio
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

from chatmill.ports import free_port


class Missing(Exception):
    """This side can't run here; the text says what it lacks."""


class Side(ABC):
    """A system under test, started and stopped by the benchmark.

    Args:
        folder: the model in Hugging Face form.
        max_new: tokens to generate per request.
        most: most requests at once that will come.
    """

    name: str

    def __init__(self, folder: Path, max_new: int, most: int) -> None:
        self.folder = folder
        self.max_new = max_new
        self.most = most

    @abstractmethod
    async def start(self) -> None:
        """Be ready for requests. Raises Missing."""

    @abstractmethod
    def stream(self, prompt: str) -> AsyncIterator[int]:
        """Generate from one user message; yields at each delivery how many tokens came, as well as that is known."""

    @abstractmethod
    async def stop(self) -> None:
        """Free everything."""

    def rss_bytes(self) -> int:
        """Resident memory of the system's processes."""
        return psutil.Process().memory_info().rss


class ServerSide(Side):
    """A side that is a process of its own, with its children."""

    ready_seconds = 180.0

    def __init__(self, folder: Path, max_new: int, most: int) -> None:
        super().__init__(folder, max_new, most)
        self.port = free_port("127.0.0.1")
        self._process: asyncio.subprocess.Process | None = None
        self._log = Path(os.environ.get("TMPDIR", "/tmp")) / f"bench-{self.name}.log"  # noqa: S108

    async def launch(self, *command: str, **environment: str) -> None:
        """Start the process; what it prints goes to a log in the temporary folder."""
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command, stdout=log, stderr=log, env={**os.environ, **environment}
            )

    async def wait_ready(self) -> None:
        """Until `is_ready` says so. Raises Missing when the process ends or takes too long."""
        assert self._process is not None
        async with asyncio.timeout(self.ready_seconds):
            while not await self.is_ready():
                if self._process.returncode is not None:
                    tail = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
                    raise Missing(f"ended with {self._process.returncode}: {' | '.join(tail)}")
                await asyncio.sleep(0.2)

    async def is_ready(self) -> bool:
        """Whether it takes connections."""
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True

    async def stop(self) -> None:
        """End the process and its children."""
        if self._process is None or self._process.returncode is not None:
            return
        children = psutil.Process(self._process.pid).children(recursive=True)
        self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), 15)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        for child in children:
            if child.is_running():
                child.kill()

    def rss_bytes(self) -> int:
        """Resident memory of the process and its children."""
        assert self._process is not None
        process = psutil.Process(self._process.pid)
        return sum(p.memory_info().rss for p in (process, *process.children(recursive=True)))


def python() -> str:
    """This interpreter."""
    return sys.executable
