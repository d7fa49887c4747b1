"""Calls of a client with the server's errors mapped back, also in the middle of a stream: one class per arity.

`asyncio.CancelledError` stays what it is: it means that the caller itself cancelled.

When a server refuses a call whose requests are still being sent, gRPC's next write fails and overwrites the server's
status with INTERNAL "Internal error from Core", about half of the time (grpc#36066, open). Calls with streamed
requests therefore note every status as it comes, and report the server's. A server that answers OK before it has read
all requests can't be helped that way, since gRPC drops the answer too; ours read to the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
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


CORE_ERROR = "Internal error from Core"
_STATUS_POLL_SECONDS = 0.005
_STATUS_POLLS = 200


class _Wrapped(grpc.aio.Call):
    """What all arities share: everything is the inner call's."""

    def __init__(self, call: Any, origin: Origin) -> None:
        super().__init__()
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
            raise await self._mapped(error) from error

    async def _mapped(self, error: grpc.aio.AioRpcError) -> ChatmillError:
        return self._origin.mapped(error)


class _Answer(_Wrapped):
    """A call with one answer: await it."""

    def __await__(self) -> Generator[Any, None, Any]:
        return self._answer().__await__()

    async def _answer(self) -> Any:
        try:
            return await self._call
        except grpc.aio.AioRpcError as error:
            raise await self._mapped(error) from error


class Outbox:
    """Requests that are written one by one, as the iterator that gRPC sends from.

    gRPC's own `write` answers "Internal error from Core" when the server has refused the call meanwhile, and loses why.
    """

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue(maxsize=1)

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (request := await self._queue.get()) is not grpc.aio.EOF:
            yield request

    async def put(self, request: Any) -> None:
        """Hand over one request; waits until the one before has been taken."""
        await self._queue.put(request)


class _Requests(_Wrapped):
    """A call whose requests may be written one by one, if it was made without an iterator of them."""

    def __init__(self, call: Any, origin: Origin, outbox: Outbox | None = None) -> None:
        super().__init__(call, origin)
        self._outbox = outbox
        self._status: asyncio.Future[grpc.aio.AioRpcError] = asyncio.get_running_loop().create_future()
        self._late: asyncio.Future[None] | None = None
        call.add_done_callback(self._note_status)

    def _note_status(self, call: Any) -> None:
        """Keep the first status that is the server's; gRPC calls this for the first one that it sets itself."""
        if not self._take_status(call):
            self._late = asyncio.ensure_future(self._late_status(call))

    def _take_status(self, call: Any) -> bool:
        details = _at_once(call.details())
        if details == CORE_ERROR:
            return False
        code, trailing = _at_once(call.code()), _at_once(call.trailing_metadata())
        self._status.set_result(grpc.aio.AioRpcError(code, None, trailing, details))
        return True

    async def _late_status(self, call: Any) -> None:
        """The server's status replaces gRPC's own without a word to anyone, so there is nothing to wait on but time."""
        for _ in range(_STATUS_POLLS):
            await asyncio.sleep(_STATUS_POLL_SECONDS)
            if self._take_status(call):
                return
        self._status.set_result(grpc.aio.AioRpcError(_at_once(call.code()), None, None, CORE_ERROR))

    async def _mapped(self, error: grpc.aio.AioRpcError) -> ChatmillError:
        if error.details() == CORE_ERROR:
            error = await self._status
        return self._origin.mapped(error)

    async def write(self, request: Any) -> None:
        """Send one message; waits while the other side reads slowly.

        Raises:
            ChatmillError: what the server refused the call with.
            asyncio.InvalidStateError: if the server has answered already and wants no more.
        """
        if self._outbox is None:
            raise grpc.aio.UsageError(f"{self._origin.method} was made with an iterator of its requests")
        await self._hand_over(self._outbox, request)
        if self._status.done():
            error = self._status.result()
            if self._call.cancelled():
                raise asyncio.CancelledError
            if error.code().name == "OK":
                raise asyncio.InvalidStateError(f"{self._origin.method} has been answered; it takes no more requests")
            raise self._origin.mapped(error)

    async def done_writing(self) -> None:
        """Say that no more messages follow."""
        if self._outbox is not None:
            await self._hand_over(self._outbox, grpc.aio.EOF)

    async def _hand_over(self, outbox: Outbox, request: Any) -> None:
        """Put `request` into the outbox, or return when the call has ended first."""
        put = asyncio.ensure_future(outbox.put(request))
        try:
            await asyncio.wait((put, self._status), return_when=asyncio.FIRST_COMPLETED)
        finally:
            put.cancel()


def _at_once(answer: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine of a call that has ended returns; it has nothing to wait for, and done callbacks can't wait."""
    try:
        answer.send(None)
    except StopIteration as stop:
        return stop.value
    answer.close()
    return None


class _Answers(_Wrapped):
    """A call with a stream of answers: iterate over it. Dropping it before its end cancels it."""

    def __init__(self, call: Any, origin: Origin, *more: Any) -> None:
        super().__init__(call, origin, *more)
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
            raise await self._mapped(error) from error

    async def read(self) -> Any:
        """The next message, or `grpc.aio.EOF` at the end."""
        try:
            return await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise await self._mapped(error) from error

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
