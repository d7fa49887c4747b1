"""A service is killed while a client streams: that client learns it at once, and everyone else goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterable
from typing import Any

import grpc
import pytest

from chatmill.common.v1 import ROLE_USER, Message
from chatmill.errors import ChatmillError, Unavailable
from chatmill.factory.v1 import RegistryServiceStub, WatchModelsRequest
from chatmill.inference.v1 import GenerateRequest, GenerationSpec, InferenceServiceStub, Sampling
from chatmill.runtime.channel import connect
from tests.mesh.conftest import SERVICES, Mesh

pytestmark = pytest.mark.slow


def endless() -> GenerateRequest:
    return GenerateRequest(
        spec=GenerationSpec(
            model="models/chatmill-tiny",
            messages=[Message(role=ROLE_USER, content="Tell me everything.")],
            sampling=Sampling(max_output_tokens=400, ignore_eos=True, temperature=1, seed=3),
        )
    )


async def healthy(address: str) -> bool:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with grpc.aio.insecure_channel(address) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def kill_while_streaming(stream: AsyncIterable[Any], pid: int, after: int) -> tuple[ChatmillError, float]:
    """Read the stream, kill the process behind it after so many messages; the error, and the seconds until it came."""
    seen, killed = 0, 0.0
    try:
        async for _ in stream:
            seen += 1
            if seen == after:
                os.kill(pid, signal.SIGKILL)
                killed = time.monotonic()
    except ChatmillError as error:
        return error, time.monotonic() - killed
    raise AssertionError(f"the stream ended well after {seen} messages")


async def test_a_killed_inference_service_ends_the_stream_within_a_second(own_mesh: Mesh) -> None:
    async with connect(own_mesh.address("inference")) as channel:
        stream = InferenceServiceStub(channel).Generate(endless(), timeout=60)
        error, seconds = await kill_while_streaming(stream, own_mesh.pid("inference"), after=3)
    assert isinstance(error, Unavailable)
    assert seconds < 1.0
    others = [own_mesh.address(service) for service in SERVICES if service != "inference"]
    assert all(await asyncio.gather(*(healthy(address) for address in others)))


async def test_a_killed_factory_ends_a_watch_within_a_second_and_serving_goes_on(own_mesh: Mesh) -> None:
    async with connect(own_mesh.address("inference")) as serving:
        # Before the factory dies, so that the model is in memory.
        async for _ in InferenceServiceStub(serving).Generate(endless(), timeout=60):
            pass
        async with connect(own_mesh.address("factory")) as channel:
            watch = RegistryServiceStub(channel).WatchModels(WatchModelsRequest())
            error, seconds = await kill_while_streaming(watch, own_mesh.pid("factory"), after=1)
        assert isinstance(error, Unavailable)
        assert seconds < 1.0
        events = [answer.event async for answer in InferenceServiceStub(serving).Generate(endless(), timeout=60)]
        assert events[-1].HasField("finished")
