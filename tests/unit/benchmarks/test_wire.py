"""The benchmark's client: what it hears of real servers, and how it reads what it heard."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import unquote

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.sides.chatmill_grpc import Chatmill, check_status
from benchmarks.sides.openai_sse import Tutorial
from benchmarks.sides.rounds import Seen, read
from benchmarks.sides.wire import Asked, Heard, Wire, deliveries, events, messages
from chatmill.inference.v1 import GenerateResponse

needs_curl = pytest.mark.skipif(importlib.util.find_spec("pycurl") is None, reason="pycurl is not installed")
OK = {"grpc-status": "0"}


def framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


def cut(data: bytes, places: list[int]) -> list[tuple[float, bytes]]:
    """The data in chunks, of which the first came at 0.0, the next at 1.0 and so on."""
    ends = sorted({min(place, len(data)) for place in places} | {0, len(data)})
    pieces = [data[begin:end] for begin, end in itertools.pairwise(ends)]
    return [(float(number), piece) for number, piece in enumerate(pieces)]


def arrivals(parts: list[bytes], chunks: list[tuple[float, bytes]]) -> list[float]:
    """When the last byte of each part came, of parts that are the data together."""
    came = [moment for moment, chunk in chunks for _ in chunk]
    return [came[end - 1] for end in itertools.accumulate(map(len, parts))]


places = st.lists(st.integers(0, 400), max_size=30)


@given(st.lists(st.binary(max_size=40), max_size=8), places)
def test_messages_are_the_same_however_the_bytes_are_cut(said: list[bytes], where: list[int]) -> None:
    frames = [framed(message) for message in said]
    chunks = cut(b"".join(frames), where)
    assert list(messages(chunks)) == list(zip(arrivals(frames, chunks), said, strict=True))


@given(
    st.lists(st.text(st.characters(exclude_characters="\r\n"), max_size=20), max_size=8),
    places,
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["", ": a comment{0}", "event: delta{0}"]),
)
def test_events_are_the_same_however_the_bytes_are_cut(said: list[str], where: list[int], end: str, more: str) -> None:
    parts = [f"{more.format(end)}data: {text}{end}{end}".encode() for text in said]
    chunks = cut(b"".join(parts), where)
    expected = [text.encode() for text in said]
    assert list(events(chunks)) == list(zip(arrivals(parts, chunks), expected, strict=True))


def test_what_is_unfinished_is_left_out() -> None:
    assert list(messages([(1.0, framed(b"all") + framed(b"half")[:-1])])) == [(1.0, b"all")]
    assert list(events([(1.0, b"data: all\n\ndata:ha"), (2.0, b"lf\n")])) == [(1.0, b"all")]


def test_lines_of_an_event_are_put_together() -> None:
    assert list(events([(1.0, b"data: one\n"), (2.0, b"data: two\n\n")])) == [(2.0, b"one\ntwo")]


def test_a_compressed_message_is_not_understood() -> None:
    with pytest.raises(ValueError, match="compressed"):
        list(messages([(0.0, b"\1\0\0\0\1x")]))


def test_what_came_at_once_is_one_delivery_and_the_rest_goes_with_the_last() -> None:
    assert deliveries([1.0, 1.0, 2.0], 3, 5.0) == [(1.0, 2), (2.0, 1)]
    assert deliveries([1.0, 2.0], 6, 5.0) == [(1.0, 1), (2.0, 5)]
    assert deliveries([], 4, 5.0) == [(5.0, 4)]


def delta(text: str) -> GenerateResponse:
    answer = GenerateResponse()
    answer.event.delta.text = text
    return answer


def finished(tokens: int) -> GenerateResponse:
    answer = GenerateResponse()
    answer.event.finished.usage.output_tokens = tokens
    return answer


def spoken(text: str, finish: str | None = None) -> bytes:
    choice = {"delta": {"content": text} if text else {}, "finish_reason": finish}
    return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()


@pytest.mark.parametrize("kind", [Chatmill, Tutorial])
def test_figures_of_an_answer(kind: type[Chatmill | Tutorial]) -> None:
    side = kind(Path("nowhere"), 7, 1)
    if kind is Chatmill:
        one, two, end = (framed(m.SerializeToString()) for m in (delta("one"), delta("two"), finished(7)))
    else:
        one, two, end = spoken("one"), spoken("two"), spoken("", "length") + b"data: [DONE]\n\n"
    seen = Seen()
    heard = Heard(10.0, [(11.0, one + two), (13.0, two), (17.0, end)], 200, "", OK)
    assert read(side, heard, seen) == 7
    assert (seen.first, seen.gaps, seen.failures) == ([1.0], [2.0], 0)

    assert read(side, Heard(10.0, [(11.0, one)], 200, "", OK), seen) == 0
    assert read(side, Heard(10.0, heard.chunks, 503, "", OK), seen) == 0
    assert read(side, Heard(10.0, heard.chunks, 200, "broke off", OK), seen) == 0
    assert (seen.first, seen.gaps, seen.failures) == ([1.0], [2.0], 3)


def test_too_few_tokens_are_a_failure() -> None:
    seen = Seen()
    body = framed(finished(6).SerializeToString())
    assert read(Chatmill(Path("nowhere"), 7, 1), Heard(0.0, [(1.0, body)], 200, "", OK), seen) == 6
    assert seen.failures == 1


def test_a_status_of_grpc_is_told_by_its_name() -> None:
    check_status(OK)
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED: no place, 100% taken"):
        check_status({"grpc-status": "8", "grpc-message": "no place, 100%25 taken"})
    with pytest.raises(RuntimeError, match="grpc-status ''"):
        check_status({})


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.close()


class Three:
    """A service whose call answers three times, when `together` calls are there, or refuses."""

    def __init__(self) -> None:
        self.together = asyncio.Barrier(1)
        self.peers: list[str] = []

    async def call(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
        self.peers.append(context.peer())
        if request == b"refuse":
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no place, 100% taken")
        await self.together.wait()
        for number in range(3):
            yield request + str(number).encode()


@asynccontextmanager
async def served(three: Three) -> AsyncIterator[str]:
    server = grpc.aio.server()
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Call": grpc.unary_stream_rpc_method_handler(three.call)
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("tests.Three", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"http://127.0.0.1:{port}/tests.Three/Call"
    finally:
        await server.stop(None)


def call(url: str, message: bytes) -> Asked:
    return Asked(url, ("content-type: application/grpc", "te: trailers"), framed(message), http2=True)


@needs_curl
async def test_many_calls_at_once_share_a_connection(wire: Wire) -> None:
    three = Three()
    async with served(three) as url:
        # More than the 100 streams that libcurl takes for a server's limit by itself.
        for count in (1, 150, 8):
            three.together = asyncio.Barrier(count)
            asked = [call(url, b"%d:" % number) for number in range(count)]
            answers = await asyncio.to_thread(wire.send, asked)
            for number, heard in enumerate(answers):
                heard.check()
                check_status(heard.headers)
                assert [text for _, text in messages(heard.chunks)] == [b"%d:%d" % (number, n) for n in range(3)]
                moments = [heard.begun, *(moment for moment, _ in heard.chunks)]
                assert moments == sorted(moments)
    assert len(three.peers) == 159
    assert len(set(three.peers)) == 1


@needs_curl
async def test_a_refused_call_says_why(wire: Wire) -> None:
    async with served(Three()) as url:
        refused, fine = await asyncio.to_thread(wire.send, [call(url, b"refuse"), call(url, b"")])
    assert (refused.status, refused.error, refused.chunks) == (200, "", [])
    assert refused.headers["grpc-status"] == "8"
    assert unquote(refused.headers["grpc-message"]) == "no place, 100% taken"
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED: no place, 100% taken"):
        check_status(refused.headers)
    check_status(fine.headers)


async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers the requests of a connection: with what was sent, split awkwardly, or with an error for an empty body."""
    try:
        while (line := await reader.readline()).strip():
            size = 0
            while line.strip():
                name, _, value = line.partition(b":")
                size = int(value) if name.lower() == b"content-length" else size
                line = await reader.readline()
            body = await reader.readexactly(size)
            if body == b"break":
                break
            if body == b"wrong":
                writer.write(b"HTTP/1.1 503 Busy\r\ncontent-length: 6\r\n\r\nbusy\r\n")
                continue
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            for piece in (b"data: " + body[:2], body[2:] + b"\r\n\r", b"\ndata: [DONE]\n\n"):
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
    finally:
        writer.close()


