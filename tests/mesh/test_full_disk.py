"""A disk that is full: before a mesh starts, and while it trains. What was there before stays, and room mends it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatmill.common.v1 import JobState
from chatmill.factory.v1 import (
    FactoryServiceStub,
    GetTrainingJobRequest,
    ListTrainingJobsRequest,
    TrainingJob,
    WatchTrainingJobRequest,
)
from chatmill.runtime.channel import connect
from tests.mesh.conftest import CHATMILL, ROOT, Mesh, chatmill, environment, quick, start, stop

pytestmark = pytest.mark.slow
MIB = 1024 * 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own, with 48 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can't be mounted here; that takes root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, *, leave: int = 0) -> Path:
    """Take all room but `leave` bytes; returns the file that holds it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (MIB, 4096):
            try:
                while (free := os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize) > leave:
                    file.write(bytes(min(size, free - leave)))
            except OSError:
                continue
    return ballast


def only_error(stderr: str) -> str:
    """The one line that says what is wrong."""
    assert "Traceback" not in stderr
    (line,) = [line for line in stderr.splitlines() if line.startswith("error:")]
    return line


@pytest.mark.timeout(90)
@pytest.mark.parametrize("leave", [0, 200_000])
def test_a_mesh_on_a_full_disk_says_so_at_once(small_disk: Path, sample_recipe: Path, leave: int) -> None:
    home = small_disk / "home"
    home.mkdir()
    (home / "registry.yaml").write_text("# precious\n")
    ballast = fill(small_disk, leave=leave)
    for command in (("up",), ("run", str(sample_recipe), *quick()), ("models",)):
        began = time.monotonic()
        refused = chatmill(*command, home=home, timeout=60)
        assert refused.returncode == 2, refused.stdout + refused.stderr
        assert time.monotonic() - began < 30
        assert str(home) in only_error(refused.stderr)
        assert "is full" in only_error(refused.stderr)
        assert "Free some space" in only_error(refused.stderr)
    assert (home / "registry.yaml").read_text() == "# precious\n"
    assert sorted(path.name for path in home.rglob("*")) == ["registry.yaml"]
    ballast.unlink()
    (home / "registry.yaml").unlink()
    listed = chatmill("models", home=home, timeout=80)
    assert listed.returncode == 0, listed.stderr


@pytest.mark.timeout(420)
def test_a_full_disk_during_training_loses_nothing(tmp_path: Path, small_disk: Path, sample_recipe: Path) -> None:
    mesh = start(small_disk / "home", tmp_path / "up.log")
    try:
        small = quick(**{"suite.tags": ["small-talk"]})
        first = mesh.chatmill("run", str(sample_recipe), *small)
        assert first.returncode in (0, 1), first.stdout + first.stderr
        before = {name: (mesh.home / name).read_bytes() for name in ("registry.yaml", "scoreboard.json")}

        long = quick(**{"suite.tags": ["small-talk"], "method.seed": 99, "method.parameters.max_steps": 5000})
        running = subprocess.Popen(
            [CHATMILL, "run", str(sample_recipe), *long, "--home", str(mesh.home)],
            cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        job = asyncio.run(trains(mesh))
        ballast = fill(small_disk)
        said = running.communicate(timeout=120)[1]
        assert running.returncode == 2, said
        assert "disk is full" in only_error(said)
        assert "Free some space" in only_error(said)

        assert {name: (mesh.home / name).read_bytes() for name in before} == before
        talk = mesh.chatmill("chat", "shop", "-m", "Hello, who is there?")
        assert talk.returncode == 0, talk.stderr
        assert talk.stdout.strip()

        ballast.unlink()
        ended = asyncio.run(ends(mesh, job))
        assert ended.state == JobState.JOB_STATE_FAILED
        assert "disk is full" in ended.error.message
        again = mesh.chatmill("run", str(sample_recipe), *quick(**{"suite.tags": ["small-talk"], "method.seed": 99}))
        assert again.returncode in (0, 1), again.stdout + again.stderr
        assert json.loads((mesh.home / "scoreboard.json").read_text())["model"].endswith("/versions/2")
    finally:
        stop(mesh)


async def trains(mesh: Mesh) -> str:
    """Wait until a training has done its first steps; its name."""
    async with connect(mesh.address("factory")) as channel:
        factory = FactoryServiceStub(channel)
        at_work = ListTrainingJobsRequest(state=JobState.JOB_STATE_RUNNING)
        while not (jobs := (await factory.ListTrainingJobs(at_work)).training_jobs):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.2)
        async for answer in factory.WatchTrainingJob(WatchTrainingJobRequest(name=jobs[0].name)):
            if answer.event.progress.step >= 1:
                return jobs[0].name
    raise AssertionError("the training ended before its first step")


async def ends(mesh: Mesh, name: str) -> TrainingJob:
    """Wait until the factory could write how a job ended."""
    async with connect(mesh.address("factory")) as channel:
        factory, request = FactoryServiceStub(channel), GetTrainingJobRequest(name=name)
        while not (job := (await factory.GetTrainingJob(request)).training_job).HasField("end_time"):  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        return job
