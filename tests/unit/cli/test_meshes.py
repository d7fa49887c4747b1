"""Which mesh a command talks to: the one that runs, or one of its own."""

from __future__ import annotations

import argparse
import asyncio
import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from chatmill.cli import meshes
from chatmill.cli.supervision import parts
from chatmill.config import Config
from chatmill.errors import ChatmillError, FailedPrecondition, Unavailable
from chatmill.ports import free_port
from chatmill.runtime import endpoint, health
from chatmill.runtime.channel import connect_service
from chatmill.runtime.server import Service, start
from chatmill.runtime.testing import local_config, running


def arguments(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**{"config": None, "home": None, "option": [], "command_name": "models", **given})


def quiet() -> Console:
    return Console(file=io.StringIO())


def announce(config: Config, service: str, port: int) -> None:
    endpoint.announce(config.home, endpoint.Endpoint(service, os.getpid(), "127.0.0.1", port))


async def test_a_mesh_that_runs_is_used(tmp_path: Path) -> None:
    config = local_config(tmp_path)
    async with running(Service("factory", []), config) as factory:
        announce(config, "factory", factory.running.port)
        async with meshes.found_or_started(arguments(), config, quiet(), services=("factory",)) as found:
            assert (found.local, found.private) == (True, False)
            assert found.config.mesh.peers.factory == factory.channel.target
            assert found.pids() == {"factory": os.getpid()}


async def test_a_mesh_elsewhere_is_used_and_has_to_answer(tmp_path: Path) -> None:
    async with running(Service("factory", []), local_config(tmp_path)) as factory:
        config = local_config(tmp_path, {"mesh.peers.factory": factory.channel.target})
        async with meshes.found_or_started(arguments(), config, quiet(), services=("factory",)) as found:
            assert (found.local, found.private) == (False, False)
    gone = local_config(tmp_path, {"mesh.peers.factory": f"127.0.0.1:{free_port('127.0.0.1')}"})
    with pytest.raises(Unavailable, match="can't be reached"):
        async with meshes.found_or_started(arguments(), gone, quiet(), services=("factory",)):
            pass


async def test_half_a_mesh_is_refused(tmp_path: Path) -> None:
    config = local_config(tmp_path)
    announce(config, "factory", 1)
    with pytest.raises(Unavailable, match="runs without inference") as caught:
        async with meshes.found_or_started(arguments(), config, quiet(), services=("inference",)):
            pass
    assert caught.value.reason == "MESH_INCOMPLETE"


async def test_a_service_that_does_not_serve_is_named_with_its_log(tmp_path: Path) -> None:
    config = local_config(tmp_path)
    started = await start(Service("dataset", []), config)
    try:
        announce(config, "dataset", started.port)
        with pytest.raises(Unavailable, match=r"not serving.*dataset\.log"):
            async with meshes.found_or_started(arguments(), config, quiet(), services=("dataset",)):
                pass
    finally:
        await started.stop(drain=0, grace=0)


async def test_without_a_mesh_only_what_is_needed_is_started_and_stopped(dummies: Path) -> None:
    config = local_config(dummies / "home")
    async with meshes.found_or_started(arguments(), config, quiet(), services=("inference",)) as found:
        assert found.private
        assert set(found.pids()) == {"factory", "inference"}
        for name in found.pids():
            async with connect_service(name, found.config) as channel:
                assert await health.check(channel)
        with pytest.raises(FailedPrecondition, match="`chatmill models`"):
            async with meshes._started(arguments(), config, quiet(), ("dataset",), ()):
                pass
        pids = list(found.pids().values())
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_a_mesh_that_can_not_be_kept_alive_ends_the_command() -> None:
    class Failing:
        async def failure(self) -> ChatmillError:
            await asyncio.sleep(0)
            return Unavailable("factory died 5 times")

    with pytest.raises(Unavailable, match="factory died 5 times"):
        async with meshes._ending_with(Failing()):  # type: ignore[arg-type]
            await asyncio.sleep(60)
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


def test_services_are_told_where_the_others_are_and_what_they_may_read(tmp_path: Path) -> None:
    config = local_config(tmp_path, {"dataset.roots": str(tmp_path / "a"), "mesh.metrics_port": "9100"})
    chosen = parts.private(("dataset", "factory"))
    given = arguments(config=Path("mesh.yaml"), option=["mesh.log_level=debug"])
    told = parts.arguments_of(config, given, chosen, [tmp_path / "b"])
    for part, metrics in zip(chosen, ("9100", "9101"), strict=True):
        words = told[part.name]
        assert words[:2] == ["--config", "mesh.yaml"]
        assert "mesh.log_level=debug" in words
        assert f"mesh.home={tmp_path}" in words
        assert f"dataset.port={chosen[0].port}" in words
        assert f"factory.port={chosen[1].port}" in words
        assert f"dataset.roots={tmp_path / 'a'},{tmp_path / 'b'}" in words
        assert f"mesh.metrics_port={metrics}" in words
