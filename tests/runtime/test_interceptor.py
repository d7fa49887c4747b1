from __future__ import annotations

import asyncio
import logging
import re
import sys
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from probe_service import METHODS, SERVICE, Part, ProbeRequest, ProbeServicer, ProbeStub

from chatmill.errors import (
    BY_CODE,
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from chatmill.runtime import channel, interceptor, middleware, server, telemetry, testing

NAMES = [name for name, _, _ in METHODS]


async def collect(
    stub: ProbeStub, name: str, *requests: Any, into: list[str] | None = None, **arguments: Any
) -> list[str]:
    """All answers of one call, whatever its arity; those of a stream that fails are left in `into`."""
    method = getattr(stub, name)
    sent = requests or (ProbeRequest(name="a"), ProbeRequest(name="b"))
    call = method(iter(sent), **arguments) if name.startswith("Stream") else method(sent[0], **arguments)
    if name.endswith("Unary"):
        return [(await call).text]
    got = [] if into is None else into
    async for message in call:
        got.append(message.text)
    return got


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("UnaryUnary", ["a"]),
        ("UnaryStream", ["a0", "a1", "a2"]),
        ("WriteStream", ["a0", "a1", "a2"]),
        ("StreamUnary", ["a,b"]),
        ("StreamStream", ["a", "b"]),
    ],
)
async def test_every_arity_and_shape_answers(stub: ProbeStub, name: str, answers: list[str]) -> None:
    assert await collect(stub, name) == answers


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cls", list(BY_CODE.values()), ids=lambda cls: cls.__name__)
async def test_every_error_class_arrives_as_itself(
    stub: ProbeStub, servicer: ProbeServicer, name: str, cls: Any
) -> None:
    servicer.error = cls("no 模型 here", reason="SOME_REASON", metadata={"name": "models/x"})
    with pytest.raises(cls) as caught:
        await collect(stub, name)
    error: Any = caught.value
    assert type(error) is cls
    assert (error.message, error.reason) == ("no 模型 here", "SOME_REASON")
    assert error.metadata["name"] == "models/x"


@pytest.mark.parametrize("name", ["UnaryStream", "WriteStream", "StreamStream"])
async def test_error_in_mid_stream_keeps_what_came_before(stub: ProbeStub, servicer: ProbeServicer, name: str) -> None:
    servicer.error, servicer.error_after = ResourceExhausted("full", retry_after=1.5, quota="queue"), 1
    got: list[str] = []
    with pytest.raises(ResourceExhausted) as caught:
        await collect(stub, name, into=got)
    assert len(got) == 1
    assert (caught.value.retry_after, caught.value.quota) == (1.5, "queue")


