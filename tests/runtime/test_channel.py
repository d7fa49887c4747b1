from __future__ import annotations

import asyncio
import gc
import math
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from probe_service import SERVICE, ProbeRequest, ProbeServicer, ProbeStub

from chatmill.config import Config
from chatmill.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable
from chatmill.runtime import channel, health, server, testing
from chatmill.runtime.identity import REQUEST_ID


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port that is bound but not listened on, so that nothing else can take it meanwhile."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


async def test_unary_and_streaming_calls_get_their_default_deadlines(stub: Any, servicer: ProbeServicer) -> None:
    await stub.UnaryUnary(ProbeRequest(name="a"))
    assert [m.text async for m in stub.UnaryStream(ProbeRequest(name="a"))]
    unary, stream = (context.time_remaining() for context in servicer.seen)
    assert 50 < unary < 61
    assert 86_000 < stream <= 86_700  # long ones travel rounded up to a minute or so


async def test_a_call_may_set_its_own_deadline_or_none(stub: Any, servicer: ProbeServicer) -> None:
    await stub.UnaryUnary(ProbeRequest(name="a"), timeout=7)
    await stub.UnaryUnary(ProbeRequest(name="a"), timeout=math.inf)
    own, none = (context.time_remaining() for context in servicer.seen)
    assert 6 < own < 7.2
    assert none is None


async def test_the_default_deadline_ends_a_call(servicer: ProbeServicer, harness: testing.Harness) -> None:
    servicer.go_on = asyncio.Event()
    async with channel.connect(harness.running.target, default_timeout=0.2) as short:
        stub: Any = ProbeStub(short)
        with pytest.raises(DeadlineExceeded, match="no answer in time"):
            await stub.UnaryUnary(ProbeRequest(name="a"))


async def test_nothing_at_the_other_end_says_where_and_what_to_do(free_port: int) -> None:
    async with channel.connect(f"127.0.0.1:{free_port}") as nowhere:
        with pytest.raises(Unavailable) as caught:
            await health.check(nowhere)
    assert f"127.0.0.1:{free_port}" in caught.value.message
    assert "chatmill up" in caught.value.message


async def test_a_method_that_the_server_does_not_have(harness: testing.Harness) -> None:
    method = harness.channel.unary_unary(f"/{SERVICE}/Nope", ProbeRequest.SerializeToString, lambda raw: raw)
    with pytest.raises(FailedPrecondition, match="does not know") as caught:
        await method(ProbeRequest(name="a"))
    assert caught.value.reason == "UNIMPLEMENTED"


async def test_unavailable_is_retried_three_times_in_all(stub: Any, servicer: ProbeServicer) -> None:
    servicer.error = Unavailable("starting")
    with pytest.raises(Unavailable, match="starting"):
        await stub.UnaryUnary(ProbeRequest(name="a"))
    assert servicer.calls == 3


async def test_other_errors_and_half_read_streams_are_not_retried(stub: Any, servicer: ProbeServicer) -> None:
    servicer.error = ResourceExhausted("full", retry_after=0.1)
    with pytest.raises(ResourceExhausted):
        await stub.UnaryUnary(ProbeRequest(name="a"))
    assert servicer.calls == 1
    servicer.error, servicer.error_after = Unavailable("going"), 1
    with pytest.raises(Unavailable):
        [m async for m in stub.UnaryStream(ProbeRequest(name="a"))]
    assert servicer.calls == 2


async def test_messages_beyond_the_limit_are_refused_on_both_sides(
    servicer: ProbeServicer, service: server.Service, tmp_path: Path
) -> None:
    config = testing.local_config(tmp_path, {"mesh.max_message_bytes": "100000"})
    async with testing.running(service, config) as harness:
        stub: Any = ProbeStub(harness.channel)
        assert len((await stub.UnaryUnary(ProbeRequest(name="a" * 90_000))).text) == 90_000
        with pytest.raises(ResourceExhausted):
            await stub.UnaryUnary(ProbeRequest(name="a" * 110_000))
        async with channel.connect(harness.running.target) as wide:  # a client that would send 4 MiB
            wide_stub: Any = ProbeStub(wide)
            with pytest.raises(ResourceExhausted, match="100000"):
                await wide_stub.UnaryUnary(ProbeRequest(name="a" * 110_000))


