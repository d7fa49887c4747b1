"""The client of the rounds that servers play: it writes down when which bytes came, and reads them after the round.

A load generator on the server's own cores must not take the processor that the server needs, and it must be the same
one for each server. So all of them are asked by libcurl, nothing is parsed while anyone still answers, and what the
bytes mean is found afterwards. Streams over HTTP/2 share a connection, as those of a gRPC channel do.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.sides.base import Missing, ServerSide

LIMIT_SECONDS = 300
"""How long an answer may take."""
_PREFIX = 5
"""Bytes before a gRPC message: whether it is compressed, and how long it is."""
_PLENTY = 4096
_PAUSE = 0.0005
"""Seconds between two looks at the answers of many requests: each look wakes this thread on a core of the server's.
What comes meanwhile is noted late by up to that much, and in one piece; a request that is alone is noted at once."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A POST request; `http2` without TLS or an upgrade, as gRPC speaks it, otherwise HTTP/1.1."""

    url: str
    headers: tuple[str, ...]
    body: bytes
    http2: bool


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of a request.

    Attributes:
        begun: when it was handed over, by `time.perf_counter` in seconds.
        chunks: the bytes of the body, each time with when they came, by the same clock.
        status: of HTTP; 0 if none came.
        error: why it broke off; empty if it did not.
        headers: those of the answer and the trailers, by their names in small letters.
    """

    begun: float
    chunks: list[tuple[float, bytes]]
    status: int
    error: str
    headers: dict[str, str]

    def check(self) -> None:
        """Raises RuntimeError if it broke off or was answered with another status than 200."""
        if self.error:
            raise RuntimeError(self.error)
        if self.status != 200:
            said = b"".join(data for _, data in self.chunks)[:500].decode(errors="replace")
            raise RuntimeError(f"HTTP status {self.status}: {said}")


class Wire:
    """Sends requests and writes down what comes; for one thread at a time. Raises Missing without pycurl."""

    def __init__(self) -> None:
        try:
            import pycurl
        except ImportError as error:
            raise Missing("pycurl is not installed: pip install -e '.[dev]'") from error
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_PIPELINING, 2)  # libcurl's number for many streams on a connection
        self._multi.setopt(pycurl.M_MAXCONNECTS, _PLENTY)
        # Its own limit is 100 streams, and further requests would wait for those.
        self._multi.setopt(pycurl.M_MAX_CONCURRENT_STREAMS, _PLENTY)
        self._connections: int = pycurl.M_MAX_HOST_CONNECTIONS
        self._calls: list[_Call] = []

    def send(self, asked: Sequence[Asked]) -> list[Heard]:
        """Send all at once and wait until all have ended.

        All speak the same version of HTTP. Over HTTP/2 they share one connection, over HTTP/1.1 each has its own; both
        are kept for later.
        """
        self._multi.setopt(self._connections, int(any(one.http2 for one in asked)))
        self._calls += [_Call() for _ in range(len(asked) - len(self._calls))]
        calls = self._calls[: len(asked)]
        added: list[_Call] = []
        try:
            for call, one in zip(calls, asked, strict=True):
                call.prepare(one)
                self._multi.add_handle(call.easy)
                added.append(call)
            self._wait(_PAUSE if len(added) > 1 else 0.0)
            broken = self._broken()
        finally:
            for call in added:
                self._multi.remove_handle(call.easy)
        return [call.heard(broken.get(id(call.easy), "")) for call in calls]

    def close(self) -> None:
        """Close all connections."""
        for call in self._calls:
            call.easy.close()
        self._calls.clear()
        self._multi.close()

    def _wait(self, pause: float) -> None:
        while self._multi.perform()[1]:
            due = self._multi.timeout()
            if due:
                self._multi.select(1.0 if due < 0 else min(1.0, due / 1000))
                if pause:
                    time.sleep(pause)

    def _broken(self) -> dict[int, str]:
        broken: dict[int, str] = {}
        left = 1
        while left:
            left, _, failed = self._multi.info_read()
            broken |= {id(easy): f"curl error {number}: {text}" for easy, number, text in failed}
        return broken


class _Call:
    """A handle of libcurl, which serves one request after another, and what it wrote down."""

    def __init__(self) -> None:
        import pycurl

        self.easy: Any = pycurl.Curl()
        self._begun = 0.0
        self._chunks: list[tuple[float, bytes]] = []
        self._lines: list[bytes] = []
        options = {
            pycurl.POST: 1,
            pycurl.PIPEWAIT: 1,  # rather a place on the connection that is being made than another connection
            pycurl.TCP_NODELAY: 1,
            pycurl.NOSIGNAL: 1,
            pycurl.PROXY: "",
            pycurl.TIMEOUT: LIMIT_SECONDS,
            pycurl.WRITEFUNCTION: self._write,
            pycurl.HEADERFUNCTION: self._head,
        }
        for option, value in options.items():
            self.easy.setopt(option, value)
        self._versions = {True: pycurl.CURL_HTTP_VERSION_2_PRIOR_KNOWLEDGE, False: pycurl.CURL_HTTP_VERSION_1_1}
        self._version, self._url, self._headers = pycurl.HTTP_VERSION, pycurl.URL, pycurl.HTTPHEADER
        self._fields, self._status = pycurl.POSTFIELDS, pycurl.RESPONSE_CODE

    def prepare(self, asked: Asked) -> None:
        """The next request, whose time begins now."""
        self._begun = time.perf_counter()
        self._chunks, self._lines = [], []
        self.easy.setopt(self._version, self._versions[asked.http2])
        self.easy.setopt(self._url, asked.url)
        # The names without a value are headers that libcurl would add.
        self.easy.setopt(self._headers, [*asked.headers, "expect:", "accept:"])
        self.easy.setopt(self._fields, asked.body)

    def heard(self, error: str) -> Heard:
        """What came of it."""
        return Heard(self._begun, self._chunks, self.easy.getinfo(self._status), error, fields(self._lines))

    def _write(self, data: bytes) -> None:
        self._chunks.append((time.perf_counter(), data))

    def _head(self, line: bytes) -> None:
        self._lines.append(line)


class WiredSide(ServerSide):
    """A server that is asked over a `Wire`."""

    _wire: Wire | None = None

    def wire(self) -> Wire:
        """Its client. Raises Missing without pycurl."""
        if self._wire is None:
            self._wire = Wire()
        return self._wire

    @abstractmethod
    def asked(self, prompt: str) -> Asked:
        """The request that generates from one user message."""

    @abstractmethod
    def tokens(self, heard: Heard) -> list[tuple[float, int]]:
        """When something with text came, and how many tokens each time.

        As in `stream` a piece of text counts as one token, and what the end tells of further ones goes with the last.
        Pieces that came at once are one delivery. Raises RuntimeError if the request failed.
        """

    async def stop(self) -> None:
        """Close the connections and end the process."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        await super().stop()


