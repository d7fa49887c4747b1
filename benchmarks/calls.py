"""What a gRPC server itself costs: processor time and time per call of ours and of `grpc.aio`, with idle handlers.

    python -m benchmarks.calls [--messages 1,6] [--streams 32] [--rounds 200]

Each server runs in a process of its own and answers a request of 600 bytes with so many messages of 120. The client, on
the same cores, opens so many streams at once on one connection, round after round; the servers take turns. A figure is
that of all rounds together: processor time of all the server's threads, and time from the first request of a round to
its last answer, both per call. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc.aio

from benchmarks.sides.rounds import machine
from benchmarks.sides.wire import Asked, Wire
from chatmill.ports import free_port
from chatmill.runtime.direct_server import DirectServer

SERVERS = ("direct", "aio")
REQUEST, ANSWER = b"y" * 600, b"x" * 120
HEADERS = ("content-type: application/grpc", "te: trailers")
WARM_UP = 20


async def serve(name: str, port: int, messages: int) -> None:
    """Be the server until the process ends."""

    async def answer(request: bytes, context: Any) -> None:
        for _ in range(messages):
            await context.write(ANSWER)

    server: grpc.aio.Server = DirectServer(lambda _, handler: handler, ()) if name == "direct" else grpc.aio.server()
    handler: Any = grpc.unary_stream_rpc_method_handler(answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("benchmarks.Calls", {"Answer": handler}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


class Side:
    """A server in a process of its own, and what its rounds took."""

    def __init__(self, name: str, messages: int) -> None:
        self.name, self.messages = name, messages
        self.seconds = self.processor = 0.0
        port = free_port("127.0.0.1")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.calls", "--serve", name, str(port), str(messages)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()
        framed = b"\0" + len(REQUEST).to_bytes(4, "big") + REQUEST
        self._asked = Asked(f"http://127.0.0.1:{port}/benchmarks.Calls/Answer", HEADERS, framed, http2=True)
        self._wire = Wire()

    def play(self, streams: int, rounds: int) -> None:
        """Add `rounds` rounds of `streams` calls each to the figures."""
        before, began = self._spent(), time.perf_counter()
        for _ in range(rounds):
            for heard in self._wire.send([self._asked] * streams):
                heard.check()
        self.seconds += time.perf_counter() - began
        self.processor += self._spent() - before

    def _spent(self) -> float:
        """Processor seconds of all its threads so far."""
        tasks = Path(f"/proc/{self._process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def close(self) -> None:
        """End it."""
        self._wire.close()
        self._process.kill()
        self._process.wait()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", default="1,6", help="messages of an answer; default: %(default)s")
    parser.add_argument("--streams", type=int, default=32, help="calls at once; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=200, help="rounds of each server; default: %(default)s")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        name, port, messages = arguments.serve
        asyncio.run(serve(name, int(port), int(messages)))
        return
    print(machine())
    print(f"{'server':8} {'messages':>8} {'processor ms per call':>22} {'ms per call':>12}")
    for messages in map(int, arguments.messages.split(",")):
        sides = [Side(name, messages) for name in SERVERS]
        try:
            for side in sides:
                side.play(arguments.streams, WARM_UP)
                side.seconds = side.processor = 0.0
            for _ in range(10):
                for side in sides:
                    side.play(arguments.streams, max(1, arguments.rounds // 10))
        finally:
            for side in sides:
                side.close()
        calls = 10 * max(1, arguments.rounds // 10) * arguments.streams
        for side in sides:
            print(f"{side.name:8} {messages:8} {1e3 * side.processor / calls:22.3f} {1e3 * side.seconds / calls:12.3f}")


if __name__ == "__main__":
    main()
