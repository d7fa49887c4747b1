"""`chatmill eval` as a user runs it: a process of its own, against real services with a scripted model behind them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from chatmill.common.v1 import Message, Role
from chatmill.eval import v1
from eval_svc.scenario_file import read_scenario
from eval_svc.suite import read_suite

from .small_mesh import Mesh, small_mesh
from .test_openai_target import server as server

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]
KEYS = {
    "model", "baseline", "verdict", "difference", "interval", "p_value", "pass_rate", "pass_hat_k", "error_rate",
    "critical", "unscored", "infra", "gate",
}  # fmt: skip


@dataclass
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error:")]


@dataclass
class Shell:
    """Runs the command in a folder of its own."""

    mesh: Mesh
    folder: Path

    async def run(self, *words: str) -> Ran:
        options = [part for key, value in self.mesh.addresses.items() for part in ("-o", f"{key}={value}")]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "chatmill.cli", "eval", *words, "--home", str(self.folder / "home"), *options,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            stdin=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        out, err = await process.communicate()
        return Ran(process.returncode or 0, out.decode(), err.decode())


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    async with small_mesh(tmp_path) as mesh:
        yield Shell(mesh, tmp_path)


async def test_a_run_with_a_baseline_writes_what_was_asked_for(shell: Shell) -> None:
    ran = await shell.run(
        "run", "shop", "--model", "tuned", "--baseline", "base", "--trials", "2", "--min-pass-rate", "0.85",
        "--json", "out/v.json", "--html", "r.html", "--junit", "r.xml", "--jsonl", "r.jsonl",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    told = json.loads((shell.folder / "out" / "v.json").read_text())
    assert set(told) == KEYS
    assert (told["verdict"], told["difference"], told["gate"]) == ("better", 1.0, "passed")
    assert told["interval"][0] <= 1.0 <= told["interval"][1]
    assert told["p_value"] < 0.05
    assert (told["pass_rate"], told["pass_hat_k"], told["error_rate"]) == (1.0, [1.0, 1.0], 0.0)
    assert (told["critical"], told["unscored"], told["infra"]) == (0, 0, 0)
    assert (told["model"], told["baseline"]) == ("models/tuned", "models/base")
    assert "Hello Ana" in (shell.folder / "r.html").read_text()
    assert ET.fromstring((shell.folder / "r.xml").read_bytes()) is not None
    assert len((shell.folder / "r.jsonl").read_text().splitlines()) == 32
    assert "better: +100.0 points" in ran.out
    assert "gate     passed" in ran.out


async def test_the_exit_code_is_that_of_the_gate(shell: Shell) -> None:
    failed = await shell.run("run", "shop", "--model", "base", "--min-pass-rate", "0.85")
    assert failed.code == 1, failed.err
    assert "FAIL  pass rate >= 85%: 0.0%" in failed.out
    busy = str(shell.folder / "suites" / "shop" / "busy" / "busy.yaml")
    invalid = await shell.run("run", busy, "--model", "tuned", "--json", "v.json")
    assert invalid.code == 2, invalid.err
    told = json.loads((shell.folder / "v.json").read_text())
    assert (told["gate"], told["infra"], told["verdict"], told["difference"]) == ("invalid", 1, None, None)
    for words, named in (
        (("run", "shopp", "--model", "tuned"), "shop"),
        (("run", "shop", "--model", "nobody"), "nobody"),
        (("run", "shop", "--model", "http://127.0.0.1:9/v1"), "#MODEL"),
        (("run", "shop", "--model", "http://127.0.0.1:9/v1#m"), "can't be reached"),
        (("run", "--model", "tuned"), "SUITE"),
        (("run", "shop", "--model", "tuned", "--trials", "0"), "trials"),
        (("show", "nothing"), "no evaluation"),
        (("cancel", "nothing"), "no evaluation"),
        (("report", "nothing"), "--html"),
    ):
        ran = await shell.run(*words)
        assert ran.code == 2, (words, ran.out)
        assert len(ran.errors) == 1, ran.err
        assert named in ran.errors[0], ran.err


async def test_broken_files_are_named_with_their_line(shell: Shell) -> None:
    path = shell.folder / "mine.yaml"
    for text, place, named in (
        ("schema: 1\nid: x\nkind: happy\nturns: [\n", "mine.yaml:", "YAML"),
        ("schema: 1\nid: x\nkind: happy\nturns:\n  - user: hi\n    expect: [{type: contians_any, value: a}]\n",
         "mine.yaml:6", "contains_any"),
        ("schema: 1\nid: x\nkind: happy\nturns:\n  - user: hi\n    expect: [{type: regex, value: '(a'}]\n",
         "mine.yaml:6", "regular expression"),
        ("schema: 1\nid: x\nkind: happy\nturns:\n  - user: !!python/object:os.system hi\n", "mine.yaml:", ""),
    ):  # fmt: skip
        path.write_text(text)
        ran = await shell.run("run", "mine.yaml", "--model", "tuned", "--check")
        assert ran.code == 2
        assert len(ran.errors) == 1, ran.err
        assert place in ran.err, ran.err
        assert named in ran.err, ran.err
        assert "Traceback" not in ran.err


async def test_an_access_point_can_be_judged_and_compared(shell: Shell, server: str) -> None:
    ran = await shell.run(
        "run", "shop", "--model", "tuned", "--baseline", f"{server}#good", "--json", "v.json", "--latency-turns", "0"
    )
    assert ran.code == 0, ran.err
    told = json.loads((shell.folder / "v.json").read_text())
    assert (told["baseline"], told["verdict"]) == ("good", "better")


async def test_results_can_be_listed_shown_compared_rescored_and_reported(shell: Shell) -> None:
    for model in ("tuned", "base"):
        await shell.run("run", "shop", "--model", model)
    listed = json.loads((await shell.run("list", "--json")).out)
    assert [e["model"] for e in listed] == ["models/base", "models/tuned"]
    newest, first = (e["evaluation"].removeprefix("evaluations/") for e in listed)
    table = await shell.run("list", "--state", "succeeded")
    assert table.out.count("succeeded") == 2
    shown = await shell.run("show", first)
    assert shown.code == 0
    assert "pass rate (95% interval)" in shown.out
    compared = json.loads((await shell.run("compare", first, newest, "--json")).out)
    assert compared["verdict"] == "better"
    assert (await shell.run("rescore", first)).err.startswith("0 verdicts changed")
    assert (await shell.run("report", newest, "--html", "n.html")).code == 0
    assert (shell.folder / "n.html").stat().st_size > 5_000
    assert (await shell.run("cancel", newest)).errors
    again = await shell.run("resume", first)
    assert again.code == 0
    assert "nothing left to play" in again.err
    assert "shop" in (await shell.run("suites")).out


async def test_a_detached_run_is_followed_later(shell: Shell) -> None:
    started = await shell.run("run", "shop", "--model", "tuned", "--detach")
    assert started.code == 0, started.err
    followed = await shell.run("resume", started.out.strip())
    assert followed.code == 0, followed.err
    assert "100.0%" in followed.out


async def test_a_new_scenario_is_valid_as_it_is_written(shell: Shell) -> None:
    assert (await shell.run("new", "late-refund.yaml", "--language", "zh")).code == 0
    made = read_scenario(shell.folder / "late-refund.yaml")
    assert (made.id, made.persona.language) == ("late-refund", "zh")
    assert len(made.turns) == 2
    before = (shell.folder / "late-refund.yaml").read_text()
    refused = await shell.run("new", "late-refund.yaml")
    assert refused.code == 2
    assert "is there already" in refused.errors[0]
    assert (shell.folder / "late-refund.yaml").read_text() == before
    assert (await shell.run("new", "My Suite")).code == 0
    assert len(read_suite(shell.folder / "My Suite").scenarios) == 1
    checked = await shell.run("run", "My Suite", "--model", "tuned", "--check")
    assert checked.code == 0, checked.err


async def test_real_transcripts_become_a_suite(shell: Shell) -> None:
    ran = await shell.run("from-dataset", "shop", "--to", "real", "--count", "4")
    assert ran.code == 0, ran.err
    held = read_suite(shell.folder / "real")
    assert len(held.scenarios) == 4
    assert {s.source["split"] for s in held.scenarios} == {"test"}
    assert (await shell.run("from-dataset", "shop", "--to", "real")).code == 2


async def test_a_break_that_a_tester_found_becomes_a_scenario(shell: Shell) -> None:
    people = shell.mesh.people
    guide = await people.GetTestGuide(v1.GetTestGuideRequest())
    task = guide.tasks[0]
    session = (
        await people.CreateTestSession(
            v1.CreateTestSessionRequest(
                tester="ana", consent_version=guide.consent_version, task=task.id, model="models/tuned"
            )
        )
    ).session
    turn = v1.TestTurn(
        user="refund me now",
        reply=Message(role=Role.ROLE_ASSISTANT, content="You get 50% back, I promise."),
    )
    kept = (await people.RecordTurn(v1.RecordTurnRequest(session=session.name, turn=turn))).turn
    label = v1.HumanLabel(
        subject=kept.name, author="ana", error_classes=["invented_policy"], evidence="50% back", note="It promised."
    )
    defect = (await people.SubmitLabel(v1.SubmitLabelRequest(label=label))).defect
    early = await shell.run("from-label", defect)
    assert early.code == 2
    assert "confirm it first" in early.errors[0]
    confirmed = v1.DefectStatus.DEFECT_STATUS_CONFIRMED
    await people.UpdateDefect(v1.UpdateDefectRequest(name=defect, status=confirmed, author="ben"))
    ran = await shell.run("from-label", defect.removeprefix("defects/"), "--to", "found")
    assert ran.code == 0, ran.err
    made = read_scenario(shell.folder / ran.out.strip())
    assert made.turns[0].user == "refund me now"
