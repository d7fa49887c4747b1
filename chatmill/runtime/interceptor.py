"""The one server interceptor: every arity and both handler shapes become one path through small middlewares.

gRPC knows four arities, and a streaming handler may be an async generator or a coroutine that calls `context.write`
(grpc_health's Watch is one). An interceptor that wraps only the call that makes a generator misses every error raised
while streaming. So this is the only interceptor in the project; whatever must happen around every call is a middleware:
a function that gets a `Call`. It does its work before the handler runs, or returns a context manager to run the handler
in, an async one if it has to wait for something. They are called and entered in order, so the first is outermost.

What the latter may rely on: exceptions of the handler arrive at its `yield`, in streams too; `grpc.aio.AbortError`
means that the status is already sent and must be raised on; `asyncio.CancelledError` means that the client has gone or
the deadline has passed and must be raised on too (a handler that swallows it leaks native memory, grpc#43360).
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc.aio
from google.protobuf.message import DecodeError

from chatmill.errors import MESSAGE_TOO_LARGE, InvalidArgument, ResourceExhausted
from chatmill.runtime import Context


@dataclass(slots=True)
class Call:
    """One RPC as the middlewares see it.

    Attributes:
        method: full name, `/chatmill.factory.v1.FactoryService/Train`.
        context: gRPC's own.
        metadata: what the client sent; text values only, the last one of a repeated key.
        request_id: set by the first middleware.
        principal: name of the authenticated caller; empty if nobody asked.
        error: message of the error that ended the call, for the log.
        sent: messages written so far by a streaming handler.
        checks: run with every request message before the handler sees it; they raise to refuse.
    """

    method: str
    context: Context
    metadata: dict[str, str]
    request_id: str = ""
    principal: str = ""
    error: str = ""
    sent: int = 0
    checks: list[Callable[[Any], None]] = field(default_factory=list)

    @property
    def service(self) -> str:
        """Full name of the service, without the method."""
        return self.method[1:].partition("/")[0]

    def checked(self, request: Any) -> Any:
        """`request` after all checks."""
        if isinstance(request, DecodeError):
            raise InvalidArgument(
                "the request's bytes are no message of this method: something was cut off, or a text is not UTF-8. "
                "Make the client from the contract in protos/."
            )
        for check in self.checks:
            check(request)
        return request

    async def checked_each(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """The stream `requests`, each message after all checks."""
        async for request in requests:
            yield self.checked(request)


Middleware: TypeAlias = Callable[[Call], AbstractContextManager[None] | AbstractAsyncContextManager[None] | None]


class MeshInterceptor(grpc.aio.ServerInterceptor):
    """Runs `middlewares` around every handler of a server.

    Args:
        middlewares: the outermost first.
        max_message_bytes: limit of one message. gRPC itself would tell only the client that a stream's is larger.
    """

    def __init__(self, middlewares: Sequence[Middleware], max_message_bytes: int) -> None:
        self._middlewares = tuple(middlewares)
        self._max_message_bytes = max_message_bytes
        self._wrapped: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The handler of the call, wrapped; None stays None, which gRPC answers with UNIMPLEMENTED."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        return self.wrapped(handler_call_details.method, handler)

    def wrapped(self, method: str, handler: Any) -> Any:
        """`handler` with the middlewares around it; its function is a coroutine, which writes if it answers a stream.

        Args:
            method: full name, `/chatmill.factory.v1.FactoryService/Train`.
            handler: as generated code makes it.
        """
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = self._wrapped[method] = handler, self._wrap(method, handler)
        return known[1]

    def _wrap(self, method: str, handler: Any) -> Any:
        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        behavior = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        wrap = self._streaming if handler.response_streaming else self._single
        wrapped: Any = wrap(method, behavior, handler.request_streaming)
        return make(wrapped, _readable(handler.request_deserializer), handler.response_serializer)

    def _check_size(self, message: Any, method: str) -> None:
        size = message.ByteSize()
        if size > self._max_message_bytes:
            raise ResourceExhausted(
                f"{method}: a message of the answer has {size} bytes; mesh.max_message_bytes allows "
                f"{self._max_message_bytes}.",
                reason=MESSAGE_TOO_LARGE,
            )

    async def _enter(self, stack: AsyncExitStack, call: Call) -> None:
        for middleware in self._middlewares:
            around = middleware(call)
            if around is None:
                continue
            if isinstance(around, AbstractContextManager):
                stack.enter_context(around)
            else:
                await stack.enter_async_context(around)

    def _single(self, method: str, behavior: Callable[..., Any], streams_in: bool) -> Callable[..., Awaitable[Any]]:
        async def handle(request: Any, context: Context) -> Any:
            call = _call(method, context)
            async with AsyncExitStack() as stack:
                await self._enter(stack, call)
                return await behavior(call.checked_each(request) if streams_in else call.checked(request), context)

        return handle

    def _streaming(self, method: str, behavior: Callable[..., Any], streams_in: bool) -> Callable[..., Awaitable[None]]:
        # always the coroutine shape: gRPC looks at the function, and only a coroutine can serve both kinds of handler
        async def handle(request: Any, context: Context) -> None:
            call = _call(method, context)
            async with AsyncExitStack() as stack:
                await self._enter(stack, call)
                result = behavior(call.checked_each(request) if streams_in else call.checked(request), context)
                if inspect.isawaitable(result):
                    await result
                    return
                if isinstance(result, AsyncGenerator):
                    # a cancel that arrives during write must still run the handler's finally, now and not at some gc
                    result = await stack.enter_async_context(aclosing(result))
                async for message in result:
                    self._check_size(message, method)
                    await context.write(message)
                    call.sent += 1

        return handle


def _readable(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """The same, with an error as its result: one that is raised here gRPC answers itself, past all middlewares."""

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError as error:
            return error

    return read


def _call(method: str, context: Context) -> Call:
    metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    return Call(method, context, metadata)
