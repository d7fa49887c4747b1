"""The OpenAI-compatible target against a real server on this machine that behaves well and badly."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from chatmill.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unavailable
from eval_svc.keys import Keys
from eval_svc.openai_target import OpenAiTarget, split_calls
from eval_svc.spec import TargetSpec
from eval_svc.target import MAX_REPLY_CHARS, TurnRequest
from eval_svc.transcript import Message

NONE = Keys(Path("/nowhere"))

HEAD = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def chunk(**delta: Any) -> str:
    finish = delta.pop("finish", None)
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    body = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}
    return f"data: {json.dumps(body)}\n\n"


def usage() -> str:
    body = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": []}
    body["usage"] = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return f"data: {json.dumps(body)}\n\ndata: [DONE]\n\n"


def refuse(status: str, headers: str = "", message: str = "no") -> str:
    body = json.dumps({"error": {"message": message}})
    return f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{headers}Content-Length: {len(body)}\r\n\r\n{body}"


CALL = [{"index": 0, "id": "c", "type": "function", "function": {"name": "transfer_to_human", "arguments": '{"rea'}}]
REST = [{"index": 0, "function": {"arguments": 'son": "complaint"}'}}]
BEHAVIOURS = {
    "good": HEAD + chunk(role="assistant", content="Hello ") + chunk(content="there.") + chunk(finish="stop") + usage(),
    "call": HEAD + chunk(tool_calls=CALL) + chunk(tool_calls=REST) + chunk(finish="tool_calls") + usage(),
    "cut": HEAD + chunk(content="Hello ") + chunk(finish="length") + usage(),
    "judge-yes": HEAD + chunk(content='It says 30.\n{"verdict": "yes"}') + chunk(finish="stop") + usage(),
    "judge-no": HEAD + chunk(content='It lacks it.\n{"verdict": "no"}') + chunk(finish="stop") + usage(),
    "broken": HEAD + chunk(content="Hello "),
    "rubbish": HEAD + "data: {not json}\n\n",
    "busy": refuse("429 Too Many Requests", "Retry-After: 2\r\n"),
    "key": refuse("401 Unauthorized"),
    "away": refuse("503 Service Unavailable"),
    "error": refuse("500 Internal Server Error"),
    "empty": HEAD + chunk(finish="stop") + usage(),
}


@pytest.fixture
async def server() -> AsyncIterator[str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if request.startswith(b"GET"):
            writer.write(refuse("404 Not Found").encode())
        else:
            length = int(
                next(h for h in request.split(b"\r\n") if h.lower().startswith(b"content-length")).split(b":")[1]
            )
            model = json.loads(await reader.readexactly(length))["model"]
            if model == "hang":
                await asyncio.sleep(30)
            elif model == "flood":
                writer.write(HEAD.encode())
                for _ in range(500):
                    writer.write(chunk(content="word " * 2000).encode())
            elif model == "echo":
                said = next(h for h in request.decode().split("\r\n") if h.lower().startswith("authorization"))
                writer.write(refuse("401 Unauthorized", message=said).encode())
            else:
                writer.write(BEHAVIOURS[model].encode())
        try:
            await writer.drain()
            writer.close()
        except OSError:
            pass

    served = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{served.sockets[0].getsockname()[1]}/v1"
    served.close()


def request(timeout_s: float = 20.0) -> TurnRequest:
    return TurnRequest("c", "Be kind.", ("Likes tea.",), (Message("user", "hi"),), 1, 32, 0.0, timeout_s)


async def ask(server: str, model: str, timeout_s: float = 20.0) -> Any:
    return await OpenAiTarget.open(TargetSpec(model, server), NONE).reply(request(timeout_s))


async def test_a_good_reply_with_its_times_and_tokens(server: str) -> None:
    reply = await ask(server, "good")
    assert (reply.text, reply.finish_reason, reply.failure) == ("Hello there.", "stop", None)
    assert (reply.tokens_in, reply.tokens_out) == (7, 3)
    assert 0 < reply.first_token_ms <= reply.total_ms


async def test_a_call_in_pieces_is_a_handover(server: str) -> None:
    reply = await ask(server, "call")
    assert reply.handed_over
    assert reply.handoff_reason == "complaint"


@pytest.mark.parametrize(
    ("model", "kind", "infra"),
    [
        ("broken", "stream_broken", False),
        ("rubbish", "stream_broken", False),
        ("error", "stream_broken", False),
        ("busy", "rate_limited", True),
        ("key", "unauthenticated", True),
        ("away", "unreachable", True),
    ],
)
async def test_whose_fault_it_is(server: str, model: str, kind: str, infra: bool) -> None:
    reply = await ask(server, model)
    assert reply.failure is not None
    assert (reply.failure.kind, reply.failure.infra) == (kind, infra), reply.failure
    if model == "busy":
        assert reply.failure.retry_after_s == 2
    if model == "broken":
        assert reply.text == "Hello "


async def test_an_endpoint_that_hangs_times_out(server: str) -> None:
    reply = await ask(server, "hang", 0.3)
    assert reply.failure.kind == "timeout"
    assert not reply.failure.infra


async def test_an_endless_reply_is_cut(server: str) -> None:
    reply = await ask(server, "flood")
    assert reply.failure.kind == "oversized"
    assert len(reply.text) == MAX_REPLY_CHARS


async def test_nobody_there() -> None:
    target = OpenAiTarget.open(TargetSpec("m", "http://127.0.0.1:9/v1"), NONE)
    assert (await target.reply(request())).failure.kind == "unreachable"
    with pytest.raises(Unavailable, match="can't be reached"):
        await target.describe()


async def test_a_server_that_lists_no_models_is_taken_at_its_word(server: str) -> None:
    info = await OpenAiTarget.open(TargetSpec("good", server), NONE).describe()
    assert (info.model, info.endpoint, info.priced_as) == ("good", "openai", "")


def test_only_web_addresses_are_access_points() -> None:
    with pytest.raises(InvalidArgument, match="http://"):
        OpenAiTarget.open(TargetSpec("m", "file:///etc/passwd"), NONE)


def key_of(name: str, root: Path, url: str = "http://x/v1") -> str:
    return OpenAiTarget.open(TargetSpec("m", url, name), Keys(root, ("x", "10.0.0.7:8000"))).client.api_key


def test_a_key_is_named_by_its_path_or_its_name_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-secret\n")
    (tmp_path / "alias").symlink_to("key")
    for name in ("key", "alias", str(tmp_path / "key")):
        assert key_of(name, tmp_path) == "sk-secret"
    with pytest.raises(NotFound):
        key_of("none", tmp_path)


def test_keys_go_to_named_hosts_alone(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-secret\n")
    for url in ("https://X/v1", "http://x:81/v1", "http://10.0.0.7:8000/v1"):
        assert key_of("key", tmp_path, url) == "sk-secret"
    for url in ("http://evil.example/v1", "http://x.evil.example/v1", "http://10.0.0.7/v1", "http://10.0.0.7:8001/x"):
        with pytest.raises(PermissionDenied, match=r"eval\.trusted_hosts"):
            key_of("key", tmp_path, url)
    with pytest.raises(InvalidArgument, match=r"openai\.base_url: must hold no user") as error:
        key_of("key", tmp_path, "http://me:hunter2@x/v1")
    assert "hunter2" not in error.value.message


def test_nothing_outside_the_folder_is_a_key_and_nobody_learns_what_is_there(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    (tmp_path / "outside").write_text("hunter2")
    (keys / "link").symlink_to(tmp_path / "outside")
    for name in ("../outside", "../nothing", str(tmp_path / "outside"), "link", "/etc/hostname", "."):
        with pytest.raises(PermissionDenied, match=r"eval\.key_root"):
            key_of(name, keys)
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises((InvalidArgument, NotFound, PermissionDenied)):
            key_of(name, keys)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"alice:hunter2\nbob:hunter2\n", "other characters"),
        ("hunter2-schl\u00fcssel".encode(), "other characters"),
        (b"hunter2 and more", "other characters"),
        (b"\n", "is empty"),
        (b"hunter2" * 1000, "larger than 4096"),
    ],
)
def test_what_is_no_key_is_refused_unquoted(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(FailedPrecondition, match=told) as error:
        key_of("key", tmp_path)
    assert "hunter2" not in error.value.message
    assert str(tmp_path / "key") in error.value.message


def test_a_pipe_or_a_folder_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FailedPrecondition, match="no regular file"):
        key_of("pipe", tmp_path)
    with pytest.raises(NotFound, match="Is a directory"):
        key_of("folder", tmp_path)


async def test_a_server_that_quotes_the_key_tells_nobody(server: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hunter2")
    target = OpenAiTarget.open(TargetSpec("echo", server, "key"), Keys(tmp_path, ("127.0.0.1",)))
    failure = (await target.reply(request())).failure
    assert failure.kind == "unauthenticated"
    assert "Bearer ***" in failure.detail
    assert "hunter2" not in failure.detail


def test_calls_written_as_text_are_taken_out() -> None:
    text, calls = split_calls(
        'Sure. <tool_call>{"name": "transfer_to_human", "arguments": {"reason": "x"}}</tool_call>'
    )
    assert text == "Sure."
    assert calls[0].arguments == {"reason": "x"}
    broken = "<tool_call>{not json}</tool_call>"
    assert split_calls(broken) == (broken, [])
