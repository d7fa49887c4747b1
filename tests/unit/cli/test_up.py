"""`chatmill up` with real processes: what one death does to the others, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from chatmill.cli import up as command
from chatmill.cli.console import stdout
from chatmill.cli.meshes import Announcer
from chatmill.cli.supervision.process import Part
from chatmill.cli.supervision.supervisor import Supervisor
from chatmill.runtime.testing import local_config

SERVICES = ("dataset", "factory", "inference", "eval")
FREE = [word for name in SERVICES for word in ("-o", f"{name}.port=0")]


def until(condition: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # a process that ended and whose parent is gone may wait for the init process to notice
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text() if Path(f"/proc/{pid}").exists() else False


class Up:
    """A `chatmill up` under test."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.home = folder / "home"
        self.out, self.err = folder / "out.txt", folder / "err.txt"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "chatmill.cli", "up", "--home", str(self.home), *FREE, *arguments],
                stdout=out,
                stderr=err,
            )

    def printed(self) -> str:
        return self.out.read_text(encoding="utf-8")

    def pid(self, service: str) -> int:
        try:
            return int(json.loads((self.home / "run" / f"{service}.json").read_text(encoding="utf-8"))["pid"])
        except (OSError, ValueError):
            return 0

    def pids(self) -> dict[str, int]:
        return {name: self.pid(name) for name in SERVICES}

    def wait_up(self) -> None:
        until(lambda: "The mesh is up" in self.printed() or self.process.poll() is not None, "the start")
        assert self.process.poll() is None, self.printed() + self.err.read_text(encoding="utf-8")


@pytest.fixture
def up(dummies: Path) -> Iterator[Up]:
    started = Up(dummies, "--services", ",".join(SERVICES))
    try:
        started.wait_up()
        yield started
    finally:
        started.process.kill()
        started.process.wait()


def test_one_is_killed_the_others_go_on_and_it_comes_back(up: Up) -> None:
    before = up.pids()
    os.kill(before["factory"], signal.SIGKILL)
    until(lambda: up.pid("factory") not in (0, before["factory"]), "the restart")
    after = up.pids()
    assert {name: pid for name, pid in after.items() if name != "factory"} == {
        name: pid for name, pid in before.items() if name != "factory"
    }
    until(lambda: re.search(r"factory +ready", up.printed().split("died with code")[1]), "the restart's line")
    assert "factory died with code -9; starting it again in 0.5 s" in up.printed()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_in_order_and_leaves_nothing(up: Up, number: signal.Signals) -> None:
    pids = up.pids()
    assert all(alive(pid) for pid in pids.values())
    up.process.send_signal(number)
    assert up.process.wait(timeout=30) == 0
    assert not any(alive(pid) for pid in pids.values())
    assert re.findall(r"(\w+) +stopped", up.printed()) == ["eval", "inference", "factory", "dataset"]
    assert set(up.pids().values()) == {0}
    assert "stopped" in (up.home / "logs" / "factory.log").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux to tell a child of its parent's death")
def test_a_killed_supervisor_leaves_no_service_behind(up: Up) -> None:
    pids = up.pids()
    up.process.kill()
    up.process.wait()
    until(lambda: not any(alive(pid) for pid in pids.values()), "the end of the services")


def test_a_second_mesh_in_the_same_home_is_refused(up: Up, dummies: Path) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "chatmill.cli", "up", "--home", str(up.home), *FREE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 2
    assert second.stderr.count("\n") == 1
    assert f"in use by `chatmill up` (process {up.process.pid})" in second.stderr
    assert all(alive(pid) for pid in up.pids().values())


def test_a_taken_port_is_one_clear_line(dummies: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "chatmill.cli", "up", *FREE, "-o", f"inference.port={port}"]
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert f"inference can't listen on 127.0.0.1:{port}" in refused.stderr
    assert "--option inference.port=" in refused.stderr
    assert not (dummies / "chatmill-home").exists()


def test_a_service_that_can_not_start_ends_the_mesh_with_its_last_words(dummies: Path) -> None:
    (dummies / "eval_svc" / "__main__.py").write_text("raise SystemExit('no suites here')\n", encoding="utf-8")
    failed = Up(dummies)
    assert failed.process.wait(timeout=60) == 2
    said = failed.err.read_text(encoding="utf-8")
    assert "error: eval ended with code 1 while starting" in said
    assert "no suites here" in said
    assert set(failed.pids().values()) == {0}


def test_only_the_services_that_were_asked_for(dummies: Path) -> None:
    some = Up(dummies, "--services", "dataset,eval")
    some.wait_up()
    assert [bool(some.pid(name)) for name in SERVICES] == [True, False, False, True]
    some.process.terminate()
    assert some.process.wait(timeout=30) == 0


def test_an_unknown_service_is_refused(dummies: Path) -> None:
    refused = Up(dummies, "--services", "datset")
    assert refused.process.wait(timeout=30) == 2
    assert "did you mean 'dataset'" in refused.err.read_text(encoding="utf-8")


@pytest.mark.parametrize("tls", [False, True])
async def test_the_page_is_named_by_the_address_that_a_browser_needs(tmp_path: Path, tls: bool) -> None:
    config = local_config(tmp_path)
    if tls:
        secure = replace(config.mesh.security, cert_file=tmp_path / "cert.pem", key_file=tmp_path / "key.pem")
        config = replace(config, mesh=replace(config.mesh, security=secure))
    bridge = Part("bridge", "bridge", "127.0.0.1", 8080, grpc=False)
    console = stdout()
    with console.capture() as shown:
        command._show(console, Supervisor([bridge], {"bridge": []}, config, Announcer(console)), [bridge], config)
    assert f"{'https' if tls else 'http'}://127.0.0.1:8080/test" in shown.get()