@needs_curl
async def test_events_over_http_1(wire: Wire) -> None:
    connections: list[asyncio.Task[None] | None] = []

    async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.current_task())
        await respond(reader, writer)

    server = await asyncio.start_server(counted, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def send(*bodies: bytes) -> list[Heard]:
        return await asyncio.to_thread(
            wire.send, [Asked(f"http://127.0.0.1:{port}/", (), body, http2=False) for body in bodies]
        )

    for _ in range(2):
        bodies = [b"request %d" % number for number in range(20)]
        for body, heard in zip(bodies, await send(*bodies), strict=True):
            heard.check()
            assert heard.headers["content-type"] == "text/event-stream"
            assert [data for _, data in events(heard.chunks)] == [body, b"[DONE]"]
    assert len(connections) == 20

    wrong, broken, fine = await send(b"wrong", b"break", b"fine")
    with pytest.raises(RuntimeError, match="HTTP status 503: busy"):
        wrong.check()
    with pytest.raises(RuntimeError, match="curl error"):
        broken.check()
    fine.check()
    server.close()
    # The connections are closed with the client.
    wire.close()
    await asyncio.gather(*(task for task in connections if task))


@needs_curl
async def test_nobody_there_is_a_failure(wire: Wire) -> None:
    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    (heard,) = await asyncio.to_thread(wire.send, [Asked(f"http://127.0.0.1:{port}/", (), b"", http2=False)])
    assert heard.status == 0
    assert "curl error 7" in heard.error
