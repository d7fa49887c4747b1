"""A mesh in one loop: the real evaluation service, a scripted model, a registry of two."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from chatmill.common.v1 import ToolCall
from chatmill.config import Config
from chatmill.errors import NotFound, ResourceExhausted, Unavailable
from chatmill.factory import v1 as factory_v1
from chatmill.inference import v1 as inference_v1
from chatmill.runtime.server import Service
from chatmill.runtime.testing import local_config, running
from eval_svc.__main__ import build

MODELS = ("models/shop", "models/chatmill-tiny")
HANG: dict[str, Any] = {}
HUGE = 5_000_000
"""Characters of the reply to a question with `huge`."""
NASTY = (
    "<b>bold</b> <img src=x onerror=\"document.title='hacked'\"> **stars** # head\n"
    "<script>document.title='hacked'</script>"
)


class Registry(factory_v1.RegistryServiceServicer):
    """Two models."""

    async def GetModel(self, request: Any, context: Any) -> Any:
        name = "/".join(request.name.split("/")[:2])
        if name not in MODELS:
            raise NotFound(f"no model {request.name}")
        return factory_v1.GetModelResponse(model=factory_v1.Model(name=f"{name}/versions/1", revision=f"sha256:{name}"))


@dataclass
class Inference(inference_v1.InferenceServiceServicer):
    """Answers by rules, word by word; `pause` is the time between two words, and once `healed` nothing goes wrong.

    Until it is `up` it can't be reached; then it serves `models`.
    """

    requests: list[Any] = field(default_factory=list)
    pause: float = 0.005
    most_at_once: int = 0
    cancelled: int = 0
    healed: bool = False
    up: bool = True
    models: tuple[str, ...] = MODELS
    _now: int = 0

    async def ListServedModels(self, request: Any, context: Any) -> Any:
        if not self.up:
            raise Unavailable("still starting", retry_after=1)
        served = [inference_v1.ServedModel(model=f"{name}/versions/1") for name in self.models]
        return inference_v1.ListServedModelsResponse(served_models=served)

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request.spec)
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        sequence = 0
        try:
            for event in self._events(request.spec):
                if event is HANG:
                    await asyncio.sleep(3600)
                yield inference_v1.GenerateResponse(event=inference_v1.GenerationEvent(sequence=sequence, **event))
                sequence += 1
                await asyncio.sleep(self.pause)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            self._now -= 1

    def _events(self, spec: Any) -> Any:
        said = "" if self.healed else spec.messages[-1].content
        if "busy" in said:
            raise ResourceExhausted("the queue is full", retry_after=1)
        yield {"started": inference_v1.Started(prompt_tokens=7)}
        text = (
            NASTY if "nasty" in said else "Hello, you can return it within 30 days." if "shop" in spec.model else "Hm."
        )
        if "slow" in said:
            text = "word " * 400
        if "huge" in said:
            text = " ".join(["x" * 99_999] * (HUGE // 100_000))
        place, finish = 0, inference_v1.FinishReason.FINISH_REASON_END_OF_TURN
        for word in text.split(" "):
            piece = word + " "
            yield {"delta": inference_v1.Delta(text=piece, character_offset=place)}
            place += len(piece)
            if "hang" in said:
                yield HANG
            if "die" in said:
                raise Unavailable("the engine went away")
            if "vanish" in said:
                return
        if "person" in said:
            call = ToolCall(id="0", name="transfer_to_human", arguments_json='{"reason": "request"}')
            yield {"handoff": inference_v1.Handoff(reason="request", tool_call=call)}
            finish = inference_v1.FinishReason.FINISH_REASON_TOOL_CALLS
        usage = inference_v1.Usage(prompt_tokens=7, output_tokens=9)
        yield {"finished": inference_v1.Finished(finish_reason=finish, usage=usage)}


@dataclass
class Mesh:
    """The services, and a configuration under which the bridge finds them."""

    config: Config
    inference: Inference


@asynccontextmanager
async def meshed(home: Path) -> AsyncIterator[Mesh]:
    """Start the services on free ports."""
    inference, first = Inference(), local_config(home)
    add = inference_v1.add_InferenceServiceServicer_to_server
    async with (
        running(Service("factory", [(factory_v1.add_RegistryServiceServicer_to_server, Registry())]), first) as one,
        running(Service("inference", [(add, inference)]), first) as two,
    ):
        targets = {"mesh.peers.factory": one.running.target, "mesh.peers.inference": two.running.target}
        second = local_config(home, targets)
        async with running(await build(second), second) as three:
            config = local_config(home, {**targets, "mesh.peers.eval": three.running.target})
            yield Mesh(config, inference)


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with meshed(tmp_path / "home") as made:
        yield made


@asynccontextmanager
async def page_of(config: Config) -> AsyncIterator[str]:
    """Serve the bridge of a configuration on a free port; its address."""
    import uvicorn

    from bridge.app import build as build_app

    options: dict[str, Any] = {"port": 0, "log_config": None, "timeout_graceful_shutdown": 1}
    server = uvicorn.Server(uvicorn.Config(build_app(config), **options))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await serving
