"""A tester at a browser: chats, labels, votes, reloads; what a model writes is text, whatever it writes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
pytest.importorskip("gradio", reason="the testers' page is not installed: pip install 'chatmill[ui]'")
playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed")

from bridge.app import build as build_app  # noqa: E402
from bridge.mesh import Mesh as Stubs  # noqa: E402
from bridge.testers.desk import Desk  # noqa: E402
from chatmill.eval import v1  # noqa: E402

from .conftest import Mesh, meshed  # noqa: E402

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
PATIENCE_MS = 60_000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM}; CHROMIUM names another one"),
]


@dataclass
class Site:
    """A running page, a browser, and the mesh behind them."""

    url: str
    browser: Any
    mesh: Mesh
    desk: Desk

    @asynccontextmanager
    async def visit(self, width: int = 1280, height: int = 900) -> AsyncIterator[Any]:
        """A visitor with storage of their own."""
        context = await self.browser.new_context(viewport={"width": width, "height": height}, locale="en-GB")
        page = await context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        outside: list[str] = []
        page.on("request", lambda request: outside.append(request.url) if not request.url.startswith(self.url) else 0)
        await page.goto(f"{self.url}/test/")
        await page.wait_for_selector("#task label")
        yield page
        assert [url for url in outside if not url.startswith(("data:", "blob:"))] == [], (
            "nothing is fetched from outside"
        )
        await context.close()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    import uvicorn

    async with meshed(tmp_path / "home") as mesh, playwright.async_playwright() as player:
        settings = replace(mesh.config, bridge=replace(mesh.config.bridge, port=0))
        options: dict[str, Any] = {"port": 0, "log_config": None, "timeout_graceful_shutdown": 1}
        server = uvicorn.Server(uvicorn.Config(build_app(settings), **options))
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        browser = await player.chromium.launch(executable_path=str(CHROMIUM), args=SWITCHES)
        stubs = Stubs(mesh.config)
        yield Site(f"http://127.0.0.1:{port}", browser, mesh, Desk(stubs, ()))
        await stubs.close()
        await browser.close()
        server.should_exit = True
        await serving


async def begin(page: Any, name: str, *, battle: bool = False) -> None:
    if battle:
        await page.click("#mode label:nth-of-type(2)")
    await page.fill("#tester input, #tester textarea", name)
    await page.check("#consent input")
    await page.click("#begin")
    await page.wait_for_selector("#entry textarea", state="visible")


async def say(page: Any, words: str, chat: str = "#chat", replies: int = 1) -> None:
    await page.fill("#entry textarea", words)
    await page.click("#send")
    await page.wait_for_function(f"document.querySelectorAll('{chat} .bot').length >= {replies}")
    await page.wait_for_function("!document.querySelector('#entry textarea').disabled")
    await page.wait_for_selector("#send", state="visible")


async def test_a_tester_chats_labels_and_finds_it_all_after_a_reload(site: Site) -> None:
    async with site.visit() as page:
        await begin(page, "ana")
        await say(page, "hello")
        await page.click("#thumb label:nth-of-type(2)")
        await page.wait_for_selector("#label-saved .cm-saved")
        await page.click("#errors label:nth-of-type(5)")
        await page.fill("#note textarea", "not true")
        await page.click("#card")
        await kept(site, "ana", lambda label: label.note == "not true" and bool(label.error_classes))
        await page.reload()
        await page.wait_for_function("document.querySelectorAll('#thumb input:checked').length === 1")
        assert await page.input_value("#note textarea") == "not true"
        assert await page.locator("#errors input:checked").count() == 1
        assert await page.locator("#chat .bot").count() == 1
        (session,) = await site.desk.sessions("ana")
        (label,) = (await site.desk.session(session.name)).labels
        assert label.thumb == v1.Thumb.THUMB_DOWN
        await page.click("#language label:nth-of-type(2)")
        await page.wait_for_function("document.querySelector('#send').innerText.includes('发送')")


async def kept(site: Site, tester: str, holds: Any) -> None:
    """Wait until the mesh has a label that `holds`."""
    async with asyncio.timeout(60):
        while True:
            (session,) = await site.desk.sessions(tester)
            if any(holds(label) for label in (await site.desk.session(session.name)).labels):
                return
            await asyncio.sleep(0.1)


async def test_what_a_model_writes_is_text(site: Site) -> None:
    async with site.visit() as page:
        await begin(page, "ana")
        await say(page, "nasty <i>question</i>")
        shown = await page.inner_text("#chat")
        assert "<script>document.title='hacked'</script>" in shown
        assert "**stars** # head" in shown
        assert "<i>question</i>" in shown
        assert await page.locator("#chat .message :is(img[src=x], b, i, script, h1, strong)").count() == 0
        assert await page.title() == "Chatmill"


async def test_a_blind_vote_tells_the_names(site: Site) -> None:
    async with site.visit() as page:
        await begin(page, "bo", battle=True)
        await say(page, "hello", "#left")
        before = await page.content()
        assert "chatmill-tiny v1" not in before.partition('id="battle"')[2]
        await page.click("#vote-tie")
        await page.wait_for_selector("#reveal .cm-reveal")
        assert "chatmill-tiny v1" in await page.inner_text("#reveal")
        (session,) = await site.desk.sessions("bo")
        assert session.battle.vote == v1.Vote.VOTE_TIE


async def test_a_phone_shows_it_without_scrolling_sideways(site: Site) -> None:
    async with site.visit(390, 844) as page:
        await begin(page, "cy")
        await say(page, "hello")
        assert await page.evaluate("document.documentElement.scrollWidth") <= 390
        box = await page.locator("#send").bounding_box()
        assert box["x"] + box["width"] <= 390
