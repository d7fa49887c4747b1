"""A gRPC server for asyncio, straight on the layer that Python's other gRPC servers stand on.

`grpc.aio`'s own takes some ten times the processor time for a call: each operation is a future, a task's turn and a way
from gRPC's thread to the event loop. Here they are plain functions in the event loop's thread (`completions.py`).
The rest is gRPC's: HTTP/2, TLS, flow control, deadlines, keepalive.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import grpc.aio
from grpc import _common
from grpc._cython import cygrpc

from chatmill.runtime.completions import Completions
from chatmill.runtime.served import Served

ACCEPTED_AT_ONCE = 16
"""Calls that gRPC's core may hand over before it is asked for more."""

Wrap = Callable[[str, Any], Any]


class DirectServer(grpc.aio.Server):
    """Serves coroutines.

    Args:
        wrap: makes of a method's full name and handler the one that is run, with coroutines as `Served` wants them.
        options: gRPC's channel arguments.
    """

    def __init__(self, wrap: Wrap, options: Sequence[tuple[str, Any]]) -> None:
        self._wrap = wrap
        self._handlers: dict[bytes, Any] = {}
        self._completions = Completions()
        self._core = cygrpc.Server(tuple(options), False)
        self._core.register_completion_queue(self._completions.queue)
        self._calls: set[Served] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._shut = asyncio.Event()
        self._stopping = False
        self._stopped = asyncio.Event()

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler[Any, Any]]) -> None:
        """Generated code calls this as well as `add_registered_method_handlers`, which tells more."""

    def add_registered_method_handlers(self, service_name: str, method_handlers: dict[str, Any]) -> None:
        """Serve the methods of a service."""
        for name, handler in method_handlers.items():
            method = f"/{service_name}/{name}"
            self._handlers[method.encode()] = self._wrap(method, handler)

    def add_insecure_port(self, address: str) -> int:
        """Listen there without TLS; the port."""
        return int(_common.validate_port_binding_result(address, self._core.add_http2_port(address.encode())))

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """Listen there with TLS; the port."""
        credentials = server_credentials._credentials  # type: ignore[attr-defined]  # noqa: SLF001
        return int(
            _common.validate_port_binding_result(address, self._core.add_http2_port(address.encode(), credentials))
        )

    async def start(self) -> None:
        """Take calls."""
        self._core.start()
        for _ in range(ACCEPTED_AT_ONCE):
            self._accept()
        self._completions.start()

    async def stop(self, grace: float | None) -> None:
        """Take no more calls, wait up to `grace` seconds for those under way, and cancel what is left."""
        if not self._stopping:
            self._stopping = True
            self._core.shutdown(self._completions.queue, lambda event: self._shut.set())
        if grace:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), grace)
        self._core.cancel_all_calls()
        await self._shut.wait()
        if not self._stopped.is_set():
            await self._completions.end()
            self._core.destroy()
            self._stopped.set()

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        """Wait until it has stopped; whether `timeout` seconds passed before."""
        try:
            await asyncio.wait_for(self._stopped.wait(), timeout)
        except TimeoutError:
            return True
        return False

    def _accept(self) -> None:
        queue = self._completions.queue
        self._core.request_call(queue, queue, self._on_call)

    def _on_call(self, event: Any) -> None:
        if not event.success:
            return  # the server stops
        if not self._stopping:
            self._accept()
        handler = self._handlers.get(event.call_details.method)
        call = Served(event, handler, self._forget)
        self._calls.add(call)
        self._idle.clear()
        if handler is None:
            call.refuse(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        else:
            call.begin()

    def _forget(self, call: Served) -> None:
        self._calls.discard(call)
        if not self._calls:
            self._idle.set()
