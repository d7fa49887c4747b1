"""Servers for tests: real ones, in the test's own event loop, on 127.0.0.1 and a free port.

grpcio-testing is for the threaded stack only, and a fake transport would hide what the interceptor is for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from chatmill import config as configuration
from chatmill.config import Config
from chatmill.runtime import channel, server


def local_config(home: Path, overrides: Mapping[str, str] | None = None) -> Config:
    """Defaults with state under `home` and every port chosen by the system; the environment and files do not count."""
    ports = {f"{name}.port": "0" for name in (*configuration.SERVICES, "bridge")}
    values = {"mesh.home": str(home), "mesh.drain_seconds": "0", **ports, **(overrides or {})}
    return configuration.load(None, {}, values, look=False)


@dataclass(frozen=True, slots=True)
class Harness:
    """A running server and a client channel to it.

    Attributes:
        running: the server.
        channel: one of ours.
    """

    running: server.Running
    channel: channel.Channel


@asynccontextmanager
async def running(service: server.Service, config: Config) -> AsyncIterator[Harness]:
    """Start `service`, make it ready, connect; stop it on the way out, with no more than 2 s of grace."""
    started = await server.start(service, config)
    try:
        await started.become_ready()
        async with channel.connect(started.target, config) as client:
            yield Harness(started, client)
    finally:
        await started.stop(drain=0, grace=2)
