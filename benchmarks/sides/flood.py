"""Calls at a steady rate by h2load, which takes hardly any of the processor that the service needs.

A load generator in Python takes as much of two cores as the service, and then times itself. h2load (Debian's
`nghttp2-client`) sends the same bytes to the same method and knows nothing of gRPC, so it can't tell a refusal from
an answer; it writes down how long each call took.
"""

from __future__ import annotations

import asyncio
import math
import shutil
import tempfile
from pathlib import Path

from benchmarks.sides.base import Missing
from chatmill.inference.v1 import GenerateRequest

METHOD = "chatmill.inference.v1.InferenceService/Generate"
TICK = 0.01
"""Seconds between two looks of one h2load at what is due; each process sends one call in it at most."""


class Flood:
    """Several h2loads, out of step with each other.

    Args:
        port: of the service, on this machine.
        request: what every call sends.
        rate: calls per second, all together.
        seconds: for how long.
    """

    def __init__(self, port: int, request: GenerateRequest, rate: float, seconds: float) -> None:
        self._scratch = tempfile.TemporaryDirectory()
        self._folder = Path(self._scratch.name)
        message = request.SerializeToString()
        body = self._folder / "body"
        body.write_bytes(b"\0" + len(message).to_bytes(4) + message)
        self._clients = math.ceil(rate * TICK)
        self._command = (
            *("h2load", "--clients=1", "--threads=1", "--max-concurrent-streams=10000"),
            *(f"--rps={rate / self._clients}", f"--duration={math.ceil(seconds)}", f"--data={body}"),
            *("--header=content-type: application/grpc", "--header=te: trailers"),
            f"http://127.0.0.1:{port}/{METHOD}",
        )
        self._processes: list[asyncio.subprocess.Process] = []

    @staticmethod
    def there() -> bool:
        """Whether h2load is installed."""
        return shutil.which("h2load") is not None

    async def run(self) -> list[float]:
        """Send all of it; the milliseconds that each call took which ended in the time, the shortest first.

        Raises:
            Missing: a process failed, or some call got no answer of HTTP's 200, which refusals of gRPC have too.
        """
        quiet = asyncio.subprocess.DEVNULL
        logs = [self._folder / f"log-{number}" for number in range(self._clients)]
        for log in logs:
            command = (*self._command, f"--log-file={log}")
            self._processes.append(await asyncio.create_subprocess_exec(*command, stdout=quiet, stderr=quiet))
            await asyncio.sleep(TICK / self._clients)
        if any(await asyncio.gather(*(process.wait() for process in self._processes))):
            raise Missing(f"h2load failed; try it by hand: {' '.join(self._command)}")
        calls = [line.split() for log in logs for line in log.read_text().splitlines()]
        if broken := sum(status != "200" for _, status, _ in calls):
            raise Missing(f"{broken} of h2load's {len(calls)} calls broke off")
        return sorted(int(microseconds) / 1000 for _, _, microseconds in calls)

    async def stop(self) -> None:
        """End what still runs."""
        for process in self._processes:
            if process.returncode is None:
                process.kill()
                await process.wait()
        self._scratch.cleanup()
