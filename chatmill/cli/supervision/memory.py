"""How much memory the processes of a mesh take together, read from Linux's /proc."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

PROC = Path("/proc")
SECONDS_BETWEEN = 1.0


class MemoryWatch:
    """Looks once a second and keeps the largest sum.

    What counts is the proportional set size of each process and its children: pages that several share count once,
    split among them. Elsewhere than on Linux nothing is measured.

    Args:
        pids: service name to process id, asked each time, since a service may be started anew.
    """

    def __init__(self, pids: Callable[[], Mapping[str, int]]) -> None:
        self._pids = pids
        self.peak_bytes = 0
        self.peak_by_service: dict[str, int] = {}

    async def watch(self) -> None:
        """Go on until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(SECONDS_BETWEEN)

    def look(self) -> None:
        """Look once."""
        sizes = {name: sum(map(_bytes, _with_children(pid))) for name, pid in self._pids().items() if pid}
        self.peak_bytes = max(self.peak_bytes, sum(sizes.values()))
        for name, size in sizes.items():
            self.peak_by_service[name] = max(size, self.peak_by_service.get(name, 0))


def _with_children(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for task in (PROC / str(parent) / "task").iterdir():
                found.extend(map(int, (task / "children").read_text().split()))
    return found


def _bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
