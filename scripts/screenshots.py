"""Plays a tester at the page of a running mesh, and keeps what the tester saw as pictures.

    chatmill up &                                 # with `shop` trained: chatmill run samples/recipe.yaml
    python scripts/screenshots.py                 # docs/testers-desktop.png and docs/testers-phone.png
    python scripts/screenshots.py --every FOLDER  # each tab, in both languages, desktop and phone

Nothing is made up: the replies are the model's, the sessions and labels are kept by the mesh like anyone's. Needs
Chromium (`CHROMIUM` names another one than /usr/bin/chromium) and the package playwright.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

DOCS = Path(__file__).resolve().parent.parent / "docs"
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
LOCALES = {"en": "en-GB", "zh": "zh-CN"}
QUESTIONS = {
    "en": ("Hi! How long do I have to send a pan back?", "And who pays for the return label?"),
    "zh": ("你好，锅不喜欢可以退吗？", "退款多久能到账？"),
}
TABS = {
    "history": ("My sessions", "我的会话"),
    "queue": ("Check verdicts", "复核判定"),
    "results": ("Results", "结果"),
    "test": ("Test", "测试"),
}


def main() -> int:
    """Take the pictures; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="where the bridge listens")
    parser.add_argument("--model", default="shop", help="the model to talk to, as the page lists it")
    parser.add_argument("--verdict", choices=("good", "bad"), default="good", help="what the tester says of the reply")
    parser.add_argument("--out", type=Path, default=DOCS, metavar="FOLDER", help="where the two pictures go")
    parser.add_argument("--every", type=Path, metavar="FOLDER", help="instead of the two: every tab, for looking at")
    arguments = parser.parse_args()
    with sync_playwright() as player:
        browser = player.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        if arguments.every:
            for size in SIZES:
                for language in LOCALES:
                    every(browser, arguments, size, language)
        else:
            for size, language in (("desktop", "en"), ("phone", "zh")):
                page = visit(browser, arguments.url, size, language)
                talk(page, arguments.model, language, f"otter-{size}", good=arguments.verdict == "good")
                keep(page, arguments.out / f"testers-{size}.png", size)
        browser.close()
    return 0


def visit(browser: Any, url: str, size: str, language: str) -> Page:
    """A visitor whose browser speaks that language."""
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height}, locale=LOCALES[language], is_mobile=size == "phone"
    )
    page: Page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(f"{url}/test/")
    page.wait_for_selector("#task label")
    return page


def begin(page: Page, name: str, model: str, *, battle: bool = False, task: int = 1) -> None:
    """Open a session."""
    if battle:
        page.click("#mode label:nth-of-type(2)")
    page.click(f"#task label:nth-of-type({task})")
    page.fill("#tester input, #tester textarea", name)
    if model and not battle:
        page.click("#model input")
        page.click(f"#model [role=option]:has-text('{model}')")
    page.check("#consent input")
    page.wait_for_selector("#begin:not([disabled])")
    page.click("#begin")
    page.wait_for_selector("#entry textarea", state="visible")


def say(page: Page, words: str, chat: str = "#chat") -> None:
    """Send something, and wait for the whole reply."""
    before = page.locator(f"{chat} .bot").count()
    page.fill("#entry textarea", words)
    page.click("#send")
    page.wait_for_function(f"document.querySelectorAll('{chat} .bot').length > {before}")
    page.wait_for_function("!document.querySelector('#entry textarea').disabled")
    page.wait_for_selector("#send", state="visible")


def talk(page: Page, model: str, language: str, name: str, *, good: bool) -> None:
    """A short conversation with a label for the last reply; a bad one refused what the agent should know."""
    begin(page, name, model)
    for question in QUESTIONS[language]:
        say(page, question)
    page.click(f"#thumb label:nth-of-type({1 if good else 2})")
    if not good:
        named = {"en": "Refused wrongly", "zh": "错误拒绝"}[language]
        page.click(f"#errors label:has-text('{named}')")
    page.wait_for_selector("#label-saved .cm-saved")
    page.evaluate("document.activeElement.blur()")


def keep(page: Page, path: Path, size: str, *, whole: bool = False) -> None:
    """Save what is in the window, or the whole page."""
    page.evaluate("window.scrollTo(0, 0)")
    if size == "phone" and not whole:  # the conversation, not the head of the page
        page.evaluate("document.querySelector('#card').scrollIntoView()")
    page.wait_for_timeout(700)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=path, full_page=whole)
    print(f"{path} ({path.stat().st_size // 1024} KB)")


def every(browser: Any, arguments: argparse.Namespace, size: str, language: str) -> None:
    """Every tab as it looks after a session, a comparison and a break."""
    mark = f"{size}-{language}"
    page = visit(browser, arguments.url, size, language)
    keep(page, arguments.every / f"1-start-{mark}.png", size, whole=True)
    name = f"otter-{mark}-{int(time.time()) % 10_000}"
    begin(page, name, arguments.model, task=6)
    for question in QUESTIONS[language]:
        say(page, question)
    page.click("#thumb label:nth-of-type(2)")
    page.click("#errors label:nth-of-type(6)")
    page.fill("#note textarea", "No such rule." if language == "en" else "没有这样的规定。")
    page.click("#card")
    page.wait_for_selector("#label-saved .cm-saved")
    keep(page, arguments.every / f"2-chat-{mark}.png", size, whole=True)
    page.click("#finish")
    page.wait_for_selector("#talk-notice .cm-reveal")
    keep(page, arguments.every / f"3-finished-{mark}.png", size, whole=True)
    page.click("#new")
    page.wait_for_selector("#begin", state="visible")
    page.click("#mode label:nth-of-type(2)")
    page.wait_for_timeout(1500)
    if not page.locator("#begin[disabled]").count():
        begin(page, name, arguments.model, battle=True)
        say(page, QUESTIONS[language][0], "#left")
        keep(page, arguments.every / f"4-battle-{mark}.png", size, whole=True)
        page.click("#vote-tie")
        page.wait_for_selector("#reveal .cm-reveal")
        keep(page, arguments.every / f"5-vote-{mark}.png", size, whole=True)
    for number, tab in enumerate(("history", "queue", "results"), 6):
        go(page, tab)
        page.wait_for_timeout(2500)
        if tab == "results" and page.locator("#defects label").count():
            page.locator("#defects label").first.click()
            page.wait_for_timeout(1500)
        keep(page, arguments.every / f"{number}-{tab}-{mark}.png", size, whole=True)
    page.context.close()


def go(page: Page, tab: str) -> None:
    """To a tab; on a phone it may hide behind the button that shows the rest."""
    for name in TABS[tab]:
        found = page.locator(f"#tabs button[role=tab]:text-is('{name}'):visible")
        if found.count():
            found.first.click()
            return
    page.click("#tabs .overflow-menu > button")
    wanted = ", ".join(f"#tabs .overflow-dropdown button:text-is('{name}')" for name in TABS[tab])
    page.locator(wanted).first.click()


if __name__ == "__main__":
    sys.exit(main())
