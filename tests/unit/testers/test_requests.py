"""What comes to the page over HTTP from somebody else than its own script: refused with a notice, never a failure."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
pytest.importorskip("gradio", reason="the testers' page is not installed: pip install 'chatmill[ui]'")

from .conftest import meshed, page_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
QUEUE = "/test/gradio_api/queue"


@dataclass
class Caller:
    """Somebody who speaks the protocol of the page's queue.

    Attributes:
        web: a client of the page.
        config: what the page says of its components and events.
    """

    web: httpx.AsyncClient
    config: dict[str, Any]

    def event(self, element: str, name: str) -> int:
        """The id of what happens on an event of an element of the page; `` is the page itself."""
        named = {part["id"]: part["props"].get("elem_id") or "" for part in self.config["components"]}
        (found,) = (
            made["id"]
            for made in self.config["dependencies"]
            for target, event in made["targets"]
            if (named.get(target, ""), event) == (element, name)
        )
        return int(found)

    async def call(self, event: int, *data: Any, event_data: Any = None) -> list[dict[str, Any]]:
        """All messages of one event."""
        body = {"fn_index": event, "data": data, "event_data": event_data, "session_hash": "s"}
        joined = await self.web.post(
            f"{QUEUE}/join", content=json.dumps(body), headers={"content-type": "application/json"}
        )
        assert joined.status_code == 200, joined.text
        messages = []
        async with self.web.stream("GET", f"{QUEUE}/data", params={"session_hash": "s"}) as stream:
            async for line in stream.aiter_lines():
                if line.startswith("data:"):
                    messages.append(json.loads(line[5:]))
                    if messages[-1]["msg"] == "process_completed":
                        break
        return messages


@pytest.fixture
async def caller(tmp_path: Path) -> AsyncIterator[Caller]:
    async with meshed(tmp_path / "home") as mesh:
        bridge = replace(mesh.config.bridge, patience_seconds=2.0)
        async with (
            page_of(replace(mesh.config, bridge=bridge)) as url,
            httpx.AsyncClient(base_url=url, timeout=60) as web,
        ):
            found = Caller(web, (await web.get("/test/config")).json())
            yield found


def notices(messages: list[dict[str, Any]]) -> list[str]:
    return [message["log"] for message in messages if message["msg"] == "log"]


def succeeded(messages: list[dict[str, Any]]) -> bool:
    return bool(messages[-1]["success"])


def changed(messages: list[dict[str, Any]]) -> list[Any]:
    """What any output was given, beside nothing."""
    given = [part for message in messages for part in (message.get("output") or {}).get("data", [])]
    nothing = {"__type__": "update"}
    return [part for part in given if part not in (None, nothing, {**nothing, "props": nothing})]


@pytest.fixture
def quiet(capfd: Any, caplog: pytest.LogCaptureFixture) -> Any:
    """Asserts that nothing was told as a failure of the program."""

    def check() -> None:
        told = capfd.readouterr()
        assert "Traceback" not in told.err + told.out, told.err
        assert [record.getMessage() for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []

    return check


async def test_what_is_refused_is_a_notice_and_no_failure(caller: Caller, quiet: Any) -> None:
    assert succeeded(await caller.call(caller.event("", "load"), None))
    begin = caller.event("begin", "click")
    told = await caller.call(begin, "kim", "chat", "everyday", "", False, None, "en")
    assert notices(told) == ["Please tick the box first."]
    assert (succeeded(told), changed(told)) == (True, [])
    told = await caller.call(begin, "k@x.y", "chat", "everyday", "", True, None, "en")
    assert "tester" in "".join(notices(told))
    assert (succeeded(told), changed(told)) == (True, [])
    told = await caller.call(caller.event("vote-left", "click"), False, None, "en")
    assert "did not work" in "".join(notices(told))
    assert (succeeded(told), changed(told)) == (True, [])
    told = await caller.call(caller.event("send", "click"), "x" * 8001, None, "en")
    assert "8000" in "".join(notices(told)), "a stream, too"
    assert succeeded(told)
    quiet()


async def test_what_the_page_never_sends_is_refused_like_any_bad_input(caller: Caller, quiet: Any) -> None:
    load, begin, send = caller.event("", "load"), caller.event("begin", "click"), caller.event("send", "click")
    for saved in ("text", {"language": [], "session": 5, "tester": "\ud800"}, ["a"], None):
        assert succeeded(await caller.call(load, saved))
    for name in (["a"], 5, "\ud800"):
        told = await caller.call(begin, name, "chat", "everyday", "", True, {}, "en")
        assert succeeded(told), told
        assert notices(told), name
        assert changed(told) == []
    assert notices(await caller.call(begin, None, None, None, None, None, None, None)) == ["Please tick the box first."]
    assert succeeded(await caller.call(begin, "kim", "chat", "everyday", "models/shop/versions/1", True, None, "en"))
    told = await caller.call(send, None, None, None)
    assert (succeeded(told), changed(told)) == (True, [])
    for clicked in (*({"index": index} for index in ("x", [], None, [9, 0], 1.5)), {}, None, "x"):
        told = await caller.call(caller.event("chat", "select"), None, "en", event_data=clicked)
        assert (succeeded(told), changed(told)) == (True, [])
        assert succeeded(await caller.call(caller.event("chat", "like"), None, "en", event_data=clicked))
    told = await caller.call(caller.event("defect-status", "input"), None, None, None, None, None)
    assert (succeeded(told), bool(notices(told)), changed(told)) == (True, True, [])
    for element, event, inputs in (
        ("retry", "click", 2),
        ("finish", "click", 9),
        ("sessions", "input", 3),
        ("note", "blur", 4),
    ):
        told = await caller.call(caller.event(element, event), *[None] * inputs)
        assert succeeded(told), element
    quiet()


async def test_a_value_that_a_component_cannot_hold_is_told_and_no_stack_is_kept(caller: Caller, quiet: Any) -> None:
    assert succeeded(await caller.call(caller.event("", "load"), None))
    for element, event, data in (
        ("begin", "click", ["kim", "nothing", "everyday", "", True, None, "en"]),
        ("begin", "click", ["kim", "chat", ["a"], "", True, None, "en"]),
        ("errors", "input", [None, None, None, "en"]),
        ("errors", "input", [None, None, 5, "en"]),
    ):
        told = await caller.call(caller.event(element, event), *data)
        assert "can't be right" in told[-1]["output"]["error"]
    quiet()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("queue/join", '{"fn_index":9999,"data":[],"session_hash":"a"}'),
        ("cancel", '{"fn_index":1e400,"data":[]}'),
        ("reset", '{"fn_index":1e400,"data":[]}'),
        ("run/predict", '{"fn_index":1e400,"data":[]}'),
        ("call/0", '{"fn_index":1e400,"data":[]}'),
    ],
)
async def test_a_malformed_request_gets_400_and_a_line(path: str, body: str, caller: Caller, quiet: Any) -> None:
    answer = await caller.web.post(
        f"/test/gradio_api/{path}", content=body, headers={"content-type": "application/json"}
    )
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()
    quiet()


async def test_another_sites_page_can_neither_read_nor_click(caller: Caller) -> None:
    body = json.dumps({"fn_index": caller.event("", "load"), "data": [None], "session_hash": "s"})
    evil, json_type = "http://evil.example", {"content-type": "application/json"}
    for headers in ({"host": "evil.example"}, {"host": "evil.example", "origin": evil}, {"origin": evil}):
        for answer in (
            await caller.web.get("/test/config", headers=headers),
            await caller.web.post(f"{QUEUE}/join", content=body, headers={**headers, **json_type}),
            await caller.web.post(f"{QUEUE}/join", content=body, headers={**headers, "content-type": "text/plain"}),
            await caller.web.options(f"{QUEUE}/join", headers={**headers, "access-control-request-method": "POST"}),
        ):
            assert answer.status_code == 403
            assert "bridge.hosts" in answer.text
            assert "access-control-allow-origin" not in answer.headers
            assert "content-security-policy" in answer.headers
    own = str(caller.web.base_url).rstrip("/")
    assert (
        await caller.web.post(f"{QUEUE}/join", content=body, headers={"origin": own, **json_type})
    ).status_code == 200
