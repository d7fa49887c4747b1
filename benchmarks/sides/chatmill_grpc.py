"""Chatmill over gRPC: the inference service in a process of its own, a client of the contract here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from benchmarks.sides.base import ServerSide, python
from chatmill.common.v1 import Message, Role
from chatmill.errors import ChatmillError
from chatmill.inference.v1 import (
    GenerateRequest,
    GenerationSpec,
    InferenceServiceStub,
    ListServedModelsRequest,
    Sampling,
)
from chatmill.runtime import channel


class Chatmill(ServerSide):
    """See the module."""

    name = "chatmill"
    settings: tuple[str, ...] = ()
    """Options of the service, as `key=value`."""

    def __init__(self, folder: Path, max_new: int, most: int) -> None:
        super().__init__(folder, max_new, most)
        self._channel: channel.Channel | None = None

    async def start(self) -> None:
        """Start the service and connect."""
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

    def request(self, prompt: str) -> GenerateRequest:
        """What `stream` sends."""
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
