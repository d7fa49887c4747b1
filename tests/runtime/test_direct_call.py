"""Our own gRPC server: what a call may rely on when a client or a handler misbehaves."""

from __future__ import annotations

import asyncio
import contextvars
import gc
from collections.abc import Callable
from typing import Any

import grpc.aio
import pytest
from bare_server import METHOD, echo, serving

from chatmill.runtime.direct_call import DirectCall


async def test_a_method_of_one_message_that_gets_none_says_so() -> None:
    async with serving(grpc.unary_unary_rpc_method_handler, echo) as connected:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await connected.stream_unary(METHOD)(iter(()))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert await connected.unary_unary(METHOD)(b"a") == b"a"


async def test_an_upload_that_breaks_off_never_looks_finished() -> None:
    """gRPC tells the end of the messages and that the client has gone one after the other."""
    ends: list[str] = []

    async def take(requests: Any, context: Any) -> bytes:
        try:
            async for _ in requests:
                pass
        except asyncio.CancelledError:
            ends.append("broken off")
            raise
        ends.append("finished")
        return b""

    async with serving(grpc.stream_unary_rpc_method_handler, take) as connected:

        async def break_off(messages: int) -> None:
            upload = connected.stream_unary(METHOD)()
            for _ in range(messages):
                await upload.write(b"part")
            upload.cancel()

        for _ in range(30):
            await asyncio.gather(*(break_off(1 + index % 5) for index in range(20)))
        assert await connected.stream_unary(METHOD)(iter([b"part"] * 3)) == b""
    # a call that was cancelled before it left has never come
    assert ends.count("finished") == 1
    assert ends.count("broken off") > 100


async def test_a_client_that_does_not_read_holds_up_its_handler_and_no_other() -> None:
    written = 0
    held_up = asyncio.Event()

    async def write(request: bytes, context: Any) -> None:
        nonlocal written
        for _ in range(int(request)):
            try:
                async with asyncio.timeout(1):
                    await context.write(b"x" * 100_000)
            except TimeoutError:
                held_up.set()
                raise
            written += 1

    async with serving(grpc.unary_stream_rpc_method_handler, write) as connected:
        slow = connected.unary_stream(METHOD)(b"1000")
        async with asyncio.timeout(10):
            await held_up.wait()
        # what may be on its way is what the two windows of HTTP/2 and one message hold
        assert 0 < written < 200
        assert len([message async for message in connected.unary_stream(METHOD)(b"3")]) == 3
        slow.cancel()


@pytest.mark.parametrize("size", [50_000, 70_000])
async def test_a_request_beyond_the_limit_is_refused_and_the_server_goes_on(size: int) -> None:
    async with serving(
        grpc.unary_unary_rpc_method_handler, echo, ("grpc.max_receive_message_length", 60_000)
    ) as connected:
        if size < 60_000:
            assert len(await connected.unary_unary(METHOD)(b"a" * size)) == size
        else:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await connected.unary_unary(METHOD)(b"a" * size)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await connected.unary_unary(METHOD)(b"a") == b"a"


async def test_an_answer_beyond_the_limit_ends_the_call() -> None:
    async def write(request: bytes, context: Any) -> None:
        for _ in range(3):
            await context.write(b"a" * 70_000)

    async with serving(
        grpc.unary_stream_rpc_method_handler, write, ("grpc.max_send_message_length", 60_000)
    ) as connected:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(aiter(connected.unary_stream(METHOD)(b"")))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_variables_of_one_call_are_not_those_of_another() -> None:
    variable: contextvars.ContextVar[bytes] = contextvars.ContextVar("variable", default=b"")

    async def look(request: bytes, context: Any) -> bytes:
        before = variable.get()
        variable.set(request)
        await asyncio.sleep(0)
        return before + variable.get()

    async with serving(grpc.unary_unary_rpc_method_handler, look) as connected:
        method = connected.unary_unary(METHOD)
        texts = [b"%d" % index for index in range(200)]
        assert await asyncio.gather(*(method(text) for text in texts)) == texts


@pytest.mark.parametrize("request_", [b"first", b"last"])
async def test_metadata_that_grpc_does_not_accept_end_the_call(request_: bytes) -> None:
    async def answer(request: bytes, context: Any) -> bytes:
        if request == b"first":
            await context.send_initial_metadata((("Blanks and capitals", "are not allowed"),))
        else:
            context.set_trailing_metadata((("Blanks and capitals", "are not allowed"),))
        return request

    async with serving(grpc.unary_unary_rpc_method_handler, answer) as connected:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await connected.unary_unary(METHOD)(request_, timeout=10)
        assert caught.value.code() is grpc.StatusCode.INTERNAL


