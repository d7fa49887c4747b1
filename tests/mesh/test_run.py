"""The main job with real services: a recipe becomes a scored model, and bad input becomes one clear line."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests.mesh.conftest import Mesh, chatmill, quick

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ran(mesh: Mesh, sample_recipe: Path) -> subprocess.CompletedProcess[str]:
    return mesh.chatmill("run", str(sample_recipe), *quick())


def test_a_recipe_becomes_a_scored_model(mesh: Mesh, ran: subprocess.CompletedProcess[str]) -> None:
    # Six steps make no good model, so the gate fails; everything before it has to work.
    assert ran.returncode == 1, ran.stdout + ran.stderr
    board = json.loads((mesh.home / "scoreboard.json").read_text())
    for side in ("baseline", "candidate"):
        assert 0 <= board[side]["pass_rate"] <= 1
    assert board["gate"]
    assert (mesh.home / "report.html").stat().st_size > 10_000
    models = mesh.chatmill("models")
    assert "shop" in models.stdout
    assert "chatmill-tiny" in models.stdout


def test_what_has_not_changed_is_not_done_again(
    mesh: Mesh, ran: subprocess.CompletedProcess[str], sample_recipe: Path
) -> None:
    again = mesh.chatmill("run", str(sample_recipe), *quick())
    assert again.returncode == ran.returncode, again.stdout + again.stderr
    seconds = json.loads((mesh.home / "scoreboard.json").read_text())
    assert again.stdout.count("unchanged") >= 3, again.stdout
    assert seconds["candidate"]


def test_the_result_can_be_talked_to(mesh: Mesh, ran: subprocess.CompletedProcess[str]) -> None:
    said = mesh.chatmill("chat", "shop", "-m", "Hello, who is there?")
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip()


@pytest.mark.usefixtures("ran")
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"source": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"source": "{empty}"}, "empty"),
        ({"source": "{not_json}"}, "not_json.jsonl:1"),
        ({"source": "{half_cut}"}, "half_cut"),
        ({"source": "{not_conversations}"}, "not_conversations"),
        ({"class": "shoop"}, "shop"),
        ({"method.name": "loraa"}, "lora"),
        ({"base": "chatmill-tinny"}, "chatmill-tiny"),
        ({"baseline": "models/nobody"}, "nobody"),
        ({"methd": "lora"}, "method"),
        ({"method.parameters.rnak": 4}, "rank"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_input_is_one_clear_line_and_loses_nothing(
    mesh: Mesh, sample_recipe: Path, tmp_path: Path, settings: dict[str, object], named: str
) -> None:
    before = (mesh.home / "registry.yaml").read_bytes()
    datasets = mesh.chatmill("datasets").stdout
    files = bad_files(tmp_path)
    filled = {k: v.format(**files) if isinstance(v, str) else v for k, v in settings.items()}
    # The source's folder is one that the mesh may read.
    ran = chatmill(
        "run", str(sample_recipe), *quick(), *[p for k, v in filled.items() for p in ("--set", f"{k}={v}")],
        home=tmp_path / "home" if "source" in settings else mesh.home,
    )  # fmt: skip
    assert ran.returncode == 2, ran.stdout + ran.stderr
    errors = [line for line in ran.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, ran.stderr
    assert named in ran.stderr
    assert "Traceback" not in ran.stderr
    assert (mesh.home / "registry.yaml").read_bytes() == before
    assert mesh.chatmill("datasets").stdout == datasets


def bad_files(folder: Path) -> dict[str, str]:
    line = json.dumps(
        {"id": "a", "messages": [{"role": "customer", "content": "hi"}, {"role": "agent", "content": "x"}]}
    )
    whole = gzip.compress("\n".join([line] * 400).encode())
    contents = {
        "empty.jsonl": b"",
        "not_json.jsonl": b"hello, I am no JSON\n",
        "half_cut.jsonl.gz": whole[: len(whole) // 2],
        "not_conversations.jsonl": b'{"price": 3}\n' * 5,
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name.split(".")[0]: str(folder / name) for name in contents}


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ran = chatmill("up", "--services", "dataset", "-o", f"dataset.port={port}", home=tmp_path / "home")
    assert ran.returncode == 2
    assert str(port) in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1


@pytest.mark.xfail(run=False, reason="a mesh that starts on a full disk waits for minutes instead of saying so at once")
def test_a_full_disk_during_training_loses_nothing(tmp_path: Path, sample_recipe: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(home)], capture_output=True
    )
    if not mounted or mounted.returncode != 0:
        pytest.skip("a small disk can't be mounted here")
    try:
        assert chatmill("run", str(sample_recipe), *quick(), home=home).returncode == 1
        registry = (home / "registry.yaml").read_bytes()
        free = os.statvfs(home)
        (home / "ballast").write_bytes(b"\0" * (free.f_bavail * free.f_frsize - 200_000))
        full = chatmill("run", str(sample_recipe), *quick(**{"method.seed": 99}), home=home)
        assert full.returncode == 2, full.stdout + full.stderr
        errors = [line for line in full.stderr.splitlines() if line.startswith("error:")]
        assert len(errors) == 1, full.stderr
        assert "space" in errors[0] or "disk" in errors[0]
        assert (home / "registry.yaml").read_bytes() == registry
        (home / "ballast").unlink()
        again = chatmill("run", str(sample_recipe), *quick(**{"method.seed": 99}), home=home)
        assert again.returncode == 1, again.stdout + again.stderr
    finally:
        subprocess.run(["umount", "-l", str(home)], check=True)
