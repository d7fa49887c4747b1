"""The service over gRPC: real servers for the mesh around it, a scripted model behind the inference contract."""

from __future__ import annotations

import asyncio
import json
import os
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf.duration_pb2 import Duration

from chatmill.common.v1 import JobState, Role
from chatmill.dataset import v1 as dataset_v1
from chatmill.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from chatmill.eval import v1
from chatmill.inference import v1 as inference_v1
from eval_svc.scenario_file import scenario_from_mapping
from eval_svc.target import MAX_REPLY_CHARS

from .small_mesh import PROMPT, SCENARIO, Mesh, model, small_mesh
from .test_openai_target import server as server


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with small_mesh(tmp_path) as made:
        yield made


async def test_a_run_streams_and_ends_with_both_scores(mesh: Mesh) -> None:
    gate = v1.Gate(min_pass_rate=0.85)
    done, events = await mesh.run(
        scenario_suite="suites/shop", baseline=model("base"), gate=gate, system_prompt="You are Mila."
    )
    assert events[0].evaluation.state == JobState.JOB_STATE_QUEUED
    assert [e.event.sequence for e in events[1:]] == list(range(1, len(events)))
    assert done.state == JobState.JOB_STATE_SUCCEEDED
    assert (done.candidate.pass_rate, done.baseline.pass_rate) == (1.0, 0.0)
    assert done.comparison.verdict == v1.Verdict.VERDICT_BETTER
    assert done.gate.state == v1.GateState.GATE_STATE_PASSED
    assert (done.candidate.handover.expected_count, done.candidate.handover.missed_count) == (1, 0)
    assert done.baseline.handover.missed_count == 1
    assert done.candidate.prompt_tokens == 8 * 12
    assert done.candidate.latency.first_token_p50_ms > 0
    trials = [e.event.trial for e in events if e.event.HasField("trial")]
    assert len(trials) == 16
    turn = next(t for t in trials if t.scenario == "r0" and t.side == v1.Side.SIDE_CANDIDATE).turns[0]
    assert turn.reply.content == "Hello Ana, 30 days."
    check = turn.checks[0]
    assert turn.reply.content[check.span_start : check.span_end] == "30"
    asked = mesh.inference.requests[-1]
    assert list(asked.facts) == ["The customer is Ana."]
    assert asked.messages[0].content == "You are Mila."
    assert asked.fallback == inference_v1.Fallback.FALLBACK_FORBID
    assert asked.model.endswith("/versions/1"), "an alias that moves during a run must not change the model"
    record = mesh.registry.records[0]
    assert record.model == "models/tuned/versions/1"
    assert (record.record.verdict, record.record.gate_passed) == ("better", True)


@pytest.mark.parametrize(("candidate", "baseline"), [("tuned", "base"), ("base", "tuned"), ("tuned", "tuned")])
async def test_without_a_prompt_both_sides_are_told_what_the_registry_says(
    mesh: Mesh, candidate: str, baseline: str
) -> None:
    done, _ = await mesh.run(scenario_suite="suites/shop", candidate=model(candidate), baseline=model(baseline))
    told = {(r.model, r.messages[0].role, r.messages[0].content) for r in mesh.inference.requests}
    assert told == {(f"models/{n}/versions/1", Role.ROLE_SYSTEM, PROMPT) for n in (candidate, baseline)}
    report = v1.ExportReportRequest(name=done.name, format=v1.REPORT_FORMAT_HTML)
    assert PROMPT in b"".join([piece.content async for piece in mesh.stub.ExportReport(report)]).decode()


