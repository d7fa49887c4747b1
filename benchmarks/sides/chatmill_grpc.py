"""Chatmill over gRPC: the inference service in a process of its own.

Rounds ask it over the wire that all servers are asked over; `stream` is a client of the contract.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote

import grpc

from benchmarks.sides.base import python
from benchmarks.sides.wire import Asked, Heard, WiredSide, deliveries, messages
from chatmill.common.v1 import Message, Role
from chatmill.errors import ChatmillError
from chatmill.inference.v1 import (
    GenerateRequest,
    GenerateResponse,
    GenerationSpec,
    InferenceServiceStub,
    ListServedModelsRequest,
    Sampling,
)
from chatmill.runtime import channel


class Chatmill(WiredSide):
    """See the module."""

    name = "chatmill"
    settings: tuple[str, ...] = ()
    """Options of the service, as `key=value`."""

    def __init__(self, folder: Path, max_new: int, most: int) -> None:
        super().__init__(folder, max_new, most)
        self._channel: channel.Channel | None = None

    async def start(self) -> None:
        """Start the service and connect."""
        self.wire()  # what is missing is told before anything starts
        program = (python(), "-m", "benchmarks.sides.serve_chatmill")
        await self.launch(*program, str(self.folder), str(self.port), *self.settings)
        await self.wait_ready()
        self._channel = channel.connect(f"127.0.0.1:{self.port}")
        self.stub = InferenceServiceStub(self._channel)
        async with asyncio.timeout(self.ready_seconds):
            while not await self._loaded():  # noqa: ASYNC110
                await asyncio.sleep(0.2)

    async def _loaded(self) -> bool:
        try:
            listed = await self.stub.ListServedModels(ListServedModelsRequest())
        except ChatmillError:
            return False
        return bool(listed.served_models) and listed.served_models[0].loaded

    async def stream(self, prompt: str) -> AsyncIterator[int]:
        """One Generate."""
        seen = 0
        async for answer in self.stub.Generate(self.request(prompt)):
            event = answer.event
            if event.HasField("delta"):
                seen += 1
                yield 1
            elif event.HasField("finished"):
                yield event.finished.usage.output_tokens - seen

    def asked(self, prompt: str) -> Asked:
        """See `WiredSide.asked`."""
        message = self.request(prompt).SerializeToString()
        return Asked(
            f"http://127.0.0.1:{self.port}/chatmill.inference.v1.InferenceService/Generate",
            ("content-type: application/grpc", "te: trailers"),
            b"\0" + len(message).to_bytes(4, "big") + message,
            http2=True,
        )

    def tokens(self, heard: Heard) -> list[tuple[float, int]]:
        """See `WiredSide.tokens`."""
        heard.check()
        check_status(heard.headers)
        times: list[float] = []
        for moment, message in messages(heard.chunks):
            event = GenerateResponse.FromString(message).event
            if event.HasField("delta"):
                times.append(moment)
            elif event.HasField("finished"):
                return deliveries(times, event.finished.usage.output_tokens, moment)
        raise RuntimeError("the stream ended without saying that it finished")

    def request(self, prompt: str) -> GenerateRequest:
        """What is sent."""
        return GenerateRequest(
            spec=GenerationSpec(
                model="models/bench",
                messages=[Message(role=Role.ROLE_USER, content=prompt)],
                sampling=Sampling(temperature=0.0, max_output_tokens=self.max_new, ignore_eos=True),
            )
        )

    async def stop(self) -> None:
        """Close and end."""
        if self._channel is not None:
            await self._channel.close()
        await super().stop()


def check_status(headers: dict[str, str]) -> None:
    """Raises RuntimeError, with the status and its message, unless a call's trailers say that it went well."""
    code = headers.get("grpc-status", "")
    if code != "0":
        name = next((known.name for known in grpc.StatusCode if str(known.value[0]) == code), f"grpc-status {code!r}")
        raise RuntimeError(f"{name}: {unquote(headers.get('grpc-message', ''))}")


class ChatmillAio(Chatmill):
    """The same behind gRPC's own server for asyncio."""

    name = "chatmill-aio"
    settings = ("mesh.grpc_server=aio",)
