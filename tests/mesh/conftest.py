"""A mesh as a user starts it: `chatmill up`, every service a real process, free loopback ports, a home of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHATMILL = Path(sys.executable).with_name("chatmill")
SERVICES = ("dataset", "factory", "inference", "eval")

# Small enough to train in seconds: the tests ask whether the parts join, not whether the model is good.
QUICK = {
    "limit": 120,
    "dataset.test_fraction": 0.2,
    "method.parameters.max_steps": 6,
    "trials": 1,
}


@dataclass
class Mesh:
    """A running mesh.

    Attributes:
        home: its CHATMILL_HOME.
        process: the `chatmill up` that runs it.
        log: file with what `up` printed.
    """

    home: Path
    process: subprocess.Popen[bytes]
    log: Path
    options: Sequence[str] = field(default=())

    def address(self, service: str) -> str:
        """host:port of a service, as it wrote it itself when it was ready."""
        told = json.loads((self.home / "run" / f"{service}.json").read_text())
        return f"{told['host']}:{told['port']}"

    def pid(self, service: str) -> int:
        """Process id of a service."""
        return int(json.loads((self.home / "run" / f"{service}.json").read_text())["pid"])

    def chatmill(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run the command against this mesh."""
        return chatmill(*arguments, home=self.home, cwd=cwd or ROOT)


def chatmill(*arguments: str, home: Path, cwd: Path = ROOT, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    """Run `chatmill ARGUMENTS` in a fresh process."""
    return subprocess.run(
        [CHATMILL, *arguments, "--home", str(home)],
        cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def environment() -> Mapping[str, str]:
    """The environment of a user, with one thread for torch so that tests don't crowd each other out."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "140", "NO_COLOR": "1"}


def quick(**more: object) -> list[str]:
    """`--set` options that make the sample's recipe run in seconds."""
    settings = {**QUICK, **more}
    return [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]


def start(home: Path, log: Path) -> Mesh:
    """Start a mesh on free ports and wait until it says that it is up. Fails with its output if it ends before."""
    options = [part for service in SERVICES for part in ("-o", f"{service}.port=0")]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [CHATMILL, "up", "--services", ",".join(SERVICES), "--home", str(home), *options],
            cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=out,
        )  # fmt: skip
    assert process.stdout
    told: list[str] = []
    for line in process.stdout:
        told.append(line.decode())
        if "The mesh is up" in told[-1]:
            return Mesh(home, process, log)
    raise AssertionError(f"the mesh did not start:\n{''.join(told)}\n{log.read_text()}")


def stop(mesh: Mesh) -> None:
    """Ctrl-C, as a user would."""
    mesh.process.send_signal(signal.SIGINT)
    try:
        mesh.process.wait(30)
    finally:
        mesh.process.kill()


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """One mesh for all tests that leave it as they found it."""
    folder = tmp_path_factory.mktemp("mesh")
    started = start(folder / "home", folder / "up.log")
    yield started
    stop(started)


@pytest.fixture
def own_mesh(tmp_path: Path) -> Iterator[Mesh]:
    """A mesh for a test that breaks it."""
    started = start(tmp_path / "home", tmp_path / "up.log")
    yield started
    stop(started)


@pytest.fixture(scope="session")
def sample_recipe() -> Path:
    """The recipe that the demo runs."""
    return ROOT / "samples" / "recipe.yaml"


def read_yaml(path: Path) -> dict[str, object]:
    """A YAML file as a mapping."""
    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded
