"""A judge as a user has one: behind an HTTP server that speaks the OpenAI protocol, named by an option of the run."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chatmill.common.v1 import JobState
from chatmill.eval import v1
from eval_svc import execution

from .small_mesh import SCENARIO, Mesh, small_mesh
from .test_command import Shell
from .test_openai_target import HEAD, chunk, refuse, usage

FINAL = 'policy: [returns]\nfinal: {judge: [{id: period, ask: "Does it tell the period?", error: invented_policy}]}'
JUDGED = SCENARIO.format(id="judged", kind="happy", user="return?", value="30", final=FINAL)


def answer(text: str) -> str:
    return HEAD + chunk(role="assistant", content=text[:9]) + chunk(content=text[9:]) + chunk(finish="stop") + usage()


YES = answer('It says "30 days".\n{"verdict": "yes"}')
NO = answer('The policy says 14.\n{"verdict": "yes"} would be wrong.\n{"verdict": "no"}')
UNSURE = answer('Nothing is said of it.\n{"verdict": "cannot_assess"}')
GARBAGE = answer("As a large language model I like this dialogue a lot.")
BUSY = refuse("429 Too Many Requests", "Retry-After: 1\r\n")
PLAYED: dict[str, list[str]] = {
    "yes": [YES],
    "no": [YES, NO, YES],
    "unsure": [UNSURE],
    "garbage": [GARBAGE],
    "garbage-first": [GARBAGE, YES],
    "busy-first": [BUSY, YES],
}
"""What a judge of that name says, call by call; the last answer stays."""


@dataclass
class JudgeServer:
    """The server, and what it was asked."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET"):
            listed = json.dumps({"object": "list", "data": [{"id": n, "object": "model"} for n in (*PLAYED, "hang")]})
            kind = "Content-Type: application/json\r\nConnection: close\r\n"
            writer.write(f"HTTP/1.1 200 OK\r\n{kind}Content-Length: {len(listed)}\r\n\r\n{listed}".encode())
        else:
            length = next(h for h in head.lower().split(b"\r\n") if h.startswith(b"content-length")).split(b":")[1]
            body = json.loads(await reader.readexactly(int(length)))
            self.bodies.append(body)
            self.times.append(time.monotonic())
            name, number = body["model"], self.asked[body["model"]]
            self.asked[name] += 1
            if name == "hang":
                await reader.read()  # until the other side has had enough
            else:
                writer.write(PLAYED[name][min(number, len(PLAYED[name]) - 1)].encode())
        writer.close()


@pytest.fixture
async def judge() -> AsyncIterator[JudgeServer]:
    made = JudgeServer()
    served = await asyncio.start_server(made, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{served.sockets[0].getsockname()[1]}/v1"
    yield made
    served.close()


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    (tmp_path / "judged.yaml").write_text(JUDGED)
    async with small_mesh(tmp_path) as made:
        yield made


@pytest.mark.parametrize(
    ("name", "calls", "passed", "verdict", "told"),
    [
        ("yes", 3, 1.0, v1.CHECK_VERDICT_PASS, "3 yes"),
        ("no", 3, 0.0, v1.CHECK_VERDICT_FAIL, "2 yes, 1 no"),
        ("unsure", 3, 1.0, v1.CHECK_VERDICT_UNSCORED, "could not assess"),
        ("garbage", 6, 1.0, v1.CHECK_VERDICT_UNSCORED, "hold no verdict"),
        ("garbage-first", 4, 1.0, v1.CHECK_VERDICT_PASS, "3 yes"),
        ("busy-first", 4, 1.0, v1.CHECK_VERDICT_PASS, "3 yes"),
        ("hang", 1, 1.0, v1.CHECK_VERDICT_UNSCORED, "the judge failed: DEADLINE_EXCEEDED"),
    ],
)
async def test_every_way_in_which_a_judge_answers(
    mesh: Mesh,
    judge: JudgeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    calls: int,
    passed: float,
    verdict: Any,
    told: str,
) -> None:
    monkeypatch.setattr(
        execution, "TargetJudge", partial(execution.TargetJudge, timeout_s=1.0 if name == "hang" else 60)
    )
    there = v1.Target(openai=v1.OpenAiEndpoint(base_url=judge.url, model=name))
    done, events = await mesh.run(
        scenario_suite=str(tmp_path / "judged.yaml"),
        judge=v1.JudgeSpec(target=there, gates=True),
        policies={"returns": "Goods can be returned within 30 days."},
        latency_turns=0,
    )
    assert done.state == JobState.JOB_STATE_SUCCEEDED
    unscored = verdict == v1.CHECK_VERDICT_UNSCORED
    assert (done.candidate.pass_rate, done.candidate.unscored_count) == (passed, int(unscored))
    assert done.candidate.infra_count == 0, "a judge's trouble loses no dialogue"
    trial = next(e.event.trial for e in events if e.event.HasField("trial"))
    check = next(c for c in trial.checks if c.check == "period")
    assert (check.verdict, check.gate) == (verdict, "hard")
    assert told in check.evidence
    assert len(judge.bodies) == calls
    assert len({body["seed"] for body in judge.bodies}) == (3 if name == "busy-first" else calls), "a vote, a seed"
    if name == "busy-first":
        assert judge.times[1] - judge.times[0] >= 1, "it is asked again when it said"


@pytest.mark.slow
async def test_a_judge_by_the_options_of_the_command(mesh: Mesh, judge: JudgeServer, tmp_path: Path) -> None:
    card = "schema: 1\nname: Mila\ncompany: Shop\npurpose: Helps.\nsystem_prompt: You are Mila.\npolicies:\n"
    (tmp_path / "agent.yaml").write_text(card + '  - {id: returns, text: "Back within 30 days."}\n')
    common = ("run", "judged.yaml", "--model", "tuned", "--agent", "agent.yaml", "--json", "v.json")
    common = (*common, "--latency-turns", "0")
    shell = Shell(mesh, tmp_path)
    for name, gates, code in (("yes", True, 0), ("no", True, 1), ("no", False, 0)):
        judge.bodies.clear()
        judge.asked.clear()
        ran = await shell.run(*common, "--judge", f"{judge.url}#{name}", *(("--judge-gates",) if gates else ()))
        assert ran.code == code, ran.err
        assert json.loads((tmp_path / "v.json").read_text())["unscored"] == 0
        for body in judge.bodies:
            (message,) = body["messages"]
            assert message["role"] == "user"
            for part in ("Back within 30 days.", "CUSTOMER: return?", "AGENT: Hello Ana, 30 days.", "tell the period?"):
                assert part in message["content"]
            assert (body["model"], body["temperature"]) == (name, 0)
            assert "tools" not in body, "a judge has nobody to hand over to"
        assert len(judge.bodies) == 3
    unknown = await shell.run(*common, "--judge", f"{judge.url}#nobody")
    assert unknown.code == 2
    assert "has no model 'nobody'" in unknown.errors[0]
