from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # probe_service, under any import mode of pytest

import probe_service as probe

from chatmill.config import Config
from chatmill.runtime import server, testing


@pytest.fixture(params=["direct", "aio"])
def config(tmp_path: Path, request: pytest.FixtureRequest) -> Config:
    return testing.local_config(tmp_path, {"mesh.grpc_server": request.param})


@pytest.fixture
def servicer() -> probe.ProbeServicer:
    return probe.ProbeServicer()


@pytest.fixture
def service(servicer: probe.ProbeServicer) -> server.Service:
    return server.Service("dataset", [(probe.add_to_server, servicer)])


@pytest.fixture
async def harness(service: server.Service, config: Config) -> AsyncIterator[testing.Harness]:
    async with testing.running(service, config) as running:
        yield running


@pytest.fixture
def stub(harness: testing.Harness) -> probe.ProbeStub:
    return probe.ProbeStub(harness.channel)
