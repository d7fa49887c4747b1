"""A bare server of one method, whose messages are bytes and whose handler a test brings."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from chatmill.runtime.direct_server import DirectServer

METHOD = "/tests.Direct/Method"
Behaviour = Callable[[Any, Any], Awaitable[Any]]


@asynccontextmanager
async def serving(make: Any, behaviour: Behaviour, *options: tuple[str, Any]) -> AsyncIterator[Any]:
    """A channel to a bare server of one method, whose messages are bytes; the server is its attribute `server`."""
    started, port = await start(make, behaviour, *options)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as connected:
        connected.server = started
        try:
            yield connected
        finally:
            await started.stop(1)
            gc.collect()  # what a failed test leaves in its traceback must not keep a call open in the next one


async def start(make: Any, behaviour: Behaviour, *options: tuple[str, Any]) -> tuple[DirectServer, int]:
    made = DirectServer(lambda method, handler: handler, options)
    made.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("tests.Direct", {"Method": make(behaviour)}),))
    port = made.add_insecure_port("127.0.0.1:0")
    await made.start()
    return made, port


async def echo(request: Any, context: Any) -> Any:
    return request
