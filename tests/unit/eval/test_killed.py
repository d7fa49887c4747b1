"""kill -9 in the middle of a run, and a start again: nothing that had an answer is asked twice, the scores are the
same."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from eval_svc.store import Store
from eval_svc.tables import JUDGEMENTS

CHILD = Path(__file__).with_name("killed.py")


def start(folder: Path, name: str, pause: float, kind: str) -> subprocess.Popen[str]:
    arguments = [folder / f"{name}.sqlite", folder / f"{name}.calls", str(pause), kind]
    places = {"PYTHONPATH": os.pathsep.join((str(CHILD.parents[3]), str(CHILD.parents[1])))}
    command = [sys.executable, CHILD, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **places})


def calls(folder: Path, name: str) -> list[str]:
    path = folder / f"{name}.calls"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("kind", "total"),
    [
        ("scripted", 96),
        ("simulated", 64 + 96),  # two replies of the agent, and three answers of the customer, the last of them its end
    ],
)
def test_nothing_answered_is_asked_again_after_kill_9(tmp_path: Path, kind: str, total: int) -> None:
    with start(tmp_path, "whole", 0, kind) as undisturbed:
        expected, _ = undisturbed.communicate(timeout=250)
    assert undisturbed.returncode == 0

    with start(tmp_path, "cut", 0.02, kind) as killed:
        deadline = time.monotonic() + 250
        while len(calls(tmp_path, "cut")) < 40:
            assert killed.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        killed.kill()
    before = calls(tmp_path, "cut")
    assert len(before) < total, "it was killed too late to show anything"
    store = Store(tmp_path / "cut.sqlite")
    record = store.by_request("the-run")
    assert record is not None
    assert record.state == "running"
    kept = {f"{record.id}/{unit}#{2 * i + 1}" for unit, turns in store.turns(record.id).items() for i in turns}
    with store.engine.connect() as db:
        kept |= set(db.execute(sa.select(JUDGEMENTS.c.key)).scalars())
    store.close()

    with start(tmp_path, "cut", 0, kind) as second:
        told, _ = second.communicate(timeout=250)
    assert second.returncode == 0
    after = calls(tmp_path, "cut")[len(before) :]
    assert told == expected
    assert not kept & set(after), "a call that had its answer was made again"
    assert len(kept) + len(after) == total
    assert len(before) - len(kept) <= 4, "no more than the dialogues in flight may be lost"
