"""The probe service as a process of its own, as a service's `__main__` would be; leaves a mark when it closes."""

from __future__ import annotations

import asyncio
import os
import sys

import probe_service as probe

from chatmill.config import Config
from chatmill.errors import FailedPrecondition
from chatmill.runtime import server


async def build(config: Config) -> server.Service:
    servicer = probe.ProbeServicer()
    (config.home / "built").touch()
    mode = os.environ.get("PROBE_READY", "")

    async def ready() -> None:
        if mode == "fail":
            raise FailedPrecondition("the base model x is missing; put it into factory.roots")
        if mode == "never":
            print("getting ready", file=sys.stderr)
            await asyncio.Event().wait()

    async def close() -> None:
        (config.home / "closed").touch()

    return server.Service("dataset", [(probe.add_to_server, servicer)], ready=ready, close=close)


if __name__ == "__main__":
    sys.exit(server.main("dataset", build))
