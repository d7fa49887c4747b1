"""Servers that speak the OpenAI protocol over server-sent events: `transformers serve`, the usual tutorial, llama.cpp.

The client here reads the bare stream and parses nothing but the end, so that its own cost is as small as ours.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from benchmarks.sides import gguf_file
from benchmarks.sides.base import Missing, ServerSide, python


class SseSide(ServerSide):
    """A side with `/v1/chat/completions`."""

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
                event = json.loads(line[6:])
                choice = (event.get("choices") or [{}])[0]
                if choice.get("delta", {}).get("content"):
                    seen += 1
                    yield 1
                finished = finished or choice.get("finish_reason") is not None
            if not finished:
                raise RuntimeError("the stream ended without a finish reason")
            # Nothing ends a turn in this model, so a stream that finished has all its tokens; some events hold several.
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


class TransformersServe(SseSide):
    """`transformers serve`: one request after another through `generate`."""

    name = "transformers-serve"
    options: tuple[str, ...] = ()

    async def start(self) -> None:
        """Start it with the model preloaded."""
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
        await self.launch(python(), "-m", "benchmarks.sides.serve_tutorial", str(self.folder), str(self.port))
        await self.wait_ready()


class LlamaCpp(SseSide):
    """llama.cpp's server on the same model as GGUF in f32: set LLAMA_SERVER to the program, or have it on the path.

    The model is converted at the start (`gguf_file`); LLAMA_GGUF names a converted file instead.
    """

    name = "llama.cpp"

    async def start(self) -> None:
        """Start it with a slot for each request, at most 32."""
        program = os.environ.get("LLAMA_SERVER") or shutil.which("llama-server")
        if not program:
            raise Missing("set LLAMA_SERVER to llama.cpp's llama-server")
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
