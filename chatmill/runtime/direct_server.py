"""A gRPC server for asyncio, straight on the layer that Python's other gRPC servers stand on.

`grpc.aio`'s own takes several times the processor time for a call: each operation is a future, a task's turn and a way
from gRPC's thread to the event loop. Here they are plain functions in the event loop's thread (`completions.py`).
HTTP/2, TLS, flow control, deadlines and keepalive are the same code in both: that of gRPC's core.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc.aio

from chatmill.runtime import inner
from chatmill.runtime.completions import Completions
from chatmill.runtime.direct_call import DirectCall

log = logging.getLogger(__name__)

ACCEPTED_AT_ONCE = 16
"""Calls that gRPC's core may hand over before it is asked for more."""
END_SECONDS = 5.0
"""How long `stop` waits for gRPC's core to let go of the calls that it has cancelled."""


@dataclass(slots=True)
class _Details(grpc.HandlerCallDetails):
    method: str
    invocation_metadata: Any


class DirectServer(grpc.aio.Server):
    """Serves coroutines in the event loop that is running when this is made.

    Args:
        wrapped: makes of a method's full name and handler the one that is run, as `DirectCall` wants it.
        options: gRPC's channel arguments.
    """

    def __init__(self, wrapped: Callable[[str, Any], Any], options: Sequence[tuple[str, Any]]) -> None:
        self._wrapped = wrapped
        self._handlers: list[grpc.GenericRpcHandler] = []
        self._core = Completions(options, self._on_shut)
        # Handlers start with the variables of whoever made the server; the thread that brings the calls has none.
        self._context = contextvars.copy_context()
        self._calls: set[DirectCall] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._started = self._stopping = False

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Serve the methods of a service, or of several."""
        self._handlers.extend(generic_rpc_handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Any]) -> None:
        """What generated code calls besides `add_generic_rpc_handlers`, with the same methods again."""

    def add_insecure_port(self, address: str) -> int:
        """Listen there without TLS; the port.

        Raises:
            RuntimeError: the address can't be had.
        """
        return self._listening(address, self._core.server.add_http2_port(address.encode()))

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """Listen there with TLS; the port.

        Raises:
            RuntimeError: the address can't be had, or the certificate can't be used.
        """
        credentials = inner.credentials(server_credentials)
        return self._listening(address, self._core.server.add_http2_port(address.encode(), credentials))

    async def start(self) -> None:
        """Take calls."""
        self._started = True
        self._core.start()
        for _ in range(ACCEPTED_AT_ONCE):
            self._accept()

    async def stop(self, grace: float | None) -> None:
        """Take no more calls, wait up to `grace` seconds for those under way, cancel what is left, and free the port.

        Handlers that are cancelled may still be unwinding when this returns.
        """
        self._stopping = True
        if not self._started:
            self._started = True
            self._core.start()  # a server that never ran could not be shut
        self._core.shut()
        if grace:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), grace)
        self._core.server.cancel_all_calls()
        try:
            await asyncio.wait_for(self._core.ended.wait(), END_SECONDS)
        except TimeoutError:
            log.error("gRPC does not let go of its calls", extra={"fields": {"calls": len(self._calls)}})
        else:
            self._core.join()

    async def wait_for_termination(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """Wait until it has stopped; whether `timeout` seconds passed before."""
        try:
            await asyncio.wait_for(self._core.ended.wait(), timeout)
        except TimeoutError:
            return True
        return False

    @staticmethod
    def _listening(address: str, port: int) -> int:
        if not port:
            raise RuntimeError(f"gRPC failed to listen on {address}")
        return port

    def _accept(self) -> None:
        self._core.server.request_call(self._core.queue, self._core.queue, self._on_call)

    def _on_call(self, event: Any) -> None:
        if not self._stopping:
            self._accept()
        if not event.success:
            return  # the server stops, or the call was over before it came
        handler = self._handler(event.call_details.method.decode(errors="replace"), event.invocation_metadata)
        call = DirectCall(event, handler, self._context.copy(), self._forget)
        self._calls.add(call)
        self._idle.clear()
        try:
            call.begin()
        except BaseException:
            self._forget(call)
            raise

    def _on_shut(self) -> None:
        for call in list(self._calls):
            call.lose()

    def _handler(self, method: str, metadata: Any) -> Any:
        details = _Details(method, metadata)
        for handlers in self._handlers:
            handler = handlers.service(details)
            if handler is not None:
                return self._wrapped(method, handler)
        return None

    def _forget(self, call: DirectCall) -> None:
        self._calls.discard(call)
        if not self._calls:
            self._idle.set()
