"""The upstream engine against a scripted HTTP server that speaks the OpenAI protocol."""

import asyncio
import json
import time
from contextlib import asynccontextmanager

import pytest
from serving_fakes import until

from chatmill import errors
from chatmill.config import InferenceSettings
from inference_svc.composition import engine_maker
from inference_svc.engines.base import AdapterSpec, BaseSpec
from inference_svc.engines.openai.engine import UpstreamEngine
from inference_svc.engines.openai.parameters import UpstreamParameters
from inference_svc.entries import ModelEntry, ModelKind
from inference_svc.generation import (
    AdapterKey,
    Constraint,
    ConstraintKind,
    Delta,
    Finished,
    FinishReason,
    FunctionCall,
    GenerationRequest,
    Message,
    Overflow,
    Role,
    Sampling,
    Started,
    Tool,
)
from inference_svc.toolcalls import ToolCallParser


class Upstream:
    """An HTTP server that answers each request with the next of its scripts.

    A script is a status, or a list of chunks, of events to wait for, and of `...` for a connection that breaks.
    """

    def __init__(self, tokenizes):
        self.scripts = []
        self.bodies = []
        self.headers = []
        self.gone = asyncio.Event()
        self._tokenizes = tokenizes

    async def handle(self, reader, writer):
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
            body = json.loads(await reader.readexactly(int(headers["content-length"])))
            await self._answer(head[0].split()[1], headers, body, reader, writer)
        finally:
            writer.close()

    async def _answer(self, path, headers, body, reader, writer):
        if path == "/tokenize":
            answer = {"count": len(body["messages"]) * 10} if self._tokenizes else {"error": {"message": "no"}}
            await self._json(writer, 200 if self._tokenizes else 404, answer)
            return
        self.bodies.append(body)
        self.headers.append(headers)
        script = self.scripts.pop(0)
        if isinstance(script, int):
            await self._json(writer, script, {"error": {"message": f"scripted {script}"}})
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        for step in script:
            if step is ...:
                await writer.drain()
                await asyncio.sleep(0.05)
                writer.transport.abort()
                return
            if isinstance(step, asyncio.Event):
                await reader.read()
                self.gone.set()
                return
            writer.write(b"data: " + json.dumps(step).encode() + b"\n\n")
            await writer.drain()
        writer.write(b"data: [DONE]\n\n")
        await writer.drain()

    @staticmethod
    async def _json(writer, status, answer):
        text = json.dumps(answer).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nretry-after: 0.01\r\nconnection: close\r\n"
        writer.write(f"{head}content-length: {len(text)}\r\n\r\n".encode() + text)
        await writer.drain()


def chunk(text=None, finish=None, **delta):
    return {
        "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": 0, "delta": {**({"content": text} if text else {}), **delta}, "finish_reason": finish}],
    }  # fmt: skip


USAGE = {
    "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [],
    "usage": {
        "prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14, "prompt_tokens_details": {"cached_tokens": 4},
    },
}  # fmt: skip
HELLO = [chunk("Hel"), chunk("lo"), chunk(finish="stop"), USAGE]


