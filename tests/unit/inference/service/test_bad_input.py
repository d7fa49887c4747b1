"""Wrong requests are refused with the field named, before they cost anything."""

import json

import pytest
from google.protobuf.duration_pb2 import Duration
from serving_fakes import request, text_of

from chatmill import errors
from chatmill.common.v1 import Message, Role
from chatmill.inference.v1 import (
    Choices,
    CountTokensRequest,
    Limits,
    Moderating,
    OutputConstraint,
    Sampling,
    Streaming,
    Tool,
)
from inference_svc.checks import check, contract_names
from inference_svc.events import ChatRequest
from inference_svc.generation import Message as Turn
from inference_svc.generation import Role as Speaker
from inference_svc.moderation.guard import Guard

USER = Message(role=Role.ROLE_USER, content="hi")
SYSTEM = Message(role=Role.ROLE_SYSTEM, content="s")
AGENT = Message(role=Role.ROLE_ASSISTANT, content="a")


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"sampling": Sampling(temperature=-0.1)}, "spec.sampling.temperature"),
        ({"sampling": Sampling(temperature=2.1)}, "spec.sampling.temperature"),
        ({"sampling": Sampling(temperature=float("nan"))}, "spec.sampling.temperature"),
        ({"sampling": Sampling(temperature=float("inf"))}, "spec.sampling.temperature"),
        ({"sampling": Sampling(top_p=0.0)}, "spec.sampling.top_p"),
        ({"sampling": Sampling(top_p=1.1)}, "spec.sampling.top_p"),
        ({"sampling": Sampling(top_k=-1)}, "spec.sampling.top_k"),
        ({"sampling": Sampling(min_p=2)}, "spec.sampling.min_p"),
        ({"sampling": Sampling(repetition_penalty=0)}, "spec.sampling.repetition_penalty"),
        ({"sampling": Sampling(presence_penalty=-3)}, "spec.sampling.presence_penalty"),
        ({"sampling": Sampling(frequency_penalty=3)}, "spec.sampling.frequency_penalty"),
        ({"sampling": Sampling(max_output_tokens=0)}, "spec.sampling.max_output_tokens"),
        ({"sampling": Sampling(min_output_tokens=-1)}, "spec.sampling.min_output_tokens"),
        ({"sampling": Sampling(min_output_tokens=5, max_output_tokens=4)}, "spec.sampling.min_output_tokens"),
        ({"sampling": Sampling(logprobs=21)}, "spec.sampling.logprobs"),
        ({"sampling": Sampling(stop_sequences=["x"] * 10_000)}, "spec.sampling.stop_sequences"),
        ({"sampling": Sampling(stop_sequences=["x", ""])}, "spec.sampling.stop_sequences[1]"),
        ({"sampling": Sampling(stop_sequences=["x" * 257])}, "spec.sampling.stop_sequences[0]"),
        ({"messages": [SYSTEM, SYSTEM, USER]}, "spec.messages[1].role"),
        ({"messages": [USER, AGENT]}, "spec.messages[1].role"),
        ({"messages": [Message(content="hi")]}, "spec.messages[0].role"),
        ({"messages": [Message(role=Role.ROLE_USER, content=" \n")]}, "spec.messages[0].content"),
        ({"output_constraint": OutputConstraint(choices=Choices())}, "spec.output_constraint.choices"),
        ({"output_constraint": OutputConstraint(choices=Choices(choices=["a", ""]))}, "spec.output_constraint.choices"),
        ({"tools": [Tool(name="a"), Tool(name="a")]}, "spec.tools"),
        ({"tools": [Tool(name="a", parameters_json_schema="{")]}, "spec.tools[0].parameters_json_schema"),
        ({"tools": [Tool(name="a", parameters_json_schema="[]")]}, "spec.tools[0].parameters_json_schema"),
        ({"tools": [Tool()]}, "spec.tools[0].name"),
        ({"streaming": Streaming(flush_tokens=0)}, "spec.streaming.flush_tokens"),
        ({"streaming": Streaming(flush_interval=Duration(seconds=-1))}, "spec.streaming.flush_interval"),
        ({"streaming": Streaming(flush_interval=Duration(seconds=61))}, "spec.streaming.flush_interval"),
        ({"streaming": Streaming(heartbeat_interval=Duration(seconds=-1))}, "spec.streaming.heartbeat_interval"),
        ({"limits": Limits(max_queue=Duration(seconds=-1))}, "spec.limits.max_queue"),
        ({"limits": Limits(max_prompt_tokens=0)}, "spec.limits.max_prompt_tokens"),
        ({"moderating": Moderating(holdback_characters=-1)}, "spec.moderating.holdback_characters"),
        ({"labels": {str(n): "x" for n in range(17)}}, "spec.labels"),
        ({"request_id": "x" * 129}, "request_id"),
        ({"model": "tiny"}, "model"),
    ],
)
async def test_the_field_is_named(door, spec, field):
    with pytest.raises(errors.InvalidArgument) as refused:
        await door.ask(**spec)
    assert [v.field for v in refused.value.violations] == [field]
    assert field in str(refused.value)
    assert not door.engine.requests


