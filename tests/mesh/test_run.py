"""The main job with real services: a recipe becomes a scored model, and bad input becomes one clear line."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
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
        ({"source": "{cut_off}"}, "cut_off"),
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
    home = mesh.home
    if "source" in settings:  # only a mesh of the command's own may read whatever folder the command names
        home = tmp_path / "home"
        shutil.copytree(mesh.home, home, ignore=shutil.ignore_patterns("run", "logs"))
    before = state(home)
    assert before
    files = bad_files(tmp_path)
    filled = {k: v.format(**files) if isinstance(v, str) else v for k, v in settings.items()}
    told = [part for key, value in filled.items() for part in ("--set", f"{key}={value}")]
    ran = chatmill("run", str(sample_recipe), *quick(), *told, home=home)
    assert ran.returncode == 2, ran.stdout + ran.stderr
    errors = [line for line in ran.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, ran.stderr
    assert named in ran.stderr
    assert "Traceback" not in ran.stderr
    assert state(home) == before


def state(home: Path) -> dict[str, str]:
    """What must outlive any mistake: datasets, models and the registry, each file with its digest."""
    files = [home / "registry.yaml", *(home / "datasets").rglob("*"), *(home / "artifacts").rglob("*")]
    return {str(f.relative_to(home)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()}


def bad_files(folder: Path) -> dict[str, str]:
    line = json.dumps(
        {"id": "a", "messages": [{"role": "customer", "content": "hi"}, {"role": "agent", "content": "x"}]}
    )
    whole = gzip.compress("\n".join([line] * 400).encode())
    contents = {
        "empty.jsonl": b"",
        "not_json.jsonl": b"hello, I am no JSON\n",
        "half_cut.jsonl.gz": whole[: len(whole) // 2],
        "cut_off.json": f"[{line}, {line}, {line[:40]}".encode(),
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