@asynccontextmanager
async def upstream(tokenizes=True, **parameters):
    script = Upstream(tokenizes)
    server = await asyncio.start_server(script.handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    engine = UpstreamEngine(UpstreamParameters(f"http://127.0.0.1:{port}/v1", "m", **parameters))
    await engine.load_base(BaseSpec("models/far/versions/1"))
    try:
        yield script, engine
    finally:
        await engine.close()
        server.close()


def ask(request_id="r", **values):
    values.setdefault("messages", (Message(Role.USER, "hi"),))
    return GenerationRequest(request_id, **values)


async def events_of(engine, request):
    return [event async for event in await engine.submit(request)]


async def test_a_stream_becomes_events():
    async with upstream() as (script, engine):
        script.scripts = [HELLO]
        events = await events_of(engine, ask(sampling=Sampling(seed=3)))
        assert isinstance(events[0], Started)
        assert "".join(e.text for e in events if isinstance(e, Delta)) == "Hello"
        finished = events[-1]
        assert isinstance(finished, Finished)
        assert finished.finish_reason is FinishReason.END_OF_TURN
        assert (finished.usage.prompt_tokens, finished.usage.cached_prompt_tokens, finished.usage.output_tokens) == (
            9,
            4,
            5,
        )
        assert finished.timing.time_to_first_token_us > 0
        assert finished.seed == 3
        assert "extra_body" not in script.bodies[0]
        assert "top_k" not in script.bodies[0]
        assert engine.load().finished_total == {"end_of_turn": 1}


async def test_everything_asked_for_is_said():
    async with upstream(key_file="") as (script, engine):
        script.scripts = [HELLO]
        call = FunctionCall("find", '{"id": 1}', "c1")
        request = ask(
            messages=(
                Message(Role.SYSTEM, "s"), Message(Role.USER, "u"), Message(Role.ASSISTANT, "", (call,)),
                Message(Role.TOOL, "t", tool_call_id="c1"),
            ),
            tools=(Tool("find", "finds", {"type": "object"}),),
            sampling=Sampling(
                max_output_tokens=7, temperature=0.0, top_k=5, min_p=0.1, stop_sequences=("x",), seed=2,
                presence_penalty=0.5, min_output_tokens=2, include_stop=True, logprobs=2,
            ),
            constraint=Constraint(ConstraintKind.JSON_SCHEMA, '{"type": "object"}'),
        )  # fmt: skip
        await events_of(engine, request)
        body = script.bodies[0]
        assert body["messages"][2]["tool_calls"][0]["function"] == {"name": "find", "arguments": '{"id": 1}'}
        assert body["messages"][3]["tool_call_id"] == "c1"
        expected = {
            "max_tokens": 7, "temperature": 0.0, "top_k": 5, "min_p": 0.1, "stop": ["x"], "seed": 2, "min_tokens": 2,
            "presence_penalty": 0.5, "include_stop_str_in_output": True, "logprobs": True, "top_logprobs": 2,
        }  # fmt: skip
        assert {k: body[k] for k in expected} == expected
        assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
        assert body["tools"][0]["function"]["name"] == "find"


async def test_tool_calls_in_pieces_become_one_call():
    piece = {"index": 0, "id": "c1", "type": "function", "function": {"name": "transfer_to_human", "arguments": ""}}
    more = [{"index": 0, "function": {"arguments": a}} for a in ('{"rea', 'son": "angry"}')]
    calls = [chunk(tool_calls=[p]) for p in (piece, *more)]
    async with upstream() as (script, engine):
        script.scripts = [[chunk("Sorry."), *calls, chunk(finish="tool_calls"), USAGE]]
        events = await events_of(engine, ask())
        parser = ToolCallParser()
        items = parser.feed("".join(e.text for e in events if isinstance(e, Delta))) + parser.finish()
        assert items[0] == "Sorry."
        assert items[1].reason == "angry"


async def test_retries_come_before_the_first_token_only():
    async with upstream(retries=2) as (script, engine):
        script.scripts = [503, 429, HELLO]
        assert isinstance((await events_of(engine, ask()))[-1], Finished)
        script.scripts = [[chunk("Hel"), ...], HELLO]
        with pytest.raises(errors.Aborted, match="again"):
            await events_of(engine, ask())
        assert len(script.scripts) == 1


@pytest.mark.parametrize(
    ("status", "error", "reason"),
    [
        (400, errors.InvalidArgument, "INVALID_ARGUMENT"),
        (401, errors.FailedPrecondition, "UPSTREAM_REFUSED"),
        (404, errors.FailedPrecondition, "UPSTREAM_REFUSED"),
        (429, errors.ResourceExhausted, "UPSTREAM_OVERLOADED"),
        (500, errors.Unavailable, "UPSTREAM_FAILED"),
    ],
)
async def test_statuses_become_errors(status, error, reason):
    async with upstream(retries=0) as (script, engine):
        script.scripts = [status]
        with pytest.raises(error, match=f"scripted {status}|refuses") as caught:
            await events_of(engine, ask())
        assert caught.value.reason == reason
        assert engine.load().running == 0


async def test_nobody_there():
    engine = UpstreamEngine(UpstreamParameters("http://127.0.0.1:9/v1", "m", retries=0))
    await engine.load_base(BaseSpec("x"))
    with pytest.raises(errors.Unavailable, match=r"can't be reached: .*[^.]\.$"):
        await events_of(engine, ask())
    await engine.close()


async def test_cancel_and_deadline_close_the_stream():
    async with upstream() as (script, engine):
        script.scripts = [[chunk("a"), asyncio.Event()], [chunk("a"), asyncio.Event()]]
        generation = await engine.submit(ask())
        await anext(generation)
        assert engine.load().running == 1
        generation.cancel()
        assert [e async for e in generation][-1].finish_reason is FinishReason.CANCELLED
        await asyncio.wait_for(script.gone.wait(), 5)
        await until(lambda: engine.load().running == 0)
        at_once = await engine.submit(ask())
        at_once.cancel()
        assert [e async for e in at_once][-1].finish_reason is FinishReason.CANCELLED
        events = await events_of(engine, ask(deadline=time.monotonic() + 0.1))
        assert events[-1].finish_reason is FinishReason.TIME_LIMIT


async def test_drain_ends_what_runs():
    async with upstream() as (script, engine):
        script.scripts = [[chunk("a"), asyncio.Event()]]
        generation = await engine.submit(ask())
        await anext(generation)
        await engine.drain(0.01)
        assert [e async for e in generation][-1].finish_reason is FinishReason.ENGINE_ABORTED
        with pytest.raises(errors.Unavailable):
            await engine.submit(ask())


async def test_what_an_access_point_can_not_do():
    async with upstream() as (_, engine):
        for request, field in (
            (ask(messages=(), text="x"), "messages"),
            (ask(adapter=AdapterKey("a")), "adapter"),
            (ask(constraint=Constraint(ConstraintKind.REGEX, "a")), "constraint"),
            (ask(constraint=Constraint(ConstraintKind.JSON_SCHEMA, "{")), "constraint.json_schema"),
            (ask(overflow=Overflow.TRUNCATE_OLDEST), "overflow"),
        ):
            with pytest.raises(errors.InvalidArgument) as refused:
                await engine.submit(request)
            assert [v.field for v in refused.value.violations] == [field]
        with pytest.raises(errors.FailedPrecondition, match="adapter"):
            await engine.load_adapter(AdapterSpec(AdapterKey("a"), None))


async def test_tokens_are_counted_where_the_access_point_can():
    async with upstream() as (_, engine):
        assert await engine.count_tokens((Message(Role.USER, "hi"),)) == 10
    async with upstream(tokenizes=False) as (_, engine):
        with pytest.raises(errors.FailedPrecondition, match="can't count"):
            await engine.count_tokens((Message(Role.USER, "hi"),))


async def test_the_key_comes_from_a_file(tmp_path):
    path = tmp_path / "key"
    path.write_text("sk-secret\n")
    async with upstream(key_file=str(path)) as (script, engine):
        script.scripts = [HELLO]
        await events_of(engine, ask())
        assert script.headers[0]["authorization"] == "Bearer sk-secret"
    engine = UpstreamEngine(UpstreamParameters("http://x/v1", "m", key_file=str(tmp_path / "none")))
    with pytest.raises(errors.FailedPrecondition, match="remote_key_file"):
        await engine.load_base(BaseSpec("x"))
    for wrong in ({"base_url": "ftp://x", "model": "m"}, {"base_url": "http://x", "model": ""}):
        with pytest.raises(ValueError, match="must"):
            UpstreamParameters(**wrong)


@pytest.mark.parametrize("content", ["alice:sk-secret\nbob:sk-other\n", "sk-\u00e9\u4f60", "", "\n"])
async def test_what_is_no_key_is_neither_sent_nor_quoted(tmp_path, content):
    path = tmp_path / "key"
    path.write_text(content, encoding="utf-8")
    engine = UpstreamEngine(UpstreamParameters("http://127.0.0.1:9/v1", "m", key_file=str(path)))
    with pytest.raises(errors.FailedPrecondition, match="one line of ASCII") as caught:
        await engine.load_base(BaseSpec("x"))
    assert "sk-" not in str(caught.value)


def test_only_the_named_hosts_get_the_key(tmp_path):
    settings = InferenceSettings(
        remote_key_file=tmp_path / "key", remote_trusted_hosts=("api.example.com", "10.0.0.7:8000")
    )
    make = engine_maker(settings)

    def key_for(url):
        _, engine = make(ModelEntry("models/far/versions/1", "1", ModelKind.REMOTE, base_url=url, remote_name="m"))
        return engine._parameters.key_file

    for url in ("https://api.example.com/v1", "https://API.example.com:8443/v1", "http://10.0.0.7:8000/v1"):
        assert key_for(url) == str(tmp_path / "key")
    for url in (
        "http://evil.example/v1", "http://api.example.com.evil.example/v1", "http://10.0.0.7/v1",
        "http://10.0.0.7:8001/v1", "http://evil.example/api.example.com",
    ):  # fmt: skip
        assert not key_for(url)
    with pytest.raises(ValueError, match="remote_trusted_hosts must name the hosts"):
        InferenceSettings(remote_key_file=tmp_path / "key")


@pytest.mark.parametrize(
    "url",
    [
        "http://", "http://[::bad/v1", "http://h:99999/v1", "http://h:0/v1", "http://h/v1\r\nX: y", "http://h /v1",
        "http://user:sekret@h/v1", "http://h/v1?api_key=sekret", "http://h/v1#sekret", "http://h/" + "x" * 2000, "h/v1",
    ],
)  # fmt: skip
def test_urls_that_no_request_can_be_sent_to(url):
    with pytest.raises(ValueError, match="base_url") as caught:
        UpstreamParameters(url, "m")
    assert "sekret" not in str(caught.value)
