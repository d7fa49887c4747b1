"""The supervisor by itself: deaths that are too many, processes that won't stop, memory."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from chatmill import disk
from chatmill.cli.supervision import home as homes
from chatmill.cli.supervision import parts
from chatmill.cli.supervision.memory import MemoryWatch
from chatmill.cli.supervision.process import Part, ServiceProcess
from chatmill.cli.supervision.supervisor import Patience, Supervisor
from chatmill.config import Config
from chatmill.errors import FailedPrecondition, ResourceExhausted, Unavailable
from chatmill.runtime.testing import local_config

STUBBORN = (
    "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('here', flush=True)\ntime.sleep(60)\n"
)


class Notes:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def ready(self, part: Part, seconds: float) -> None:
        self.heard.append(f"ready {part.name}")

    def died(self, part: Part, code: int, last_words: Sequence[str], delay: float) -> None:
        self.heard.append(f"died {part.name} {code} {delay:g}")

    def stopped(self, part: Part, graceful: bool) -> None:
        self.heard.append(f"stopped {part.name} {graceful}")


def one(config: Config) -> tuple[list[Part], dict[str, list[str]]]:
    part = parts.private(["dataset"])[0]
    told = ["--set", f"mesh.home={config.home}", "--set", f"dataset.port={part.port}"]
    return [part], {"dataset": told}


async def test_a_service_that_keeps_dying_ends_the_mesh(dummies: Path) -> None:
    config, notes = local_config(dummies / "home"), Notes()
    supervisor = Supervisor(*one(config), config, notes, Patience(first_delay=0.01, limit=3))
    await supervisor.start()
    failure = asyncio.create_task(supervisor.failure())
    seen: set[int] = set()
    while not failure.done():
        pid = supervisor.pids["dataset"]
        if pid not in seen:
            seen.add(pid)
            os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.01)
    assert "dataset died 3 times" in failure.result().message
    assert [text for text in notes.heard if text.startswith("died")] == ["died dataset -9 0.01", "died dataset -9 0.02"]
    await supervisor.stop()


async def test_a_service_that_hangs_while_starting_is_given_up(dummies: Path) -> None:
    (dummies / "dataset_svc" / "__main__.py").write_text(STUBBORN, encoding="utf-8")
    config = local_config(dummies / "home")
    config = replace(config, mesh=replace(config.mesh, grace_seconds=0))
    supervisor = Supervisor(*one(config), config, Notes(), Patience(start=1.0, stop=0.1))
    with pytest.raises(Unavailable, match="was not ready after 1 s"):
        await supervisor.start()
    assert supervisor.pids["dataset"]
    with pytest.raises(ProcessLookupError):
        os.kill(supervisor.pids["dataset"], 0)


async def test_a_service_that_ends_on_a_full_disk_can_not_say_so_and_the_mesh_does(
    dummies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (dummies / "dataset_svc" / "__main__.py").write_text("raise SystemExit(2)\n", encoding="utf-8")
    config = local_config(dummies / "home")
    supervisor = Supervisor(*one(config), config, Notes())
    monkeypatch.setattr(disk, "free", lambda _: 0)
    with pytest.raises(ResourceExhausted, match=r"The disk is full: .*home \(dataset ended with code 2") as caught:
        await supervisor.start()
    assert "Free some space" in caught.value.message
    assert "\n" not in caught.value.message


async def test_a_process_that_ignores_the_request_is_killed_with_its_children(dummies: Path) -> None:
    (dummies / "dataset_svc" / "__main__.py").write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(child.pid, flush=True)\ntime.sleep(60)\n",
        encoding="utf-8",
    )
    process = ServiceProcess(parts.private(["dataset"])[0], [], dummies / "home")
    await process.start()
    while not process.last_words():  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.01)
    child = int(process.last_words()[0])
    assert await process.stop(0.1) is False
    assert process.returncode == -signal.SIGKILL
    for _ in range(500):
        if ended(child):
            break
        await asyncio.sleep(0.01)
    else:
        pytest.fail("the child lives on")


def ended(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "\nState:\tZ" in status.read_text(encoding="utf-8")


def test_a_home_belongs_to_one_mesh_at_a_time(tmp_path: Path) -> None:
    with homes.occupied(tmp_path, "chatmill run"):
        program = (
            "import sys; from pathlib import Path; from chatmill.cli.supervision import home\n"
            "with home.occupied(Path(sys.argv[1]), 'other'): pass"
        )
        second = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])},
        )
        assert "`chatmill run`" in second.stderr
        assert f"(process {os.getpid()})" in second.stderr
    with homes.occupied(tmp_path, "chatmill run"):
        pass


def test_a_large_log_makes_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homes, "LOG_BYTES", 10)
    path = homes.log_path(tmp_path, "eval")
    homes.make_room(path)
    path.write_text("0123456789abc")
    homes.make_room(path)
    assert not path.exists()
    assert path.with_name("eval.log.1").read_text() == "0123456789abc"


def test_ports_are_checked_before_anything_starts() -> None:
    part = parts.private(["eval"])[0]
    parts.check_ports([part])
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        taken.bind((part.host, part.port))
        taken.listen(1)
        with pytest.raises(FailedPrecondition, match=r"choose another port with --option eval\.port=PORT \(0"):
            parts.check_ports([part])
        both = [part, replace(part, name="factory")]
        with pytest.raises(FailedPrecondition, match=r"free ports: --option eval\.port=0 --option factory\.port=0\."):
            parts.check_ports(both)


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_memory_counts_a_process_with_its_children() -> None:
    watch = MemoryWatch(lambda: {"self": os.getpid()})
    watch.look()
    alone = watch.peak_bytes
    assert alone > 10 * 2**20
    child = subprocess.Popen(
        [sys.executable, "-c", "x = bytearray(200 * 2**20); print('x', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    child.stdout.readline()
    watch.look()
    child.communicate(b"\n")
    assert watch.peak_bytes > alone + 150 * 2**20
    assert watch.peak_by_service["self"] == watch.peak_bytes
