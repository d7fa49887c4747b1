"""Standard gRPC health: one status per service name and one, under the empty name, for the whole process.

All are NOT_SERVING until the process says that it is ready, and again, for good, as soon as it begins to stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

_STATUS = health_pb2.HealthCheckResponse


class Health:
    """The health of one server.

    Args:
        server: the server that answers Check and Watch; not started yet.
        services: full names of its services.
    """

    def __init__(self, server: grpc.aio.Server, services: Sequence[str]) -> None:
        self._servicer: Any = health_aio.HealthServicer()
        self._names = ("", *services)
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def starting(self) -> None:
        """All NOT_SERVING; the servicer of the library would begin as SERVING."""
        await self._set(_STATUS.NOT_SERVING)

    async def ready(self) -> None:
        """All SERVING, unless the server is already stopping."""
        await self._set(_STATUS.SERVING)

    async def stopping(self) -> None:
        """All NOT_SERVING for good."""
        await self._servicer.enter_graceful_shutdown()

    async def set(self, service: str, *, serving: bool) -> None:
        """The status of one service, for example while its model is loaded anew."""
        await self._servicer.set(service, _STATUS.SERVING if serving else _STATUS.NOT_SERVING)

    async def _set(self, value: Any) -> None:
        for name in self._names:
            await self._servicer.set(name, value)


async def check(channel: grpc.aio.Channel, service: str = "", *, seconds: float = 5.0) -> bool:
    """Whether `service` (full name; empty for the whole process) says SERVING, asked for at most `seconds`.

    Raises:
        Unavailable: if nothing answers, when `channel` is one of ours.
    """
    stub = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=seconds)
    return bool(answer.status == _STATUS.SERVING)