@pytest.mark.parametrize("name", NAMES)
async def test_a_defect_shows_an_opaque_id_and_the_log_has_the_stack(
    stub: ProbeStub, servicer: ProbeServicer, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    servicer.error = ZeroDivisionError("secret detail")
    with pytest.raises(Internal) as caught:
        await collect(stub, name)
    assert "secret" not in caught.value.message
    defect = caught.value.metadata["defect"]
    assert defect in caught.value.message
    record = next(r for r in caplog.records if r.exc_info and defect in r.getMessage())
    assert "secret detail" in str(record.exc_info[1])  # type: ignore[index]


@pytest.mark.parametrize("name", NAMES)
async def test_missing_required_fields_are_named_before_the_handler_runs(
    stub: ProbeStub, servicer: ProbeServicer, name: str
) -> None:
    request = ProbeRequest(
        parts=[Part(role="user"), Part()],
        by_key={"k": Part(role="x", children=[Part()])},
        main=Part(),
    )
    with pytest.raises(InvalidArgument) as caught:
        await collect(stub, name, request)
    assert caught.value.reason == "REQUIRED_FIELD_MISSING"
    fields = [violation.field for violation in caught.value.violations]
    assert fields == ["name", "parts[1].role", "by_key[k].children[0].role", "main.role"]
    assert not servicer.entered.is_set()


async def test_a_bad_message_later_in_a_client_stream_is_refused(stub: ProbeStub) -> None:
    with pytest.raises(InvalidArgument):
        await collect(stub, "StreamUnary", ProbeRequest(name="a"), ProbeRequest())


async def test_thousands_of_missing_fields_are_counted_not_listed(stub: ProbeStub) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await collect(stub, "UnaryUnary", ProbeRequest(name="a", parts=[Part() for _ in range(3000)]))
    assert len(caught.value.violations) == 20
    assert "and 2980 more" in caught.value.message


async def test_request_id_is_taken_returned_and_logged(stub: ProbeStub, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "chatmill.rpc")
    call = stub.UnaryUnary(ProbeRequest(name="a"), metadata=[("x-request-id", "my-id")])  # type: ignore[attr-defined]
    await call
    assert dict(await call.trailing_metadata())["x-request-id"] == "my-id"
    fields = next(r.__dict__["fields"] for r in caplog.records if r.name == "chatmill.rpc")
    assert fields["request_id"] == "my-id"
    assert fields["method"] == f"/{SERVICE}/UnaryUnary"
    assert fields["code"] == "OK"
    assert fields["ms"] > 0
    assert fields["peer"].startswith("ipv4:127.0.0.1:")


async def test_a_request_id_that_could_forge_log_lines_is_replaced(stub: ProbeStub) -> None:
    call = stub.UnaryUnary(  # type: ignore[attr-defined]
        ProbeRequest(name="a"), metadata=[("x-request-id", "a b" * 100)]
    )
    await call
    returned = dict(await call.trailing_metadata())["x-request-id"]
    assert len(returned) == 32


async def test_errors_carry_the_request_id_in_trailers_too(stub: ProbeStub, servicer: ProbeServicer) -> None:
    servicer.error = NotFound("no")
    call = stub.UnaryUnary(ProbeRequest(name="a"), metadata=[("x-request-id", "my-id")])  # type: ignore[attr-defined]
    with pytest.raises(NotFound) as caught:
        await call
    assert caught.value.metadata["request_id"] == "my-id"
    assert dict(await call.trailing_metadata())["x-request-id"] == "my-id"


@pytest.mark.parametrize("name", ["UnaryUnary", "UnaryStream", "WriteStream"])
async def test_a_cancel_reaches_the_handler_and_its_finally_runs(
    stub: ProbeStub, servicer: ProbeServicer, harness: testing.Harness, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "chatmill.rpc")
    servicer.go_on = asyncio.Event()
    call = getattr(stub, name)(ProbeRequest(name="a"))
    waiting = asyncio.ensure_future(_drain(call))
    await servicer.entered.wait()
    call.cancel()
    await asyncio.wait_for(servicer.released.wait(), 5)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.wait_for(harness.running.gate.idle(), 5)
    codes = [r.__dict__["fields"]["code"] for r in caplog.records if r.name == "chatmill.rpc"]
    assert codes == ["CANCELLED"]


async def _drain(call: Any) -> None:
    if isinstance(call, grpc.aio.UnaryUnaryCall):
        await call
    else:
        async for _ in call:
            pass


@pytest.mark.parametrize("name", ["UnaryUnary", "UnaryStream", "WriteStream"])
async def test_a_deadline_reaches_the_handler_and_the_client_gets_it_as_such(
    stub: ProbeStub, servicer: ProbeServicer, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "chatmill.rpc")
    servicer.go_on = asyncio.Event()
    with pytest.raises(DeadlineExceeded):
        await collect(stub, name, timeout=0.2)
    await asyncio.wait_for(servicer.released.wait(), 5)


async def test_work_that_was_cancelled_behind_a_call_does_not_leave_the_client_waiting(
    stub: ProbeStub, servicer: ProbeServicer
) -> None:
    servicer.error = asyncio.CancelledError()  # type: ignore[assignment]
    with pytest.raises(Cancelled, match="work behind"):
        await asyncio.wait_for(collect(stub, "UnaryUnary"), 5)
    with pytest.raises(Cancelled, match="work behind"):
        await asyncio.wait_for(collect(stub, "UnaryStream"), 5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("data", [b"\x0a\x02\xff\xfe", b"\x0a\x03\xed\xa0\x80", b"\x0a\xff"])
async def test_bytes_that_are_no_message_are_refused_in_words(
    harness: testing.Harness, caplog: pytest.LogCaptureFixture, name: str, data: bytes
) -> None:
    kind = "_".join(f"{side}".lower() for side in re.findall("Unary|Stream", name.replace("Write", "Unary")))
    make = getattr(harness.channel, kind)
    call = make(f"/{SERVICE}/{name}")(iter([data]) if kind.startswith("stream") else data)
    answer = call if name.endswith("Unary") else anext(aiter(call))
    with pytest.raises(InvalidArgument, match="bytes are no message of this method"):
        await answer
    assert "Traceback" not in caplog.text


async def test_health_watch_works_through_the_interceptor(harness: testing.Harness) -> None:
    watch = health_pb2_grpc.HealthStub(harness.channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
    assert (await anext(watch)).status == health_pb2.HealthCheckResponse.SERVING
    await harness.running.health.set(SERVICE, serving=False)
    assert (await anext(watch)).status == health_pb2.HealthCheckResponse.NOT_SERVING
    await harness.running.health.set(SERVICE, serving=True)
    assert (await anext(watch)).status == health_pb2.HealthCheckResponse.SERVING


async def test_a_stream_that_is_written_slowly_does_not_hold_others_up(
    stub: ProbeStub, servicer: ProbeServicer
) -> None:
    servicer.go_on = asyncio.Event()
    first = stub.UnaryStream(ProbeRequest(name="a"))  # type: ignore[attr-defined]
    assert (await anext(first)).text == "a0"
    assert await collect(stub, "StreamUnary", ProbeRequest(name="x")) == ["x"]
    servicer.go_on.set()
    assert [message.text async for message in first] == ["a1", "a2"]


async def test_the_closed_gate_refuses_with_a_time_to_retry(stub: ProbeStub, harness: testing.Harness) -> None:
    harness.running.gate.close()
    with pytest.raises(Unavailable) as caught:
        await collect(stub, "UnaryUnary")
    assert caught.value.reason == "SHUTTING_DOWN"
    assert caught.value.retry_after == 1.0


class _Gone:
    """The context of a call to whose client nothing can be sent."""

    def __init__(self, why: str) -> None:
        self.failed = asyncio.Event()
        self._why = why

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def trailing_metadata(self) -> tuple[()]:
        return ()

    def time_remaining(self) -> None:
        return None

    def peer(self) -> str:
        return ""

    async def write(self, message: Any) -> None:
        self.failed.set()
        raise grpc.aio.InternalError(self._why)

    async def abort(self, *status: Any) -> None:
        await self.write(status)


DID_NOT_LEAVE = 'Failed "execute_batch": (SendStatusFromServerOperation)'
NOT_ACCEPTED = "Failed grpc_call_start_batch: 10 with grpc_call_error value: 'GRPC_CALL_ERROR_INVALID_METADATA'"


async def _handle(context: _Gone, error: Exception | None = None) -> None:
    """A stream of one message, or an error."""

    async def handler(request: Any, context: Any) -> Any:
        if error is not None:
            raise error
        yield request

    around = interceptor.MeshInterceptor([telemetry.observe, middleware.errors], 1000)
    await around._streaming("/probe.Probe/UnaryStream", handler, False)(ProbeRequest(name="a"), context)


async def test_a_client_that_goes_while_it_is_refused_is_no_defect(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(asyncio.CancelledError):
        await _handle(_Gone(DID_NOT_LEAVE), ResourceExhausted("later", retry_after=1))
    assert [(record.levelname, record.fields["code"]) for record in caplog.records] == [("INFO", "CANCELLED")]  # type: ignore[attr-defined]


async def test_a_status_that_is_not_accepted_is_a_defect() -> None:
    with pytest.raises(grpc.aio.InternalError):
        await _handle(_Gone(NOT_ACCEPTED), ResourceExhausted("later", retry_after=1))


async def test_a_client_that_goes_while_it_is_written_to_is_no_defect(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    context = _Gone(DID_NOT_LEAVE)
    call = asyncio.create_task(_handle(context))
    await context.failed.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert [(record.levelname, record.fields["code"]) for record in caplog.records] == [("INFO", "CANCELLED")]  # type: ignore[attr-defined]


async def test_a_message_of_a_stream_beyond_the_limit_is_refused_in_words(
    servicer: ProbeServicer, service: server.Service, tmp_path: Path
) -> None:
    narrow = testing.local_config(tmp_path, {"mesh.max_message_bytes": "70000"})
    async with testing.running(service, narrow) as harness, channel.connect(harness.running.target) as wide:
        stub: Any = ProbeStub(wide)
        # an answer is one byte longer than its request
        assert len(await collect(stub, "UnaryStream", ProbeRequest(name="a" * 69_995))) == servicer.count
        with pytest.raises(ResourceExhausted, match=r"70001 bytes; mesh\.max_message_bytes allows 70000"):
            await collect(stub, "UnaryStream", ProbeRequest(name="a" * 69_996))


FLEETING_CLIENT = """
import asyncio, os, sys
import grpc.aio

async def main():
    channel = grpc.aio.insecure_channel(sys.argv[1])
    method = channel.unary_stream("/chatmill.probe.v1.ProbeService/UnaryStream")

    async def call():
        async for _ in method(bytes.fromhex(sys.argv[2])):
            pass

    await asyncio.wait([asyncio.create_task(call()) for _ in range(100)], return_when=asyncio.FIRST_COMPLETED)
    os._exit(0)

asyncio.run(main())
"""


@pytest.mark.slow
async def test_clients_that_end_amid_a_hundred_refusals_leave_no_error_behind(
    harness: testing.Harness, servicer: ProbeServicer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    servicer.error = ResourceExhausted("later", retry_after=1)
    request = ProbeRequest(name="a").SerializeToString().hex()
    for _ in range(8):
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", FLEETING_CLIENT, harness.running.target, request
        )
        assert await client.wait() == 0
    under_way = telemetry.RPC_ACTIVE.labels(f"/{SERVICE}/UnaryStream")
    async with asyncio.timeout(5):
        while under_way._value.get():  # noqa: ASYNC110 - a gauge tells nobody
            await asyncio.sleep(0.01)
    assert any(record.getMessage() == "rpc" for record in caplog.records)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