async def test_a_stream_that_is_dropped_half_way_is_cancelled(
    stub: Any, servicer: ProbeServicer, harness: testing.Harness
) -> None:
    servicer.go_on = asyncio.Event()
    async for message in stub.UnaryStream(ProbeRequest(name="a")):
        assert message.text == "a0"
        break
    gc.collect()
    await asyncio.wait_for(servicer.released.wait(), 5)
    await asyncio.wait_for(harness.running.gate.idle(), 5)


async def test_a_task_that_is_cancelled_cancels_its_call(stub: Any, servicer: ProbeServicer) -> None:
    servicer.go_on = asyncio.Event()

    async def read() -> None:
        async for _ in stub.UnaryStream(ProbeRequest(name="a")):
            pass

    task = asyncio.create_task(read())
    await servicer.entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(servicer.released.wait(), 5)


async def test_requests_can_be_written_one_by_one(stub: Any) -> None:
    call = stub.StreamStream()
    await call.write(ProbeRequest(name="x"))
    assert (await call.read()).text == "x"
    await call.write(ProbeRequest(name="y"))
    assert (await call.read()).text == "y"
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF

    upload = stub.StreamUnary()
    await upload.write(ProbeRequest(name="x"))
    await upload.write(ProbeRequest(name="y"))
    await upload.done_writing()
    assert (await upload).text == "x,y"


async def test_an_error_while_requests_are_written_arrives_as_its_class(stub: Any) -> None:
    call = stub.StreamUnary()
    with pytest.raises(InvalidArgument):
        await _write_many(call)
    with pytest.raises(InvalidArgument):
        await call


@pytest.mark.parametrize("name", ["StreamUnary", "StreamStream"])
async def test_a_refusal_while_requests_stream_never_becomes_an_internal_error(
    stub: Any, servicer: ProbeServicer, name: str
) -> None:
    servicer.error = ResourceExhausted("disk full", quota="disk")
    for size in (1, 1000, 100_000) * 20:  # grpc#36066 shows half of the time
        requests = (ProbeRequest(name="x" * size) for _ in range(20))
        call = getattr(stub, name)(requests)
        with pytest.raises(ResourceExhausted, match="disk full"):
            await (call if name == "StreamUnary" else anext(call))


async def _write_many(call: Any) -> None:
    for _ in range(1000):
        await call.write(ProbeRequest())


async def test_the_request_id_of_the_call_being_served_is_passed_on(stub: Any, servicer: ProbeServicer) -> None:
    REQUEST_ID.set("outer-id")
    call = stub.UnaryUnary(ProbeRequest(name="a"))
    await call
    assert call.request_id == "outer-id"
    assert dict(servicer.seen[0].invocation_metadata())["x-request-id"] == "outer-id"


async def test_a_server_that_dies_in_mid_stream_is_noticed_at_once(
    stub: Any, servicer: ProbeServicer, harness: testing.Harness
) -> None:
    servicer.go_on = asyncio.Event()
    call = stub.UnaryStream(ProbeRequest(name="a"))
    await anext(call)
    await harness.running.server.stop(0)
    async with asyncio.timeout(1):
        with pytest.raises(Unavailable):
            await anext(call)


def test_wrapped_calls_are_what_grpc_calls_are(config: Config) -> None:
    async def look() -> None:
        async with channel.connect("127.0.0.1:1", config) as made:
            stub: Any = ProbeStub(made)
            calls = {
                stub.UnaryUnary(ProbeRequest()): grpc.aio.UnaryUnaryCall,
                stub.UnaryStream(ProbeRequest()): grpc.aio.UnaryStreamCall,
                stub.StreamUnary(): grpc.aio.StreamUnaryCall,
                stub.StreamStream(): grpc.aio.StreamStreamCall,
            }
            for call, kind in calls.items():
                assert isinstance(call, kind)
                assert call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await _end(call)

    async def _end(call: Any) -> None:
        if hasattr(call, "__await__"):
            await call
        else:
            await call.read()

    asyncio.run(look())
