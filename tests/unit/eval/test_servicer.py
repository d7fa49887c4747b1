"""The service over gRPC: real servers for the mesh around it, a scripted model behind the inference contract."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from chatmill.common.v1 import JobState, Message, Role, ToolCall
from chatmill.dataset import v1 as dataset_v1
from chatmill.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from chatmill.eval import v1
from chatmill.factory import v1 as factory_v1
from chatmill.inference import v1 as inference_v1
from chatmill.runtime.server import Service
from chatmill.runtime.testing import local_config, running
from eval_svc.__main__ import build

SCENARIO = """\
schema: 1
id: {id}
kind: {kind}
persona: {{language: en}}
memory: {{facts: ["The customer is Ana."]}}
turns:
  - user: "{user}"
    expect: [{{type: contains_any, value: "{value}"}}]
{final}
"""


class Registry(factory_v1.RegistryServiceServicer):
    """Two models, and the scores that are written into them."""

    def __init__(self) -> None:
        self.records: list[Any] = []

    async def GetModel(self, request: Any, context: Any) -> Any:
        name = request.name.removeprefix("models/").split("/")[0]
        if name not in ("tuned", "base"):
            raise NotFound(f"no model {request.name}")
        return factory_v1.GetModelResponse(
            model=factory_v1.Model(name=f"models/{name}/versions/1", revision=f"sha256:{name}")
        )

    async def RecordEvaluation(self, request: Any, context: Any) -> Any:
        self.records.append(request)
        return factory_v1.RecordEvaluationResponse()


class Inference(inference_v1.InferenceServiceServicer):
    """Answers by rules; `base` knows nothing."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    async def ListServedModels(self, request: Any, context: Any) -> Any:
        return inference_v1.ListServedModelsResponse()

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request.spec)
        user = request.spec.messages[-1].content
        events: list[Any] = [{"started": inference_v1.Started(prompt_tokens=12)}]
        finish = inference_v1.FinishReason.FINISH_REASON_END_OF_TURN
        if "busy" in user:
            raise ResourceExhausted("the queue is full", retry_after=0.01)
        if "complaint" in user and "tuned" in request.spec.model:
            call = ToolCall(id="0", name="transfer_to_human", arguments_json='{"reason": "complaint"}')
            events.append({"handoff": inference_v1.Handoff(reason="complaint", tool_call=call)})
            finish = inference_v1.FinishReason.FINISH_REASON_TOOL_CALLS
        else:
            text = "Hello Ana, 30 days." if "tuned" in request.spec.model else "xx"
            events.append({"delta": inference_v1.Delta(text=text[:4], character_offset=0)})
            events.append({"delta": inference_v1.Delta(text=text[4:], character_offset=4)})
        usage = inference_v1.Usage(prompt_tokens=12, output_tokens=5)
        events.append({"finished": inference_v1.Finished(finish_reason=finish, usage=usage)})
        for i, event in enumerate(events):
            yield inference_v1.GenerateResponse(event=inference_v1.GenerationEvent(sequence=i, **event))


class Datasets(dataset_v1.DatasetServiceServicer):
    """Held-back conversations."""

    async def StreamItems(self, request: Any, context: Any) -> AsyncIterator[Any]:
        if request.dataset != "datasets/shop":
            raise NotFound(f"no dataset {request.dataset}")
        assert request.split == dataset_v1.Split.SPLIT_TEST
        said = [
            (Role.ROLE_USER, "How long can I return it?"),
            (Role.ROLE_ASSISTANT, "Hello Ana, 30 days!"),
            (Role.ROLE_USER, "This is a complaint!"),
            (Role.ROLE_ASSISTANT, "I am sorry to hear that."),
        ]
        for i in range(request.start_index, 8):
            item = dataset_v1.Item(
                name=f"datasets/shop/items/c{i}",
                index=i,
                messages=[Message(role=role, content=text) for role, text in said],
                human_intervention_idx=3,
                language="en",
            )
            yield dataset_v1.StreamItemsResponse(items=[item])


class Mesh:
    """The four services as far as an evaluation needs them."""

    def __init__(self, stub: Any, registry: Registry, inference: Inference) -> None:
        self.stub, self.registry, self.inference = stub, registry, inference

    async def run(self, **spec: Any) -> tuple[Any, list[Any]]:
        spec = {"candidate": model("tuned"), **spec}
        request = v1.RunEvaluationRequest(spec=v1.EvaluationSpec(**spec))
        events = [response async for response in self.stub.RunEvaluation(request)]
        assert events[-1].event.HasField("finished")
        return events[-1].event.finished, events


def model(name: str) -> v1.Target:
    return v1.Target(model=f"models/{name}")


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    suites = tmp_path / "suites" / "shop"
    suites.mkdir(parents=True)
    handed = "final: {outcome: handoff}"
    texts = {
        f"r{i}": SCENARIO.format(id=f"r{i}", kind="happy", user=f"return {i}?", value="30", final="") for i in range(7)
    }
    texts["h"] = SCENARIO.format(id="h", kind="handoff", user="a complaint", value="x", final=handed)
    texts["h"] = texts["h"].replace('    expect: [{type: contains_any, value: "x"}]\n', "")
    for name, text in texts.items():
        (suites / f"{name}.yaml").write_text(text)
    (suites / "suite.yaml").write_text('schema: 1\nid: shop\nversion: 1\ntitle: Shop\nscenarios: ["*.yaml"]\n')
    (suites / "busy").mkdir()
    busy = SCENARIO.format(id="busy", kind="happy", user="busy", value="30", final="")
    (suites / "busy" / "busy.yaml").write_text(busy)
    registry, inference = Registry(), Inference()
    config = local_config(tmp_path / "home")
    add_inference = inference_v1.add_InferenceServiceServicer_to_server
    async with (
        running(Service("factory", [(factory_v1.add_RegistryServiceServicer_to_server, registry)]), config) as one,
        running(Service("inference", [(add_inference, inference)]), config) as two,
        running(Service("dataset", [(dataset_v1.add_DatasetServiceServicer_to_server, Datasets())]), config) as three,
    ):
        peers = {"factory": one, "inference": two, "dataset": three}
        targets = {f"mesh.peers.{name}": harness.running.target for name, harness in peers.items()}
        mine = local_config(tmp_path / "home", {"eval.suite_roots": str(tmp_path), **targets})
        async with running(await build(mine), mine) as evaluation:
            yield Mesh(v1.EvalServiceStub(evaluation.channel), registry, inference)


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
    long = next(r for r in mesh.inference.requests if len(r.messages) == 3)
    assert [m.role for m in long.messages] == [Role.ROLE_USER, Role.ROLE_ASSISTANT, Role.ROLE_USER]
    assert long.messages[1].content == "Hello Ana, 30 days!", "the real history, not the model's own"


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
