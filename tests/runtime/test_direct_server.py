"""Our own gRPC server: what answers, and how it stops."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from typing import Any

import grpc.aio
import pytest
from bare_server import METHOD, echo, serving, start
from probe_service import ProbeRequest, ProbeServicer, ProbeStub, add_to_server

from chatmill.config import Config
from chatmill.errors import InvalidArgument, ResourceExhausted
from chatmill.runtime import inner, server, testing
from chatmill.runtime.direct_server import DirectServer


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
