"""A tester's hands on the page: open it, begin, say something, go to a tab."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
PATIENCE_MS = 60_000
TABS = ("test", "history", "queue", "results")
PHONE = (390, 844)


@asynccontextmanager
async def chromium() -> AsyncIterator[Any]:
    """A headless browser."""
    from playwright.async_api import async_playwright

    async with async_playwright() as player:
        browser = await player.chromium.launch(executable_path=str(CHROMIUM), args=SWITCHES)
        yield browser
        await browser.close()


@asynccontextmanager
async def visiting(
    browser: Any, url: str, size: tuple[int, int] = (1280, 900), locale: str = "en-GB", shows: str = "#task label"
) -> AsyncIterator[Any]:
    """A visitor with storage of their own, once the page `shows` that; fails if anything was fetched from elsewhere, or
    a script failed."""
    context = await browser.new_context(viewport={"width": size[0], "height": size[1]}, locale=locale)
    page = await context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    outside: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: outside.append(request.url) if not request.url.startswith(url) else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    await page.goto(f"{url}/test/")
    await page.wait_for_selector(shows)
    yield page
    assert [found for found in outside if not found.startswith(("data:", "blob:"))] == []
    assert errors == []
    await context.close()


async def begin(page: Any, name: str, *, battle: bool = False, task: int = 1, model: str = "") -> None:
    """Open a session."""
    if battle:
        await page.click("#mode label:nth-of-type(2)")
    await page.click(f"#task label:nth-of-type({task})")
    await page.fill("#tester input, #tester textarea", name)
    if model:
        await page.click("#model input")
        await page.click(f"#model [role=option]:has-text('{model}')")
    await page.check("#consent input")
    await page.wait_for_selector("#begin:not([disabled])")
    await page.click("#begin")
    await page.wait_for_selector("#entry textarea", state="visible")


async def say(page: Any, words: str, chat: str = "#chat", replies: int = 1) -> None:
    """Send something, and wait until the reply is complete."""
    await page.fill("#entry textarea", words)
    await page.click("#send")
    await answered(page, chat, replies)


async def answered(page: Any, chat: str = "#chat", replies: int = 1) -> None:
    """Wait until there are so many replies and the next question may be asked."""
    await page.wait_for_function(f"document.querySelectorAll('{chat} .bot').length >= {replies}")
    await page.wait_for_function("!document.querySelector('#entry textarea').disabled")
    await page.wait_for_selector("#send", state="visible")


async def go(page: Any, tab: str) -> None:
    """To a tab by its name; on a phone it may hide behind a button that shows the rest."""
    names = {"test": ("Test", "测试"), "history": ("My sessions", "我的会话"), "queue": ("Check verdicts", "复核判定"),
             "results": ("Results", "结果")}  # fmt: skip
    wanted = ", ".join(f"#tabs button[role=tab]:text-is('{name}'):visible" for name in names[tab])
    if await page.locator(wanted).count() == 0:
        await page.click("#tabs .overflow-menu > button")
        wanted = ", ".join(f"#tabs .overflow-dropdown button:text-is('{name}')" for name in names[tab])
    await page.locator(wanted).first.click()


async def until(holds: Callable[[], Awaitable[Any]], seconds: float = 60) -> Any:
    """Ask again and again until the answer is true; returns it."""
    async with asyncio.timeout(seconds):
        while not (found := await holds()):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.1)
        return found


async def sideways(page: Any) -> int:
    """By how many pixels the page is wider than its window."""
    return int(await page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))