async def test_a_defect_outside_of_all_middlewares_is_unknown(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(request: bytes, context: Any) -> bytes:
        raise LookupError("the secret is 42")

    async with serving(grpc.unary_unary_rpc_method_handler, fail) as connected:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await connected.unary_unary(METHOD)(b"")
    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    assert "secret" not in caught.value.details()  # type: ignore[operator]
    assert "LookupError" in caplog.text


async def test_everything_a_handler_may_ask_of_its_call() -> None:
    seen: dict[str, Any] = {}

    async def ask(request: bytes, context: Any) -> None:
        seen["peer"] = context.peer()
        seen["metadata"] = dict(context.invocation_metadata())
        seen["remaining"] = context.time_remaining()
        seen["identities"] = (context.peer_identities(), context.peer_identity_key(), dict(context.auth_context()))
        seen["states"] = (context.cancelled(), context.done(), context.code(), context.details())
        context.add_done_callback(lambda context: seen.update(done=context.done()))
        context.set_compression(grpc.Compression.Gzip)
        await context.send_initial_metadata((("first", "1"),))
        with pytest.raises(grpc.aio.UsageError):
            await context.send_initial_metadata((("first", "2"),))
        with pytest.raises(RuntimeError):
            context.set_compression(grpc.Compression.Deflate)
        context.disable_next_message_compression()
        await context.write(b"a" * 2_000)
        await context.write(b"b" * 2_000)
        context.set_trailing_metadata((("last", "1"),))
        context.set_code(grpc.StatusCode.DATA_LOSS)
        context.set_details("some")

    async with serving(grpc.unary_stream_rpc_method_handler, ask) as connected:
        call = connected.unary_stream(METHOD)(b"", timeout=30, metadata=(("key", "value"),))
        assert dict(await call.initial_metadata()) == {"first": "1"}
        assert [await call.read() for _ in range(2)] == [b"a" * 2_000, b"b" * 2_000]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.DATA_LOSS, "some")
        assert dict(caught.value.trailing_metadata()) == {"last": "1"}
    assert seen["peer"].startswith("ipv4:127.0.0.1:")
    assert seen["metadata"]["key"] == "value"
    assert 0 < seen["remaining"] <= 30
    assert seen["identities"][:2] == (None, None)
    assert seen["states"] == (False, False, None, "")
    assert seen["done"] is True


async def test_nothing_can_be_sent_after_the_end() -> None:
    outcome: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()

    async def go_on(request: bytes, context: Any) -> None:
        raised = []
        for step in (
            lambda: context.abort(grpc.StatusCode.OK),
            lambda: context.abort(grpc.StatusCode.ABORTED, "end"),
            lambda: context.write(b"a"),
            lambda: context.read(),
            lambda: context.abort(grpc.StatusCode.ABORTED, "again"),
        ):
            try:
                await step()
            except (ValueError, grpc.aio.AbortError, grpc.aio.UsageError) as error:
                raised.append(type(error).__name__)
        outcome.set_result(raised)

    async with serving(grpc.unary_stream_rpc_method_handler, go_on) as connected:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(aiter(connected.unary_stream(METHOD)(b"")))
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.ABORTED, "end")
        assert await outcome == ["ValueError", "AbortError", "AbortError", "AbortError", "AbortError"]


@pytest.mark.parametrize(
    ("ending", "code", "details"),
    [
        (lambda context: context.set_details("half a pair: \ud800"), grpc.StatusCode.NOT_FOUND, "half a pair: ?"),
        (lambda context: context.set_code(5), grpc.StatusCode.NOT_FOUND, ""),
        (lambda context: context.set_trailing_metadata((("key", 5),)), grpc.StatusCode.CANCELLED, "CANCELLED"),
    ],
)
async def test_a_status_that_can_not_be_sent_as_it_is_ends_the_call(
    ending: Callable[[Any], None], code: grpc.StatusCode, details: str
) -> None:
    async def end(request: bytes, context: Any) -> None:
        context.set_code(grpc.StatusCode.NOT_FOUND)
        ending(context)

    async with serving(grpc.unary_unary_rpc_method_handler, end) as connected:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await connected.unary_unary(METHOD)(b"", timeout=10)
        assert (caught.value.code(), caught.value.details()) == (code, details)


async def test_a_read_that_is_given_up_does_not_lose_the_message() -> None:
    async def patient(requests: Any, context: Any) -> bytes:
        got = []
        while True:
            try:
                async with asyncio.timeout(0.02):
                    message = await context.read()
            except TimeoutError:
                continue
            if message is grpc.aio.EOF:
                return b" ".join(got)
            got.append(message)

    async with serving(grpc.stream_unary_rpc_method_handler, patient) as connected:
        upload = connected.stream_unary(METHOD)()
        for message in (b"a", b"b", b"c"):
            await upload.write(message)
            await asyncio.sleep(0.05)
        await upload.done_writing()
        assert await upload == b"a b c"


async def test_two_tasks_may_write_to_one_call() -> None:
    async def write(request: bytes, context: Any) -> None:
        async def some(name: bytes) -> None:
            for index in range(100):
                await context.write(name + b"%d" % index)

        await asyncio.gather(some(b"a"), some(b"b"))

    async with serving(grpc.unary_stream_rpc_method_handler, write) as connected:
        got = [message async for message in connected.unary_stream(METHOD)(b"", timeout=30)]
    for name in (b"a", b"b"):
        assert [message for message in got if message.startswith(name)] == [name + b"%d" % n for n in range(100)]


async def test_a_refused_call_is_gone_without_the_garbage_collector() -> None:
    async def refuse(request: bytes, context: Any) -> None:
        await context.abort(grpc.StatusCode.ABORTED, "no")

    async with serving(grpc.unary_unary_rpc_method_handler, refuse) as connected:
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                with pytest.raises(grpc.aio.AioRpcError):
                    await connected.unary_unary(METHOD)(b"")
            left = [found for found in gc.get_objects() if isinstance(found, DirectCall)]
        finally:
            gc.enable()
    assert len(left) <= 1  # the last one may still be on its way out
