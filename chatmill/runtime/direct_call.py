"""One call as `direct_server.DirectServer` handles it, and as handlers see it: a `grpc.aio.ServicerContext`.

Handlers may rely on what `grpc.aio` promises, but a message that is written may still be on its way when `write`
returns. The next one waits until it has left, so a client that does not read holds up its handler one message later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, NoReturn

import grpc.aio

from chatmill.runtime.direct_context import NO_FLAGS, DirectContext
from chatmill.runtime.inner import layer

log = logging.getLogger(__name__)

BROKEN_OFF_SECONDS = 0.01
"""How long after the end of a client's messages gRPC may take to tell that they were broken off."""


class Requests:
    """The messages of a client that streams."""

    def __init__(self, call: DirectCall) -> None:
        self._call = call

    def __aiter__(self) -> Requests:
        return self

    async def __anext__(self) -> Any:
        """The next one."""
        message = await self._call.read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message


class DirectCall(DirectContext):
    """A call that has come.

    Args:
        event: gRPC's, with the call, its details and what the client sent along.
        handler: of its method; None if there is none. Its function is a coroutine that returns the answer or, if there
            are many, writes them.
        context: variables that the handler starts with.
        forget: called with it when nothing of it is under way any more.
    """

    def __init__(self, event: Any, handler: Any, context: Context, forget: Callable[[DirectCall], None]) -> None:
        super().__init__(event)
        self._handler = handler
        self._context = context
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._aborted = False
        self._held: Any = None  # a message that leaves in the next turn of the event loop
        self._sending = False
        self._sent: asyncio.Future[None] | None = None
        self._coming: asyncio.Future[bytes | None] | None = None  # the next message of a client that streams

    def begin(self) -> None:
        """Read the request, if the method takes a single one, and run the handler."""
        self._operate(self._on_close, layer.ReceiveCloseOnServerOperation(NO_FLAGS))
        if self._handler is None:
            self._end_with(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        elif self._handler.request_streaming:
            self._run(self._serve(Requests(self)))
        else:
            self._operate(self._on_request, layer.ReceiveMessageOperation(NO_FLAGS))

    def lose(self) -> None:
        """The server has ended and gRPC's core knows this call no more."""
        if not self._closed:
            self._close(cancelled=True)

    # What handlers see.

    async def read(self) -> Any:
        """The next message of a client that streams; `grpc.aio.EOF` after the last. One reader at a time.

        Raises:
            asyncio.CancelledError: the client has gone.
        """
        self._check()
        if self._coming is None:
            self._coming = self._loop.create_future()
            self._operate(self._on_message, layer.ReceiveMessageOperation(NO_FLAGS))
        # Somebody who gives up waiting must not take the message along.
        data = await asyncio.shield(self._coming)
        self._coming = None
        self._check()
        return grpc.aio.EOF if data is None else _through(self._handler.request_deserializer, data)

    async def write(self, message: Any) -> None:
        """Send one message; returns when the one before has left.

        It leaves in the next turn of the event loop, or together with the status if the handler ends before that.

        Raises:
            asyncio.CancelledError: one before could not be sent; the client has gone.
        """
        self._check()
        data = _through(self._handler.response_serializer, message)
        await self._all_sent()
        self._held = self._message(data)
        self._loop.call_soon(self._flush)

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Send the metadata that come before the answer."""
        self._check()
        self._flush()
        if self._begun:
            raise grpc.aio.UsageError("the initial metadata are already sent")
        self._initial = (*self._initial, *initial_metadata)
        self._sending = True
        self._operate(self._on_sent, *self._beginning())

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        """End the call with `code`.

        Raises:
            grpc.aio.AbortError: always, unless the call has ended already.
            grpc.aio.UsageError: it has.
        """
        self._check()
        if code is grpc.StatusCode.OK:
            raise ValueError("a call is not aborted with OK")
        self._aborted = True
        self.set_code(code)
        self._details = details or self._details
        self._trailing = tuple(trailing_metadata) or self._trailing
        await self._last_sent()
        self._end()
        raise _aborted()

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """See `abort`."""
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    # What happens.

    def _on_request(self, event: Any) -> None:
        data = event.batch_operations[0].message()
        if data is not None:
            self._run(self._serve(data))
        else:
            self._loop.call_soon(self._without_request)  # see `read`

    def _without_request(self) -> None:
        if not self._closed:
            self._end_with(grpc.StatusCode.UNIMPLEMENTED, "this method takes one message, and none came")

    def _on_message(self, event: Any) -> None:
        coming, data = self._coming, event.batch_operations[0].message()
        assert coming is not None
        if data is not None:
            _resolve(coming, data)
        elif event.success:
            # A client that has gone sends nothing more either, and that it has gone may be told a moment later.
            self._loop.call_later(BROKEN_OFF_SECONDS, self._on_messages_end, coming)
        else:
            self._cancel()

    def _on_messages_end(self, coming: asyncio.Future[bytes | None]) -> None:
        if not self._cancelled:
            _resolve(coming, None)

    def _on_sent(self, event: Any) -> None:
        self._sending = False
        if not event.success:
            # gRPC's core tells by the end of the call as well, but later; a handler must not go on until then.
            self._cancel()
        if self._sent is not None:
            _resolve(self._sent, None)
            self._sent = None

    def _on_close(self, event: Any) -> None:
        if not self._closed:
            self._close(cancelled=event.batch_operations[0].cancelled())

    def _close(self, *, cancelled: bool) -> None:
        self._closed = True
        if cancelled:
            self._cancel()
        if self._task is None or self._task.done():
            self._over()

    def _cancel(self) -> None:
        if not self._cancelled and not self._ended and self._task is not None:
            self._task.cancel()
        self._cancelled = True

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        if self._closed:
            self._over()

    def _over(self) -> None:
        self._forget(self)
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback(self)
            except Exception:
                log.exception("a callback at the end of a call failed")

    # How.

    def _run(self, serving: Coroutine[Any, Any, None]) -> None:
        if self._cancelled:
            serving.close()
            return
        self._task = self._loop.create_task(serving, context=self._context)
        self._task.add_done_callback(self._on_task_done)

    async def _serve(self, request: Any) -> None:
        handler, data = self._handler, None
        try:
            if not handler.request_streaming:
                request = _through(handler.request_deserializer, request)
            if handler.response_streaming:
                await (handler.stream_stream or handler.unary_stream)(request, self)
            else:
                answer = await (handler.stream_unary or handler.unary_unary)(request, self)
                if self._code in (None, grpc.StatusCode.OK):
                    data = _through(handler.response_serializer, answer)
            if not self._ended:
                await self._last_sent()
                self._end(data)
        except grpc.aio.AbortError:
            if not self._ended:
                self._end_with(grpc.StatusCode.UNKNOWN, "the handler broke off without a status")
        except asyncio.CancelledError:
            if not self._ended:
                self._end_with(grpc.StatusCode.CANCELLED, "the server broke off the call")
        except Exception as error:
            log.exception("a handler broke off")
            if not self._ended:
                self._end_with(grpc.StatusCode.UNKNOWN, f"Unexpected {type(error).__name__}")

    def _check(self) -> None:
        if self._aborted:
            raise _aborted()
        if self._ended:
            raise grpc.aio.UsageError("the call has ended")
        if self._closed or self._cancelled:
            raise asyncio.CancelledError("the client has gone")

    async def _all_sent(self) -> None:
        self._flush()
        while self._sending:
            await self._last_sent()
            self._flush()

    async def _last_sent(self) -> None:
        while self._sending:
            if self._sent is None:
                self._sent = self._loop.create_future()
            await asyncio.shield(self._sent)

    def _beginning(self) -> list[Any]:
        if self._begun:
            return []
        self._begun = True
        return [layer.SendInitialMetadataOperation(self._initial, NO_FLAGS)]

    def _message(self, data: bytes) -> Any:
        flags, self._flags = self._flags, NO_FLAGS
        return layer.SendMessageOperation(data, flags)

    def _flush(self) -> None:
        held, self._held = self._held, None
        if held is not None and not self._closed:
            self._sending = True
            self._operate(self._on_sent, *self._beginning(), held)

    def _end_with(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details
        self._end()

    def _end(self, data: bytes | None = None) -> None:
        self._ended = True
        if self._closed:
            return
        details = self._details.encode("utf-8", "replace").decode()
        held, self._held = self._held, None
        messages = [message for message in (held, None if data is None else self._message(data)) if message is not None]
        code = 0 if self._code is None else self._code.value[0]
        status = layer.SendStatusFromServerOperation(self._trailing, code, details, NO_FLAGS)
        self._operate(_nothing, *self._beginning(), *messages, status)

    def _operate(self, done: Callable[[Any], None], *operations: Any) -> None:
        # Without a status the call would stay open for ever, so where gRPC accepts none it ends for the client too.
        try:
            error = self._core.start_server_batch(operations, done)
        except BaseException:
            self._core.cancel()
            raise
        if error:
            log.error("gRPC does not accept what is to be sent", extra={"fields": {"error": error}})
            self._core.cancel()


def _resolve(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _aborted() -> grpc.aio.AbortError:
    # One that the call kept would keep the call in turn, by the frames that it was raised through.
    return grpc.aio.AbortError("Locally aborted.")


def _through(convert: Callable[[Any], Any] | None, value: Any) -> Any:
    return value if convert is None else convert(value)


def _nothing(event: Any) -> None:
    """All is done when the status has been sent, and `_on_close` tells that too."""