async def test_a_prompt_of_the_models_own_is_found_where_it_leaks(mesh: Mesh, tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(SCENARIO.format(id="one", kind="happy", user="recite", value="30", final=""))
    done, _ = await mesh.run(scenario_suite=str(path), latency_turns=0)
    assert dict(done.candidate.errors) == {"prompt_leak": 1}
    assert done.candidate.critical_count == 1


async def test_replay_compares_with_what_the_agent_really_said(mesh: Mesh) -> None:
    suite = v1.ReplaySuite(dataset="datasets/shop", max_conversations=5)
    done, _ = await mesh.run(replay_suite=suite, baseline=model("base"))
    assert done.suite == "replay-shop"
    assert done.candidate.scenario_count == 10
    assert done.candidate.pass_rate == 1.0
    assert 94 < done.candidate.mean_ratio < 100
    assert done.candidate.exact_rate == 0.0
    assert done.candidate.handover.expected_count == 5
    assert done.candidate.handover.missed_count == 0
    assert done.baseline.pass_rate == 0.0
    long = next(r for r in mesh.inference.requests if len(r.messages) == 4)
    roles = [Role.ROLE_SYSTEM, Role.ROLE_USER, Role.ROLE_ASSISTANT, Role.ROLE_USER]
    assert [m.role for m in long.messages] == roles
    assert long.messages[2].content == "Hello Ana, 30 days!", "the real history, not the model's own"


async def test_reports_in_three_forms(mesh: Mesh) -> None:
    done, _ = await mesh.run(scenario_suite="suites/shop", baseline=model("base"))

    async def report(form: Any) -> bytes:
        request = v1.ExportReportRequest(name=done.name, format=form)
        return b"".join([piece.content async for piece in mesh.stub.ExportReport(request)])

    html = (await report(v1.REPORT_FORMAT_HTML)).decode()
    assert "Hello Ana" in html
    assert html.rstrip().endswith("</html>")
    root = ET.fromstring(await report(v1.REPORT_FORMAT_JUNIT))
    assert len(root.findall(".//testcase")) == 16
    assert len(root.findall(".//failure")) == 8
    rows = [json.loads(line) for line in (await report(v1.REPORT_FORMAT_JSONL)).splitlines()]
    assert len(rows) == 16
    assert rows[0]["turns"][0]["user"]
    with pytest.raises(InvalidArgument, match="format"):
        await report(99)


async def test_lists_get_and_compare(mesh: Mesh) -> None:
    first, _ = await mesh.run(scenario_suite="suites/shop")
    second, _ = await mesh.run(scenario_suite="suites/shop", candidate=model("base"))
    page = await mesh.stub.ListEvaluations(v1.ListEvaluationsRequest(page_size=1))
    assert [e.name for e in page.evaluations] == [second.name]
    rest = await mesh.stub.ListEvaluations(v1.ListEvaluationsRequest(page_size=1, page_token=page.next_page_token))
    assert [e.name for e in rest.evaluations] == [first.name]
    assert rest.next_page_token == ""
    with pytest.raises(InvalidArgument, match="page_token"):
        await mesh.stub.ListEvaluations(v1.ListEvaluationsRequest(page_token="rubbish"))
    got = await mesh.stub.GetEvaluation(v1.GetEvaluationRequest(name=first.name))
    assert got.evaluation.candidate.pass_rate == 1.0
    request = v1.CompareEvaluationsRequest(candidate=first.name, baseline=second.name)
    compared = await mesh.stub.CompareEvaluations(request)
    assert compared.comparison.difference == 1.0
    rescored = await mesh.stub.Rescore(v1.RescoreRequest(name=first.name))
    assert rescored.changed_count == 0
    suites = (await mesh.stub.ListSuites(v1.ListSuitesRequest())).suites
    assert next(s for s in suites if s.name == "suites/shop").scenario_count == 8


async def test_refusals_are_clear(mesh: Mesh, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="did you mean 'shop'"):
        await mesh.run(scenario_suite="suites/shopp")
    with pytest.raises(NotFound, match="nobody"):
        await mesh.run(scenario_suite="suites/shop", candidate=model("nobody"))
    with pytest.raises(NotFound, match="no dataset"):
        await mesh.run(replay_suite=v1.ReplaySuite(dataset="datasets/none"))
    with pytest.raises(InvalidArgument, match=r"spec\.suite"):
        await mesh.run()
    with pytest.raises(InvalidArgument, match=r"spec\.candidate"):
        await mesh.run(scenario_suite="suites/shop", candidate=v1.Target())
    with pytest.raises(NotFound, match="ListEvaluations"):
        await mesh.stub.GetEvaluation(v1.GetEvaluationRequest(name="evaluations/none"))
    with pytest.raises(InvalidArgument, match="evaluations/"):
        await mesh.stub.GetEvaluation(v1.GetEvaluationRequest(name="runs/1"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("schema: 1\nid: x\nkind: happy\nturns:\n  - {user: hi, expekt: []}\n")
    with pytest.raises(InvalidArgument, match=r"broken\.yaml:5"):
        await mesh.run(scenario_suite=str(broken))


@pytest.mark.parametrize("name", ["x" * 20_000, "a\0b", "a/" * 3000])
async def test_a_suite_that_can_be_no_path_is_refused(mesh: Mesh, name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"spec\.scenario_suite") as error:
        await mesh.run(scenario_suite=name)
    assert len(error.value.message) < 200


@pytest.mark.parametrize("state", [99, -1])
async def test_an_unknown_state_is_refused_and_not_taken_for_all(mesh: Mesh, state: Any) -> None:
    with pytest.raises(InvalidArgument, match=f"state: has an unknown value {state}; known: queued"):
        await mesh.stub.ListEvaluations(v1.ListEvaluationsRequest(state=state))


@pytest.mark.parametrize("name", ["", "tuned", "models"])
async def test_a_name_that_is_no_models_is_told_of_the_field_that_it_came_from(mesh: Mesh, name: str) -> None:
    other, suite = v1.Target(model=name), "suites/shop"
    for field in ("candidate", "baseline", "customer"):
        with pytest.raises(InvalidArgument, match=rf"^spec\.{field}\.model: "):
            await mesh.run(scenario_suite=suite, **{field: other})
    with pytest.raises(InvalidArgument, match=r"^spec\.judge\.target\.model: "):
        await mesh.run(scenario_suite=suite, judge=v1.JudgeSpec(target=other))
    guide = await mesh.people.GetTestGuide(v1.GetTestGuideRequest())
    asked = {"tester": "kim", "consent_version": guide.consent_version, "task": "everyday"}
    wanted = name or "tuned"
    with pytest.raises(InvalidArgument, match=r"^model: ") as error:
        await mesh.people.CreateTestSession(v1.CreateTestSessionRequest(**asked, model=wanted))
    assert [v.field for v in error.value.violations] == ["model"]
    for first, second, field in ((wanted, "models/base", "first_model"), ("models/base", wanted, "second_model")):
        battle = v1.CreateBattleRequest(**asked, first_model=first, second_model=second)
        with pytest.raises(InvalidArgument, match=f"^{field}: "):
            await mesh.people.CreateBattle(battle)


async def test_a_pipe_as_a_suite_is_refused_and_holds_nobody_up(mesh: Mesh, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "suites" / "shop" / "more").mkdir()
    os.mkfifo(tmp_path / "suites" / "shop" / "more" / "pipe.yaml")
    (tmp_path / "suites" / "shop" / "suite.yaml").write_text(
        'schema: 1\nid: shop\nversion: 1\nscenarios: ["more/pipe.yaml"]\n'
    )
    async with asyncio.timeout(20):
        for suite in (str(tmp_path / "pipe.yaml"), "suites/shop"):
            with pytest.raises(InvalidArgument, match=r"pipe\.yaml: is a pipe or a device"):
                await mesh.run(scenario_suite=suite)


async def test_a_key_comes_out_of_its_folder_alone(mesh: Mesh, server: str, tmp_path: Path) -> None:
    def there(key_file: str) -> v1.Target:
        endpoint = v1.OpenAiEndpoint(base_url=server, model="good", api_key_file=key_file)
        return v1.Target(openai=endpoint)

    (tmp_path / "secret").write_text("hunter2\n")
    with pytest.raises(PermissionDenied, match=r"eval\.key_root"):
        await mesh.run(scenario_suite="suites/shop", candidate=there(str(tmp_path / "secret")))
    keys = tmp_path / "home" / "keys"
    keys.mkdir()
    (keys / "there").write_text("s3cret\n")
    _, events = await mesh.run(scenario_suite="suites/shop", candidate=there("there"))
    assert [e.event.trial.infra_error for e in events if e.event.HasField("trial")] == [""] * 8


async def test_a_full_queue_is_retried_and_then_infrastructure(mesh: Mesh, tmp_path: Path) -> None:
    done, events = await mesh.run(scenario_suite=str(tmp_path / "suites" / "shop" / "busy" / "busy.yaml"))
    assert done.gate.state == v1.GateState.GATE_STATE_INVALID
    trial = next(e.event.trial for e in events if e.event.HasField("trial"))
    assert trial.infra_error.startswith("RESOURCE_EXHAUSTED")
    assert not trial.scored
    assert sum(1 for r in mesh.inference.requests if r.messages[-1].content == "busy") == 4


async def test_cancelling_what_has_ended_is_refused(mesh: Mesh) -> None:
    done, _ = await mesh.run(scenario_suite="suites/shop")
    with pytest.raises(FailedPrecondition):
        await mesh.stub.CancelEvaluation(v1.CancelEvaluationRequest(name=done.name))
    watched = [
        r.event async for r in mesh.stub.WatchEvaluation(v1.WatchEvaluationRequest(name=done.name, after_sequence=2))
    ]
    assert watched[0].sequence == 3
    assert watched[-1].HasField("finished")


async def test_a_suite_can_be_checked_without_a_run(mesh: Mesh) -> None:
    spec = v1.EvaluationSpec(scenario_suite="suites/shop", candidate=model("base"))
    answers = [r async for r in mesh.stub.RunEvaluation(v1.RunEvaluationRequest(spec=spec, validate_only=True))]
    assert len(answers) == 1
    assert (answers[0].evaluation.name, answers[0].evaluation.suite) == ("", "shop")
    done, _ = await mesh.run(scenario_suite="suites/shop")
    assert answers[0].evaluation.suite_digest == done.suite_digest
    listed = (await mesh.stub.ListEvaluations(v1.ListEvaluationsRequest())).evaluations
    assert [e.name for e in listed] == [done.name]
    spec.scenario_suite = "suites/nowhere"
    with pytest.raises(NotFound):
        [r async for r in mesh.stub.RunEvaluation(v1.RunEvaluationRequest(spec=spec, validate_only=True))]


async def test_replies_are_timed_one_at_a_time_after_the_run(mesh: Mesh) -> None:
    done, _ = await mesh.run(scenario_suite="suites/shop", latency_turns=4, concurrency=8)
    asked = [r.conversation_id for r in mesh.inference.requests]
    assert sum("/latency/" in name for name in asked) == 4
    assert sum("/warm-up/" in name for name in asked) == 2
    assert (done.candidate.latency.concurrency, done.candidate.latency.reply_count) == (1, 4)
    assert done.candidate.latency_under_load.reply_count == 8
    assert done.candidate.latency_under_load.concurrency > 1
    none, _ = await mesh.run(scenario_suite="suites/shop", latency_turns=0)
    assert none.candidate.latency.reply_count == 8
    assert not none.candidate.HasField("latency_under_load")


async def test_scenarios_are_drafted_of_held_back_conversations_alone(mesh: Mesh) -> None:
    request = v1.DraftScenariosRequest(dataset="datasets/shop", max_conversations=3)
    drafts = [d async for d in mesh.stub.DraftScenarios(request)]
    assert len(drafts) == 3
    assert all(d.item.startswith("datasets/shop/items/c") for d in drafts)
    made = scenario_from_mapping(yaml.safe_load(drafts[0].yaml))
    assert (made.kind, made.outcomes, made.source["split"]) == ("handoff", ("handoff",), "test")
    with pytest.raises(NotFound, match="no dataset"):
        [d async for d in mesh.stub.DraftScenarios(v1.DraftScenariosRequest(dataset="datasets/none"))]
    mesh.datasets.split = dataset_v1.Split.SPLIT_TRAIN
    with pytest.raises(FailedPrecondition, match="training row"):
        [d async for d in mesh.stub.DraftScenarios(request)]


async def test_a_run_that_was_given_up_can_be_taken_up_again(mesh: Mesh, tmp_path: Path) -> None:
    path = str(tmp_path / "suites" / "shop" / "busy" / "busy.yaml")
    done, _ = await mesh.run(scenario_suite=path)
    assert done.gate.state == v1.GateState.GATE_STATE_INVALID
    mesh.inference.free = True
    taken = await mesh.stub.ResumeEvaluation(v1.ResumeEvaluationRequest(name=done.name))
    assert taken.evaluation.state in (JobState.JOB_STATE_QUEUED, JobState.JOB_STATE_RUNNING)
    watched = [r.event async for r in mesh.stub.WatchEvaluation(v1.WatchEvaluationRequest(name=done.name))]
    assert [e.sequence for e in watched] == list(range(1, len(watched) + 1))
    assert [e.HasField("finished") for e in watched].count(True) == 1
    again = watched[-1].finished
    assert again.gate.state == v1.GateState.GATE_STATE_PASSED
    assert (again.candidate.pass_rate, again.candidate.infra_count) == (1.0, 0)
    with pytest.raises(FailedPrecondition, match="nothing left"):
        await mesh.stub.ResumeEvaluation(v1.ResumeEvaluationRequest(name=done.name))


async def test_cut_histories_are_counted(mesh: Mesh) -> None:
    mesh.inference.cut = 3
    done, _ = await mesh.run(scenario_suite="suites/shop", latency_turns=0)
    assert done.candidate.cut_history_count == 8


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        ("hang", "timeout"),
        ("silence", "empty"),
        ("flood", "oversized"),
        ("lump", "oversized"),
        ("half", "stream_broken"),
        ("unfinished", "stream_broken"),
    ],
)
async def test_what_a_customer_would_see_is_the_agents_error(
    mesh: Mesh, tmp_path: Path, behaviour: str, error: str
) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(SCENARIO.format(id="one", kind="happy", user=behaviour, value="30", final=""))
    timeout = Duration(seconds=1) if behaviour == "hang" else Duration(seconds=20)
    done, events = await mesh.run(scenario_suite=str(path), turn_timeout=timeout, latency_turns=0)
    assert done.state == JobState.JOB_STATE_SUCCEEDED
    assert (done.candidate.infra_count, done.candidate.pass_rate) == (0, 0.0)
    assert done.candidate.errors[error] == 1
    assert sum(1 for r in mesh.inference.requests if r.messages[-1].content == behaviour) == 1, "no retry"
    trial = next(e.event.trial for e in events if e.event.HasField("trial"))
    assert len(trial.turns[0].reply.content) <= MAX_REPLY_CHARS


async def test_one_bad_endpoint_among_good_replies_is_marked_and_the_rest_counts(mesh: Mesh, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    users = ["busy", "hang", "silence", *(f"return {i}?" for i in range(30))]
    for i, user in enumerate(users):
        text = SCENARIO.format(id=f"m{i}", kind="happy", user=user, value="30", final="")
        (folder / f"m{i}.yaml").write_text(text)
    (folder / "suite.yaml").write_text('schema: 1\nid: mixed\nversion: 1\nscenarios: ["*.yaml"]\n')
    done, _ = await mesh.run(scenario_suite=str(folder), turn_timeout=Duration(seconds=1), latency_turns=0)
    score = done.candidate
    assert (score.infra_count, score.scenario_count) == (1, 32)
    assert score.pass_rate == pytest.approx(30 / 32)
    assert dict(score.errors)["timeout"] == dict(score.errors)["empty"] == 1
    assert done.gate.state == v1.GateState.GATE_STATE_PASSED
    report = v1.ExportReportRequest(name=done.name, format=v1.REPORT_FORMAT_JUNIT)
    junit = b"".join([piece.content async for piece in mesh.stub.ExportReport(report)])
    assert b"infrastructure: RESOURCE_EXHAUSTED" in junit


@pytest.mark.parametrize(
    ("judge", "gates", "passed", "unscored"),
    [
        ("judge-yes", True, 1.0, 0),
        ("judge-no", True, 0.0, 0),
        ("judge-no", False, 1.0, 0),
        ("good", True, 1.0, 1),  # an answer without a verdict
        ("error", True, 1.0, 1),
        ("busy", True, 1.0, 1),
    ],
)
async def test_a_judge_behind_an_access_point(
    mesh: Mesh, server: str, tmp_path: Path, judge: str, gates: bool, passed: float, unscored: int
) -> None:
    path = tmp_path / "judged.yaml"
    final = 'final: {judge: [{id: period, ask: "Does it tell the period?", error: invented_policy}]}'
    path.write_text(SCENARIO.format(id="judged", kind="happy", user="return?", value="30", final=final))
    there = v1.Target(openai=v1.OpenAiEndpoint(base_url=server, model=judge))
    done, events = await mesh.run(scenario_suite=str(path), judge=v1.JudgeSpec(target=there, gates=gates))
    assert (done.candidate.pass_rate, done.candidate.unscored_count) == (passed, unscored)
    trial = next(e.event.trial for e in events if e.event.HasField("trial"))
    check = next(c for c in trial.checks if c.check == "period")
    assert check.gate == ("hard" if gates else "soft")
    assert (done.candidate.errors.get("invented_policy", 0) == 1) is (judge == "judge-no")