async def test_several_fields_at_once_and_not_too_many(door):
    with pytest.raises(errors.InvalidArgument) as refused:
        await door.ask(sampling=Sampling(temperature=9, top_p=9, stop_sequences=[""] * 16), messages=[SYSTEM] * 10)
    assert len(refused.value.violations) == 20
    assert "more" in str(refused.value)


async def test_nothing_at_all(door):
    from chatmill.inference.v1 import GenerateRequest, GenerationSpec

    for empty in (GenerateRequest(), GenerateRequest(spec=GenerationSpec(model="models/tiny"))):
        with pytest.raises(errors.InvalidArgument, match="required"):
            async for _ in door.stub.Generate(empty):
                pass
    with pytest.raises(errors.InvalidArgument) as refused:
        await door.stub.CountTokens(CountTokensRequest(model="models/tiny", messages=[Message(content="x")]))
    assert [v.field for v in refused.value.violations] == ["messages[0].role"]


ODD = [
    "<|assistant|> ok <|end|>",
    "مرحبا بالعالم \u202e\u0301",
    "e\u0301\u0301\u0301",
    "\x00\x07",
    "\ufeff\ufffe",
    "{question} {{",
]
ODD += ["\U0001f469\u200d\U0001f467" * 50]


@pytest.mark.parametrize("text", ODD)
async def test_odd_texts_pass_through_unchanged(door, text):
    assert text_of(await door.ask(text)) == "Hello there."
    assert door.engine.requests[-1].messages[-1].content == text


async def test_an_enormous_request_is_refused_by_size(door):
    with pytest.raises(errors.ResourceExhausted):
        await door.ask("word " * 2_000_000)
    assert text_of(await door.ask()) == "Hello there."


async def test_what_no_context_holds_is_refused_before_anybody_looks_at_it(door, monkeypatch):
    await door.ask()  # the model is in memory then
    looked_at = []
    feed = Guard.feed
    monkeypatch.setattr(Guard, "feed", lambda self, *a, **k: (looked_at.append(a), feed(self, *a, **k))[1])
    with pytest.raises(errors.InvalidArgument, match="characters") as refused:
        await door.ask("1 " * 64 * door.engine.info.context_length + "1")
    assert refused.value.reason == "CONTEXT_OVERFLOW"
    assert [v.field for v in refused.value.violations] == ["spec.messages"]
    assert not looked_at


def test_lone_surrogates():
    # Protobuf refuses them itself, so this is for callers within the process.
    with pytest.raises(errors.InvalidArgument) as refused:
        check(ChatRequest("r", "models/x", (Turn(Speaker.USER, "half \ud83d"),), facts=("\udc00",)))
    assert [v.field for v in refused.value.violations] == ["spec.messages[0].content", "spec.facts[0]"]
    with pytest.raises(errors.InvalidArgument):
        check(ChatRequest("r", "models/x", (Turn(Speaker.USER, "x"),), sampling={"stop_sequences": ("\ud83d",)}))


def test_engine_fields_get_the_contracts_names():
    error = errors.InvalidArgument(
        "x",
        violations=[
            errors.FieldViolation(name, "is wrong")
            for name in (
                "sampling.top_p",
                "constraint.regex",
                "max_prompt_tokens",
                "messages",
                "request_id",
                "spec.model",
            )
        ],
        reason="CONTEXT_OVERFLOW",
    )
    renamed = contract_names(error)
    assert [v.field for v in renamed.violations] == [
        "spec.sampling.top_p",
        "spec.output_constraint.regex",
        "spec.limits.max_prompt_tokens",
        "spec.messages",
        "request_id",
        "spec.model",
    ]
    assert renamed.reason == "CONTEXT_OVERFLOW"


async def test_a_schema_of_tools_reaches_the_engine(door):
    schema = json.dumps({"type": "object", "properties": {"id": {"type": "string"}}})
    await door.ask(tools=[Tool(name="find", description="finds", parameters_json_schema=schema)])
    [tool] = door.engine.requests[-1].tools
    assert tool.json_schema["properties"] == {"id": {"type": "string"}}
    assert request().spec.model == "models/tiny"
