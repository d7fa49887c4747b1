"""Calls of a client with the server's errors mapped back, also in the middle of a stream: one class per arity.

`asyncio.CancelledError` stays what it is: it means that the caller itself cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from dataclasses import dataclass
from typing import Any

import grpc.aio

from chatmill.errors import ChatmillError
from chatmill.runtime import status


@dataclass(frozen=True, slots=True)
class Origin:
    """What an error's message needs to know about its call.

    Attributes:
        target: address that was called.
        method: full method name.
        request_id: id that was sent.
    """

    target: str
    method: str
    request_id: str

    def mapped(self, error: grpc.aio.AioRpcError) -> ChatmillError:
        """The class that the server raised; its metadata holds the `request_id` under which the logs have the call."""
        result = status.from_rpc_error(error, target=self.target, method=self.method)
        result.metadata.setdefault("request_id", self.request_id)
        return result


class _Wrapped(grpc.aio.Call):
    """What all arities share: everything is the inner call's."""

    def __init__(self, call: Any, origin: Origin) -> None:
        self._call = call
        self._origin = origin

    @property
    def request_id(self) -> str:
        """Id under which the logs of the mesh have this call."""
        return self._origin.request_id

    def cancelled(self) -> bool:
        """Whether the call was cancelled."""
        return bool(self._call.cancelled())

    def done(self) -> bool:
        """Whether the call has ended."""
        return bool(self._call.done())

    def time_remaining(self) -> float | None:
        """Seconds to the deadline; None without one."""
        remaining: float | None = self._call.time_remaining()
        return remaining

    def cancel(self) -> bool:
        """Cancel the call; False if it had ended."""
        return bool(self._call.cancel())

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Run `callback` with gRPC's own call when it has ended."""
        self._call.add_done_callback(callback)

    async def initial_metadata(self) -> grpc.aio.Metadata:
        """What the server sent before the first message."""
        return await self._call.initial_metadata()  # type: ignore[no-any-return]

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        """What the server sent with the status."""
        return await self._call.trailing_metadata()  # type: ignore[no-any-return]

    async def code(self) -> grpc.StatusCode:
        """The status code, when the call has ended."""
        return await self._call.code()  # type: ignore[no-any-return]

    async def details(self) -> str:
        """The status message, when the call has ended."""
        return await self._call.details()  # type: ignore[no-any-return]

    async def wait_for_connection(self) -> None:
        """Return when the call has a connection."""
        try:
            await self._call.wait_for_connection()
        except grpc.aio.AioRpcError as error:
            raise self._origin.mapped(error) from error


class _Answer(_Wrapped):
    """A call with one answer: await it."""

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            return (yield from self._call.__await__())
        except grpc.aio.AioRpcError as error:
            raise self._origin.mapped(error) from error


class _Requests(_Wrapped):
    """A call whose requests may be written one by one."""

    async def write(self, request: Any) -> None:
        """Send one message; waits while the other side reads slowly."""
        try:
            await self._call.write(request)
        except grpc.aio.AioRpcError as error:
            raise self._origin.mapped(error) from error

    async def done_writing(self) -> None:
        """Say that no more messages follow."""
        await self._call.done_writing()


class _Answers(_Wrapped):
    """A call with a stream of answers: iterate over it. Dropping it before its end cancels it."""

    def __init__(self, call: Any, origin: Origin) -> None:
        super().__init__(call, origin)
        self._loop = asyncio.get_running_loop()
        self._messages: AsyncIterator[Any] | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        if self._messages is None:
            self._messages = aiter(self._call)
        return self

    async def __anext__(self) -> Any:
        if self._messages is None:
            self._messages = aiter(self._call)
        try:
            return await anext(self._messages)
        except grpc.aio.AioRpcError as error:
            raise self._origin.mapped(error) from error

    async def read(self) -> Any:
        """The next message, or `grpc.aio.EOF` at the end."""
        try:
            return await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise self._origin.mapped(error) from error

    def __del__(self) -> None:
        # the garbage collector may run in any thread, the call belongs to its loop
        if not self._loop.is_closed() and not self._call.done():
            self._loop.call_soon_threadsafe(self._call.cancel)


class UnaryUnary(_Answer, grpc.aio.UnaryUnaryCall[Any, Any]):
    """One message, one answer."""


class StreamUnary(_Answer, _Requests, grpc.aio.StreamUnaryCall[Any, Any]):
    """Many messages, one answer."""


class UnaryStream(_Answers, grpc.aio.UnaryStreamCall[Any, Any]):
    """One message, many answers."""


class StreamStream(_Answers, _Requests, grpc.aio.StreamStreamCall[Any, Any]):
    """Many messages, many answers."""
