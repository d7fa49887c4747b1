"""Servers that speak the OpenAI protocol over server-sent events: `transformers serve`, the usual tutorial, llama.cpp.

Rounds ask them over the wire that all servers are asked over; `stream` is for whoever has time to read meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from benchmarks.sides import gguf_file
from benchmarks.sides.base import Missing, python
from benchmarks.sides.wire import Asked, Heard, WiredSide, deliveries, events

DONE = b"[DONE]"
UNFINISHED = "the stream ended without a finish reason"


class SseSide(WiredSide):
    """A side with `/v1/chat/completions`.

    Nothing ends a turn in the model, so an answer that finished has all its tokens; some events hold several.
    """

    headers: tuple[str, ...] = ("content-type: application/json",)

    def asked(self, prompt: str) -> Asked:
        """See `WiredSide.asked`."""
        url = f"http://127.0.0.1:{self.port}/v1/chat/completions"
        return Asked(url, self.headers, json.dumps(self.body(prompt)).encode(), http2=False)

    def tokens(self, heard: Heard) -> list[tuple[float, int]]:
        """See `WiredSide.tokens`."""
        heard.check()
        times: list[float] = []
        end: float | None = None
        for moment, data in events(heard.chunks):
            if data == DONE:
                continue
            spoken, finished = understood(data)
            if spoken:
                times.append(moment)
            end = moment if finished else end
        if end is None:
            raise RuntimeError(UNFINISHED)
        return deliveries(times, self.max_new, end)

    async def stream(self, prompt: str) -> AsyncIterator[int]:
        """One streamed chat completion; each event with text counts as one token, the last as the rest."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        try:
            body = json.dumps(self.body(prompt)).encode()
            head = "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            writer.write(f"{head}connection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
            status = await reader.readline()
            if b" 200 " not in status:
                raise RuntimeError((status + await reader.read(500)).decode(errors="replace"))
            seen, finished = 0, False
            async for line in reader:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                spoken, ends = understood(line[6:])
                if spoken:
                    seen += 1
                    yield 1
                finished = finished or ends
            if not finished:
                raise RuntimeError(UNFINISHED)
            yield self.max_new - seen
        finally:
            writer.close()

    def body(self, prompt: str) -> dict[str, object]:
        """The request."""
        return {
            "model": str(self.folder),
            "messages": [{"role": "user", "content": prompt}],
            "stream": True,
            "temperature": 0.0,
            "max_tokens": self.max_new,
        }


def understood(event: bytes) -> tuple[bool, bool]:
    """Whether an event has text, and whether it says that the answer is finished."""
    choice = (json.loads(event).get("choices") or [{}])[0]
    return bool(choice.get("delta", {}).get("content")), choice.get("finish_reason") is not None


class TransformersServe(SseSide):
    """`transformers serve`: one request after another through `generate`."""

    name = "transformers-serve"
    options: tuple[str, ...] = ()

    async def start(self) -> None:
        """Start it with the model preloaded."""
        self.wire()  # what is missing is told before anything starts
        command = Path(python()).with_name("transformers")
        if not command.exists():
            raise Missing(f"{command} is not there")
        port = ("--port", str(self.port))
        await self.launch(str(command), "serve", str(self.folder), *port, "--device", "cpu", *self.options)
        await self.wait_ready()


class TransformersServeContinuous(TransformersServe):
    """`transformers serve --continuous-batching`, sized by hand, since its own sizing takes all memory on a CPU."""

    name = "transformers-serve-cb"

    def __init__(self, folder: Path, max_new: int, most: int) -> None:
        super().__init__(folder, max_new, most)
        blocks = most * 8
        sizes = ("--cb-block-size", "32", "--cb-num-blocks", str(blocks), "--cb-max-batch-tokens", "512")
        self.options = ("--continuous-batching", *sizes)


class Tutorial(SseSide):
    """FastAPI, one model, a thread per request, TextIteratorStreamer: what most tutorials show."""

    name = "tutorial"

    async def start(self) -> None:
        """Start it."""
        self.wire()  # what is missing is told before anything starts
        await self.launch(python(), "-m", "benchmarks.sides.serve_tutorial", str(self.folder), str(self.port))
        await self.wait_ready()


class LlamaCpp(SseSide):
    """llama.cpp's server on the same model as GGUF in f32: set LLAMA_SERVER to the program, or have it on the path.

    The model is converted at the start (`gguf_file`); LLAMA_GGUF names a converted file instead.
    """

    name = "llama.cpp"
    # Each connection that is kept holds one of its threads for seconds, and further requests would wait for those.
    headers = (*SseSide.headers, "connection: close")

    async def start(self) -> None:
        """Start it with a slot for each request, at most 32."""
        program = os.environ.get("LLAMA_SERVER") or shutil.which("llama-server")
        if not program:
            raise Missing("set LLAMA_SERVER to llama.cpp's llama-server")
        self.wire()  # what is missing is told before anything starts
        weights = os.environ.get("LLAMA_GGUF") or str(gguf_file.write(self.folder, self.folder / "model.gguf"))
        slots = min(32, self.most)
        sizes = ("--parallel", str(slots), "--ctx-size", str(slots * 256), "--threads", str(os.cpu_count() or 1))
        await self.launch(program, "--model", weights, "--port", str(self.port), "--jinja", *sizes)
        await self.wait_ready()

    async def is_ready(self) -> bool:
        """Its health page says when the model is loaded."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.write(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
        status = await reader.readline()
        writer.close()
        return b" 200 " in status

    def body(self, prompt: str) -> dict[str, object]:
        """The request; nothing may end the turn."""
        return {**super().body(prompt), "ignore_eos": True, "cache_prompt": False}
