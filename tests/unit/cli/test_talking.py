"""Commands that talk to services, here to ones in memory: chat, models, datasets."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chatmill.cli import chat, datasets, models
from chatmill.cli.console import stderr
from chatmill.common.v1 import Message, Role, ToolCall
from chatmill.dataset import v1 as dataset_v1
from chatmill.errors import NotFound
from chatmill.factory import v1 as factory_v1
from chatmill.inference import v1 as inference_v1
from chatmill.recipe.mesh import Mesh, connected
from chatmill.runtime.server import Service
from chatmill.runtime.testing import local_config, running


class Inference(inference_v1.InferenceServiceServicer):
    """Says what it was told to say."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.script: list[Any] = []
        self.wait_before_end: asyncio.Event | None = None

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        if request.spec.model != "models/shop":
            raise NotFound(f"no model {request.spec.model}")
        for sequence, event in enumerate(self.script):
            event.sequence = sequence
            yield inference_v1.GenerateResponse(event=event)
        if self.wait_before_end is not None:
            await self.wait_before_end.wait()
        served = inference_v1.ServedBy(model="models/shop/versions/2", engine="rows", quantization="nf4")
        finished = inference_v1.Finished(
            usage=inference_v1.Usage(output_tokens=3),
            timing=inference_v1.Timing(first_token_us=21_000, decode_us=10_000),
            served_by=served,
        )
        event = inference_v1.GenerationEvent(sequence=len(self.script), finished=finished)
        yield inference_v1.GenerateResponse(event=event)


