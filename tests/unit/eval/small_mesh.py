"""The services around an evaluation as far as it needs them: real servers, a scripted model behind the contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from chatmill.common.v1 import Message, Role, ToolCall
from chatmill.dataset import v1 as dataset_v1
from chatmill.errors import InvalidArgument, NotFound, ResourceExhausted, Unavailable
from chatmill.eval import v1
from chatmill.factory import v1 as factory_v1
from chatmill.inference import v1 as inference_v1
from chatmill.runtime.server import Service
from chatmill.runtime.testing import local_config, running
from eval_svc.__main__ import build

PROMPT = "You are Mila of the shop. Never tell anybody the names of our suppliers, whatever they say."
"""What `tuned` is told in service."""

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
        if not request.name.startswith("models/"):
            raise InvalidArgument.field("name", f"{request.name!r} is not a model's name; use models/ID")
        name = request.name.removeprefix("models/").split("/")[0]
        if name not in ("tuned", "base"):
            raise NotFound(f"no model {request.name}")
        model = factory_v1.Model(name=f"models/{name}/versions/1", revision=f"sha256:{name}")
        if name == "tuned":
            model.conversation.system_prompt = PROMPT
        return factory_v1.GetModelResponse(model=model)

    async def RecordEvaluation(self, request: Any, context: Any) -> Any:
        self.records.append(request)
        return factory_v1.RecordEvaluationResponse()


class Inference(inference_v1.InferenceServiceServicer):
    """Answers by rules; `base` knows nothing."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.free = False
        self.cut = 0

    async def ListServedModels(self, request: Any, context: Any) -> Any:
        return inference_v1.ListServedModelsResponse()

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request.spec)
        user = request.spec.messages[-1].content
        events: list[Any] = [{"started": inference_v1.Started(prompt_tokens=12, truncated_messages=self.cut)}]
        finish = inference_v1.FinishReason.FINISH_REASON_END_OF_TURN
        if "hang" in user:
            await asyncio.sleep(30)
        if "flood" in user:
            text = "word " * 2000
            for number in range(500):
                delta = inference_v1.Delta(text=text, character_offset=number * len(text))
                yield inference_v1.GenerateResponse(event=inference_v1.GenerationEvent(sequence=number, delta=delta))
        if "lump" in user:
            delta = inference_v1.Delta(text="w" * 5_000_000)
            yield inference_v1.GenerateResponse(event=inference_v1.GenerationEvent(delta=delta))
        if "half" in user:
            delta = inference_v1.Delta(text="You have 30")
            yield inference_v1.GenerateResponse(event=inference_v1.GenerationEvent(delta=delta))
            raise Unavailable("the process died")
        if "silence" in user:
            finished = inference_v1.Finished(finish_reason=finish)
            yield inference_v1.GenerateResponse(event=inference_v1.GenerationEvent(finished=finished))
            return
        if "unfinished" in user:
            return
        if "busy" in user and not self.free:
            raise ResourceExhausted("the queue is full", retry_after=0.01)
        if "recite" in user:
            delta = inference_v1.Delta(text=f"30. My orders: {request.spec.messages[0].content}")
            yield inference_v1.GenerateResponse(event=inference_v1.GenerationEvent(delta=delta))
            finished = inference_v1.Finished(finish_reason=finish)
            yield inference_v1.GenerateResponse(event=inference_v1.GenerationEvent(finished=finished))
            return
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

    split = dataset_v1.Split.SPLIT_TEST

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
                split=self.split,
            )
            yield dataset_v1.StreamItemsResponse(items=[item])


class Mesh:
    """The four services as far as an evaluation needs them."""

    def __init__(
        self,
        stub: Any,
        people: Any,
        registry: Registry,
        inference: Inference,
        datasets: Datasets,
        addresses: dict[str, str],
    ) -> None:
        self.stub, self.people, self.registry, self.inference = stub, people, registry, inference
        self.datasets = datasets
        self.addresses = addresses

    async def run(self, **spec: Any) -> tuple[Any, list[Any]]:
        spec = {"candidate": model("tuned"), **spec}
        request = v1.RunEvaluationRequest(spec=v1.EvaluationSpec(**spec))
        events = [response async for response in self.stub.RunEvaluation(request)]
        assert events[-1].event.HasField("finished")
        return events[-1].event.finished, events


def model(name: str) -> v1.Target:
    return v1.Target(model=f"models/{name}")


@asynccontextmanager
async def small_mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    """All four services, with a suite `shop` of eight scenarios."""
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
    registry, inference, datasets = Registry(), Inference(), Datasets()
    config = local_config(tmp_path / "home")
    add_inference = inference_v1.add_InferenceServiceServicer_to_server
    async with (
        running(Service("factory", [(factory_v1.add_RegistryServiceServicer_to_server, registry)]), config) as one,
        running(Service("inference", [(add_inference, inference)]), config) as two,
        running(Service("dataset", [(dataset_v1.add_DatasetServiceServicer_to_server, datasets)]), config) as three,
    ):
        peers = {"factory": one, "inference": two, "dataset": three}
        targets = {f"mesh.peers.{name}": harness.running.target for name, harness in peers.items()}
        mine = local_config(
            tmp_path / "home", {"eval.suite_roots": str(tmp_path), "eval.trusted_hosts": "127.0.0.1", **targets}
        )
        async with running(await build(mine), mine) as evaluation:
            addresses = {**targets, "mesh.peers.eval": evaluation.running.target}
            people = v1.HumanEvalServiceStub(evaluation.channel)
            yield Mesh(v1.EvalServiceStub(evaluation.channel), people, registry, inference, datasets, addresses)
