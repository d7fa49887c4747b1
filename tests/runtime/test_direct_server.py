"""Our own gRPC server: what a call may rely on when a client, a handler or the event loop misbehaves."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from probe_service import ProbeRequest, ProbeServicer, ProbeStub, add_to_server

from chatmill.config import Config
from chatmill.errors import InvalidArgument, ResourceExhausted
from chatmill.runtime import inner, server, testing
from chatmill.runtime.direct_call import DirectCall
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


async def test_it_is_what_answers_unless_it_is_told_not_to(service: server.Service, config: Config) -> None:
    """An upgrade of gRPC that takes away what it stands on fails here; the services then fall back to grpc.aio's."""
    assert inner.missing() == []
    async with testing.running(service, config) as harness:
        assert isinstance(harness.running.server, DirectServer) == (config.mesh.grpc_server == "direct")


async def test_where_grpc_does_not_fit_its_own_server_answers(
    service: server.Service, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(inner, "_NEEDED", ("Server.start", "Server.is_new_and_better"))
    async with testing.running(service, testing.local_config(tmp_path)) as harness:
        assert not isinstance(harness.running.server, DirectServer)
        assert (await ProbeStub(harness.channel).UnaryUnary(ProbeRequest(name="a"))).text == "a"  # type: ignore[attr-defined]
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.fields == {"missing": ["Server.is_new_and_better"]}  # type: ignore[attr-defined]


async def test_another_name_of_a_server_is_refused(tmp_path: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"mesh\.grpc_server"):
        testing.local_config(tmp_path, {"mesh.grpc_server": "best"})


async def test_an_unknown_method_is_unimplemented() -> None:
    async with serving(grpc.unary_unary_rpc_method_handler, echo) as connected:
        for method in ("/tests.Direct/Other", "/tests.Nothing/Method", "/"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await connected.unary_unary(method)(b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


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


async def test_stopping_waits_for_calls_and_can_be_asked_for_twice() -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def wait(request: bytes, context: Any) -> bytes:
        entered.set()
        await leave.wait()
        return request

    async with serving(grpc.unary_unary_rpc_method_handler, wait) as connected:
        call = asyncio.ensure_future(connected.unary_unary(METHOD)(b"a"))
        await entered.wait()
        stops = [asyncio.create_task(connected.server.stop(10)) for _ in range(2)]
        assert await connected.server.wait_for_termination(0.05)
        leave.set()
        assert await call == b"a"
        await asyncio.gather(*stops)
        assert not await connected.server.wait_for_termination()
    assert not [thread for thread in threading.enumerate() if thread.name == "grpc-completions"]


async def test_stopping_cancels_what_does_not_end() -> None:
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def wait(request: bytes, context: Any) -> bytes:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return request

    async with serving(grpc.unary_unary_rpc_method_handler, wait) as connected:
        call = asyncio.ensure_future(connected.unary_unary(METHOD)(b"a"))
        await entered.wait()
        await connected.server.stop(None)
        assert cancelled.is_set()
        with pytest.raises(grpc.aio.AioRpcError):
            await call


async def test_a_handler_that_ignores_its_cancel_holds_up_nothing() -> None:
    entered, leave, outcomes = asyncio.Event(), asyncio.Event(), []

    async def ignore(requests: Any, context: Any) -> None:
        entered.set()
        while not leave.is_set():
            try:
                await leave.wait()
            except asyncio.CancelledError:
                continue
        for step in (context.read, lambda: context.write(b"a"), lambda: context.abort(grpc.StatusCode.ABORTED, "b")):
            try:
                await step()
            except asyncio.CancelledError:
                outcomes.append("gone")

    started, port = await start(grpc.stream_stream_rpc_method_handler, ignore)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as connected:
        call = connected.stream_stream(METHOD)()
        await entered.wait()
        try:
            await started.stop(0)
            with socket.socket() as free:
                free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                free.bind(("127.0.0.1", port))
            with pytest.raises(grpc.aio.AioRpcError):
                await call.read()
        finally:
            leave.set()
        await asyncio.wait_for(started._idle.wait(), 5)  # an operation on a server that has gone would end the process
    assert outcomes == ["gone"] * 3


async def test_a_server_that_never_ran_can_be_stopped() -> None:
    made = DirectServer(lambda method, handler: handler, ())
    port = made.add_insecure_port("127.0.0.1:0")
    await made.stop(1)
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))


def test_an_event_loop_that_is_closed_without_a_stop_ends_the_server() -> None:
    entered = threading.Event()

    async def wait(request: bytes, context: Any) -> bytes:
        entered.set()
        await asyncio.Event().wait()
        return request

    loop = asyncio.new_event_loop()
    try:
        _, port = loop.run_until_complete(start(grpc.unary_unary_rpc_method_handler, wait))
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "grpc-completions"]
        with grpc.insecure_channel(f"127.0.0.1:{port}") as connected:
            call = connected.unary_unary(METHOD).future(b"a", timeout=30)
            while not entered.is_set():
                loop.run_until_complete(asyncio.sleep(0.01))
            loop.close()
            assert isinstance(call.exception(timeout=10), grpc.RpcError)
        thread.join(10)
        assert not thread.is_alive()
    finally:
        loop.close()


async def test_refusals_of_many_clients_leave_nothing_behind(servicer: ProbeServicer, tmp_path: Any) -> None:
    servicer.error = ResourceExhausted("later", retry_after=1)
    service = server.Service("dataset", [(add_to_server, servicer)])
    async with testing.running(service, testing.local_config(tmp_path)) as harness:
        stub: Any = ProbeStub(harness.channel)
        refused = await asyncio.gather(
            *(stub.UnaryUnary(ProbeRequest(name="a")) for _ in range(500)), return_exceptions=True
        )
        assert {type(error) for error in refused} == {ResourceExhausted}
        running: Any = harness.running.server
        async with asyncio.timeout(5):
            await running._idle.wait()
        assert not running._calls