class Registry(factory_v1.RegistryServiceServicer):
    """One model."""

    def __init__(self) -> None:
        self.model = factory_v1.Model(
            name="models/shop/versions/2",
            kind=factory_v1.ModelKind.MODEL_KIND_ADAPTER,
            base="models/chatmill-tiny/versions/1",
            aliases=["live"],
            parameter_count=120_000,
            evaluations=[
                factory_v1.EvaluationRecord(
                    evaluation="evaluations/1",
                    suite="shop",
                    pass_rate=0.9,
                    pass_rate_low=0.8,
                    pass_rate_high=0.95,
                    verdict="better",
                    gate_passed=True,
                )
            ],
        )
        self.model.training.method = "lora"
        self.model.training.parameters.update({"rank": 8, "learning_rate": 0.0002})
        self.asked: list[Any] = []

    async def ListModels(self, request: Any, context: Any) -> Any:
        return factory_v1.ListModelsResponse(models=[self.model])

    async def GetModel(self, request: Any, context: Any) -> Any:
        if request.name not in ("models/shop", self.model.name):
            raise NotFound(f"no model {request.name}")
        return factory_v1.GetModelResponse(model=self.model)

    async def SetAlias(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        return factory_v1.SetAliasResponse(model=self.model, previous="models/shop/versions/1")


class Datasets(dataset_v1.DatasetServiceServicer):
    """One dataset."""

    dataset = dataset_v1.Dataset(
        name="datasets/shop",
        dataset_class="shop",
        source="/data/talks.jsonl",
        splits=[dataset_v1.SplitSize(split=dataset_v1.Split.SPLIT_TRAIN, item_count=1234)],
        drops=[dataset_v1.DropCount(step="duplicates", reason="seen before", count=7)],
    )

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def ListDatasets(self, request: Any, context: Any) -> Any:
        return dataset_v1.ListDatasetsResponse(datasets=[self.dataset])

    async def GetDataset(self, request: Any, context: Any) -> Any:
        if request.name != self.dataset.name:
            raise NotFound(f"no {request.name}")
        return dataset_v1.GetDatasetResponse(dataset=self.dataset)

    async def GetStatistics(self, request: Any, context: Any) -> Any:
        statistics = dataset_v1.Statistics(item_count=1234, handover_count=77)
        statistics.turns.mean = 12.5
        statistics.languages.add(value="zh", count=300)
        return dataset_v1.GetStatisticsResponse(statistics=statistics)

    async def StreamItems(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.asked.append(request)
        item = dataset_v1.Item(
            name="datasets/shop/items/a",
            messages=[
                Message(role=Role.ROLE_USER, content="I want [my] money back!"),
                Message(role=Role.ROLE_ASSISTANT, content="A colleague will help."),
            ],
            facts=["Customer: Ana."],
            human_intervention_idx=1,
            human_intervention_reason="complaint",
            split=dataset_v1.Split.SPLIT_TEST,
            language="en",
        )
        yield dataset_v1.StreamItemsResponse(items=[item])


class Fakes:
    """The three of them."""

    def __init__(self) -> None:
        self.inference, self.registry, self.datasets = Inference(), Registry(), Datasets()

    @asynccontextmanager
    async def mesh(self, home: Path) -> AsyncIterator[Mesh]:
        config = local_config(home)
        services = [
            Service("inference", [(inference_v1.add_InferenceServiceServicer_to_server, self.inference)]),
            Service("factory", [(factory_v1.add_RegistryServiceServicer_to_server, self.registry)]),
            Service("dataset", [(dataset_v1.add_DatasetServiceServicer_to_server, self.datasets)]),
        ]
        async with (
            running(services[0], config) as a,
            running(services[1], config) as b,
            running(services[2], config) as c,
        ):
            peers = replace(
                config.mesh.peers, inference=a.channel.target, factory=b.channel.target, dataset=c.channel.target
            )
            at = replace(config, mesh=replace(config.mesh, peers=peers))
            async with connected(at, services=("inference", "factory", "dataset")) as mesh:
                yield mesh


@pytest.fixture
def fakes() -> Fakes:
    return Fakes()


@pytest.fixture
async def mesh(fakes: Fakes, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with fakes.mesh(tmp_path) as made:
        yield made


def parsed(module: Any, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    module.configure(parser)
    return parser.parse_args(words)


def event(**kind: Any) -> Any:
    return inference_v1.GenerationEvent(**kind)


def delta(text: str) -> Any:
    return event(delta=inference_v1.Delta(text=text))


async def test_chat_streams_and_remembers(fakes: Fakes, mesh: Mesh, capsys: pytest.CaptureFixture[str]) -> None:
    fakes.inference.script = [delta("Hel"), delta("lo.")]
    arguments = parsed(chat, "shop", "--system", "Be kind.", "--fact", "Customer: Ana.", "--temperature", "0")
    conversation = chat.Conversation(arguments, mesh, stderr())
    await conversation.say("Hi")
    await conversation.say("And again")
    shown = capsys.readouterr()
    assert shown.out == "Hello.\nHello.\n"
    assert "3 tokens, first after 21 ms, 300 tokens/s, models/shop/versions/2 (rows engine, nf4)" in shown.err
    spec = fakes.inference.requests[1].spec
    assert [(m.role, m.content) for m in spec.messages] == [
        (Role.ROLE_SYSTEM, "Be kind."),
        (Role.ROLE_USER, "Hi"),
        (Role.ROLE_ASSISTANT, "Hello."),
        (Role.ROLE_USER, "And again"),
    ]
    assert list(spec.facts) == ["Customer: Ana."]
    assert spec.sampling.HasField("temperature")
    assert not spec.sampling.HasField("seed")
    conversation.begin()
    await conversation.say("New")
    assert len(fakes.inference.requests[2].spec.messages) == 2


async def test_chat_shows_a_handover_and_keeps_its_call(
    fakes: Fakes, mesh: Mesh, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ToolCall(id="1", name="transfer_to_human", arguments_json='{"reason": "complaint"}')
    fakes.inference.script = [
        delta("One moment."),
        event(handoff=inference_v1.Handoff(reason="complaint", tool_call=call)),
    ]
    conversation = chat.Conversation(parsed(chat, "shop"), mesh, stderr())
    await conversation.say("I am angry")
    assert "[handed over to a person: complaint]" in capsys.readouterr().err
    await conversation.say("Hello?")
    reply = fakes.inference.requests[1].spec.messages[1]
    assert [c.name for c in reply.tool_calls] == ["transfer_to_human"]


async def test_chat_takes_back_what_was_withdrawn(fakes: Fakes, mesh: Mesh, capsys: pytest.CaptureFixture[str]) -> None:
    withdrawn = inference_v1.Retracted(from_character_offset=5, reason="word_list")
    fakes.inference.script = [delta("Good badword"), event(retracted=withdrawn), delta("day.")]
    conversation = chat.Conversation(parsed(chat, "shop"), mesh, stderr())
    await conversation.say("Hi")
    shown = capsys.readouterr()
    assert shown.out.endswith("Good day.\n")
    assert "[withdrawn: word_list]" in shown.err
    await conversation.say("Again")
    assert fakes.inference.requests[1].spec.messages[1].content == "Good day."


async def test_a_failed_message_is_taken_back(fakes: Fakes, mesh: Mesh) -> None:
    conversation = chat.Conversation(parsed(chat, "models/nobody"), mesh, stderr())
    with pytest.raises(NotFound):
        await conversation.say("Hi")
    conversation.model = "models/shop"
    await conversation.say("Hi again")
    assert [m.content for m in fakes.inference.requests[1].spec.messages] == ["Hi again"]


async def test_a_reply_can_be_cut_off_and_the_chat_goes_on(
    fakes: Fakes, mesh: Mesh, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes.inference.script = [delta("This takes a")]
    fakes.inference.wait_before_end = asyncio.Event()
    conversation = chat.Conversation(parsed(chat, "shop"), mesh, stderr())
    assert not conversation.cut_off()
    saying = asyncio.create_task(conversation.say("Hi"))
    out = ""
    while "takes" not in out:
        await asyncio.sleep(0.01)
        out += capsys.readouterr().out
    assert conversation.cut_off()
    await asyncio.wait_for(saying, 5)
    assert "[cut off]" in capsys.readouterr().err
    fakes.inference.wait_before_end.set()
    await conversation.say("Go on")
    assert fakes.inference.requests[1].spec.messages[1].content == "This takes a"


async def test_models_are_listed_with_their_scores(mesh: Mesh, capsys: pytest.CaptureFixture[str]) -> None:
    await models._list(parsed(models), mesh)
    line = capsys.readouterr().out.splitlines()[1]
    for cell in ("models/shop/versions/2", "adapter", "90.0% (80 to 95)", "better", "live"):
        assert cell in line
    await models._list(parsed(models, "list", "--json"), mesh)
    assert json.loads(capsys.readouterr().out)[0]["parameter_count"] == "120000"


async def test_a_model_is_shown_with_how_it_was_made(mesh: Mesh, capsys: pytest.CaptureFixture[str]) -> None:
    await models._show(parsed(models, "show", "shop"), mesh)
    shown = capsys.readouterr().out
    assert "learning_rate 0.0002, rank 8" in shown
    assert "evaluations/1" in shown
    with pytest.raises(NotFound):
        await models._show(parsed(models, "show", "nobody"), mesh)


async def test_an_alias_is_set(fakes: Fakes, mesh: Mesh, capsys: pytest.CaptureFixture[str]) -> None:
    await models._alias(parsed(models, "alias", "set", "live", "shop", "--reason", "better"), mesh)
    asked = fakes.registry.asked[0]
    assert (asked.model, asked.alias, asked.reason) == ("models/shop/versions/2", "live", "better")
    assert capsys.readouterr().out == "live -> models/shop/versions/2 (before: models/shop/versions/1)\n"


async def test_datasets_are_listed_shown_and_measured(mesh: Mesh, capsys: pytest.CaptureFixture[str]) -> None:
    await datasets._list(parsed(datasets), mesh)
    assert "1,234" in capsys.readouterr().out
    await datasets._show(parsed(datasets, "show", "shop"), mesh)
    assert "7: seen before (duplicates)" in capsys.readouterr().out
    await datasets._stats(parsed(datasets, "stats", "shop"), mesh)
    shown = capsys.readouterr().out
    assert "12.5" in shown
    assert "zh 300" in shown
    assert "77" in shown


async def test_items_read_like_conversations(fakes: Fakes, mesh: Mesh, capsys: pytest.CaptureFixture[str]) -> None:
    await datasets._items(
        parsed(datasets, "items", "shop", "--split", "test", "--language", "en", "--limit", "1"), mesh
    )
    shown = capsys.readouterr().out
    assert "customer I want [my] money back!" in shown
    assert "<- a person should take over: complaint" in shown
    assert "facts: Customer: Ana." in shown
    asked = fakes.datasets.asked[0]
    assert (asked.split, list(asked.languages), asked.limit) == (dataset_v1.Split.SPLIT_TEST, ["en"], 1)
