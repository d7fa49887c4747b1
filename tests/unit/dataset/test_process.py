"""The dataset service as a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from chatmill.dataset import v1
from chatmill.runtime import channel, endpoint, health
from chatmill.runtime.testing import local_config

ROOT = Path(__file__).resolve().parents[3]


async def test_it_serves_and_stops_on_sigterm(tmp_path: Path) -> None:
    config = local_config(tmp_path)
    (tmp_path / "datasets" / ".creating-x.1").mkdir(parents=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "CHATMILL_HOME": str(tmp_path),
        "CHATMILL_DATASET__PORT": "0",
        "CHATMILL_MESH__DRAIN_SECONDS": "0",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dataset_svc", env=environment, cwd=tmp_path, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        started = b""
        while endpoint.read(tmp_path, "dataset") is None and (line := await process.stderr.readline()):
            started += line
        async with channel.connect_service("dataset", config) as connection:
            assert await health.check(connection, "chatmill.dataset.v1.DatasetService", seconds=20)
            listed = await v1.DatasetServiceStub(connection).ListDatasets(v1.ListDatasetsRequest())
            assert not listed.datasets
    finally:
        process.send_signal(signal.SIGTERM)
        _, log = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0
    assert b".creating-x.1" in started + log
    assert not list((tmp_path / "datasets").iterdir())