def deliveries(times: Sequence[float], tokens: int, end: float) -> list[tuple[float, int]]:
    """What `WiredSide.tokens` tells of an answer.

    Args:
        times: of each piece of text, in seconds.
        tokens: of the whole answer.
        end: when it ended: the delivery of an answer without text.
    """
    found = list(Counter(times).items())
    moment, count = found.pop() if found else (end, 0)
    return [*found, (moment, count + tokens - len(times))]


def fields(lines: Iterable[bytes]) -> dict[str, str]:
    """Headers and trailers by their names in small letters; of several with one name the last."""
    split = (line.decode("latin-1").partition(":") for line in lines)
    return {name.strip().lower(): value.strip() for name, colon, value in split if colon}


def messages(chunks: Iterable[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """The messages of a gRPC body, each with the time of the chunk that completes it; an unfinished one is left out."""
    data = b""
    for moment, chunk in chunks:
        data += chunk
        while len(data) >= _PREFIX and len(data) >= (end := _PREFIX + int.from_bytes(data[1:_PREFIX], "big")):
            if data[0]:
                raise ValueError("a compressed message, and no compression was asked for")
            yield moment, data[_PREFIX:end]
            data = data[end:]


def events(chunks: Iterable[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    r"""The data of server-sent events, each with the time of the chunk that completes it, without an unfinished one.

    Lines end with \n or \r\n; several `data:` lines of an event are put together with \n.
    """
    rest = b""
    said: list[bytes] = []
    for moment, chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for ended in lines:
            line = ended.removesuffix(b"\r")
            if line.startswith(b"data:"):
                said.append(line[len(b"data:") :].removeprefix(b" "))
            elif not line and said:
                yield moment, b"\n".join(said)
                said = []
