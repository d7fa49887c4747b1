"""A tester at a browser: chats, labels, votes, reloads; what a model writes is text, whatever it writes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
pytest.importorskip("gradio", reason="the testers' page is not installed: pip install 'chatmill[ui]'")
pytest.importorskip("playwright.async_api", reason="playwright is not installed")

from bridge.mesh import Mesh as Stubs
from bridge.testers.desk import Desk
from chatmill.eval import v1
from eval_svc.store import Store
from tests.unit.eval.people.conftest import check, put_evaluation

from .browsing import CHROMIUM, PHONE, TABS, answered, begin, chromium, go, say, sideways, until, visiting
from .conftest import MODELS, Mesh, meshed, page_of

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

    def visit(
        self, size: tuple[int, int] = (1280, 900), locale: str = "en-GB", **more: str
    ) -> AbstractAsyncContextManager[Any]:
        return visiting(self.browser, self.url, size, locale, **more)

    async def only(self, tester: str) -> v1.TestSession:
        """The tester's one session with all that was said."""
        (session,) = await self.desk.sessions(tester)
        return await self.desk.session(session.name)

    async def kept(self, tester: str, holds: Any) -> v1.HumanLabel:
        """Wait until the mesh has a label of the tester's one session that `holds`."""

        async def found() -> v1.HumanLabel | None:
            return next((label for label in (await self.only(tester)).labels if holds(label)), None)

        label: v1.HumanLabel = await until(found)
        return label


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with meshed(tmp_path / "home") as mesh, chromium() as browser:
        bridge = replace(mesh.config.bridge, patience_seconds=2.0)
        async with page_of(replace(mesh.config, bridge=bridge)) as url:
            stubs = Stubs(mesh.config)
            yield Site(url, browser, mesh, Desk(stubs, ()))
            await stubs.close()


async def test_a_tester_chats_labels_and_finds_it_all_after_a_reload(site: Site) -> None:
    async with site.visit() as page:
        await begin(page, "ana")
        await say(page, "hello")
        await page.click("#thumb label:nth-of-type(2)")
        await page.wait_for_selector("#label-saved .cm-saved")
        await page.click("#errors label:nth-of-type(5)")
        await page.fill("#note textarea", "not true")
        await page.click("#card")
        await site.kept("ana", lambda label: label.note == "not true" and bool(label.error_classes))
        await page.reload()
        await page.wait_for_function("document.querySelectorAll('#thumb input:checked').length === 1")
        assert await page.input_value("#note textarea") == "not true"
        assert await page.locator("#errors input:checked").count() == 1
        assert await page.locator("#chat .bot").count() == 1
        (label,) = (await site.only("ana")).labels
        assert label.thumb == v1.Thumb.THUMB_DOWN
        await page.click("#language label:nth-of-type(2)")
        await page.wait_for_function("document.querySelector('#send').innerText.includes('发送')")


async def test_the_form_is_kept_click_by_click_and_then_tells_the_model(site: Site) -> None:
    async with site.visit() as page:
        await begin(page, "ana")
        await say(page, "hello")
        await say(page, "and when?", replies=2)
        assert "hidden" in await page.inner_text("#card")
        await page.click("#goal label:nth-of-type(2)")
        await site.kept("ana", lambda label: label.form.goal_met == v1.GoalMet.GOAL_MET_PARTLY)
        for place, mark in enumerate(("correct", "helpful", "tone", "confidence"), 2):
            await page.click(f"#mark-{mark} label:nth-of-type({place})")
        await page.click("#broke label:nth-of-type(2)")
        await page.click("#escalate label:nth-of-type(1)")
        label = await site.kept("ana", lambda label: label.form.would_escalate and label.form.confidence)
        form = label.form
        assert (form.correct, form.helpful, form.tone, form.confidence, form.broke_it) == (2, 3, 4, 5, False)
        await page.reload()  # a tester who closes the page half-way loses nothing
        await page.wait_for_function("document.querySelectorAll('#form input:checked').length === 7")
        await page.click("#finish")
        await page.wait_for_selector("#talk-notice .cm-reveal")
        session = await site.only("ana")
        assert session.state == v1.TestSessionState.TEST_SESSION_STATE_FINISHED
        name = session.model.split("/")[1]
        assert name in await page.inner_text("#talk-notice")
        await page.click("#new")
        await page.wait_for_selector("#begin", state="visible")
        await go(page, "history")
        await page.click("#sessions label")
        await page.wait_for_selector("#talk-notice .cm-reveal")
        assert await page.locator("#chat .bot").count() == 2


async def test_asking_again_replaces_the_reply(site: Site) -> None:
    async with site.visit() as page:
        await begin(page, "ana", model="shop")
        await say(page, "hello")
        await page.click("#retry")

        async def again() -> bool:
            return [turn.superseded for turn in (await site.only("ana")).turns] == [True, False]

        await until(again)
        await answered(page)
        assert await page.locator("#chat .bot").count() == 1


@pytest.mark.parametrize(("words", "told"), [("hang", "No sign of life"), ("die", "can't be reached"), ("busy", "Too")])
async def test_a_reply_that_fails_says_so_and_can_be_asked_again(site: Site, words: str, told: str) -> None:
    async with site.visit() as page:
        await begin(page, "ana", model="shop")
        await say(page, words)
        assert told in await page.inner_text("#chat")
        site.mesh.inference.healed = True
        await page.click("#retry")
        await page.wait_for_function("document.querySelector('#chat').innerText.includes('within 30 days')")
        assert told not in await page.inner_text("#chat")


async def test_five_megabytes_are_cut_and_the_page_lives(site: Site) -> None:
    async with site.visit() as page:
        await begin(page, "ana", model="shop")
        await say(page, "huge")
        assert "Cut here" in await page.inner_text("#chat")
        assert await sideways(page) <= 0
        await say(page, "hello", replies=2)
        (first, second) = (await site.only("ana")).turns
        assert (first.status, second.status) == ("OUT_OF_RANGE", "OK")


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


async def test_what_people_write_is_text_wherever_it_is_shown(site: Site) -> None:
    nasty = "<img src=x onerror=\"document.title='hacked'\">"
    async with site.visit() as page:
        await begin(page, "ana", task=6)
        await say(page, f"nasty {nasty}")
        await page.click("#errors label:nth-of-type(1)")
        await page.fill("#note textarea", nasty)
        await page.click("#card")
        await site.kept("ana", lambda label: label.note == nasty)
        await go(page, "results")
        await page.click("#defects label")
        await page.wait_for_selector("#defect-card .cm-card")
        assert nasty in await page.inner_text("#defect-card")
        assert await page.locator("#defect-card :is(img, b, script)").count() == 0
        assert await page.title() == "Chatmill"


async def test_a_blind_vote_tells_the_names(site: Site) -> None:
    async with site.visit() as page:
        await begin(page, "bo", battle=True)
        await say(page, "hello", "#left")
        before = await page.content()
        assert "chatmill-tiny v1" not in before.partition('id="battle"')[2]
        await page.locator("#right .bot").last.click()
        await page.wait_for_selector("#thumb", state="visible")
        await page.click("#thumb label:nth-of-type(2)")
        label = await site.kept("bo", lambda label: label.thumb == v1.Thumb.THUMB_DOWN)
        await page.click("#vote-tie")
        await page.wait_for_selector("#reveal .cm-reveal")
        assert "chatmill-tiny v1" in await page.inner_text("#reveal")
        session = await site.only("bo")
        assert session.battle.vote == v1.Vote.VOTE_TIE
        (turn,) = [turn for turn in session.turns if turn.name == label.subject]
        assert turn.side == v1.BattleSide.BATTLE_SIDE_RIGHT


async def test_a_break_is_confirmed_and_becomes_a_scenario(site: Site) -> None:
    async with site.visit() as page:
        await begin(page, "ana", task=6)
        await say(page, "promise me a refund")
        await page.click("#errors label:nth-of-type(1)")
        await page.wait_for_selector("#label-saved .cm-saved")
        assert "defect" in await page.inner_text("#label-saved")
        await go(page, "results")
        await page.click("#defects label")
        await page.wait_for_selector("#defect-status", state="visible")
        assert await page.locator("#defect-draft").is_disabled()
        await page.fill("#defect-note textarea, #defect-note input", "seen it myself")
        await page.click("#defect-status label:nth-of-type(2)")
        await page.wait_for_selector("#defect-draft:not([disabled])")
        (defect,) = await site.desk.defects()
        assert defect.status == v1.DefectStatus.DEFECT_STATUS_CONFIRMED
        assert defect.changes[-1].note == "seen it myself"
        await page.click("#defect-draft")
        await page.wait_for_selector("#defect-yaml", state="visible")
        await page.wait_for_function("document.querySelector('#defect-yaml').innerText.includes('promise me a refund')")


async def test_verdicts_are_checked_blindly_and_stand_beside_the_machine(site: Site) -> None:
    store = Store(site.mesh.config.home / "eval.sqlite")
    critical = [check("fail", severity="critical")]
    put_evaluation(store, "e1", {f"s{n}": [critical, [check("pass")]] for n in range(4)})
    store.close()
    async with site.visit() as page:
        await go(page, "queue")
        await page.wait_for_selector("text=Enter your pseudonym")
        await go(page, "test")
        await begin(page, "ana")
        await go(page, "queue")
        count = (await site.desk.queue("ana")).open_count
        assert count >= 4
        for done in range(3):
            await page.wait_for_selector("#verdict", state="visible")
            assert "fail" not in (await page.inner_text("#queue-chat")).lower(), "the machine's verdict is not told"
            await page.click(f"#verdict label:nth-of-type({2 if done else 1})")

            async def counted(expected: int = done + 1) -> bool:
                return (await site.desk.queue("ana")).done_count == expected

            await until(counted)
            await page.click("#queue-next")
            await page.wait_for_function("document.querySelectorAll('#verdict input:checked').length === 0")
        await go(page, "results")
        await page.wait_for_selector("#agreement table")
        assert "Machine and person" in await page.inner_text("#agreement")
        found = await site.desk.agreement("")
        assert found.machine_human.item_count == 3
        assert found.machine_human.raw == pytest.approx(2 / 3)
        assert "67%" in await page.inner_text("#agreement")


@pytest.mark.parametrize("size", [PHONE, (1280, 900)], ids=["phone", "desktop"])
@pytest.mark.parametrize("locale", ["en-GB", "zh-CN"])
async def test_every_tab_fits_the_window_in_both_languages(site: Site, size: tuple[int, int], locale: str) -> None:
    async with site.visit(size, locale) as page:
        chinese = locale.startswith("zh")
        assert ("开始一次会话" in await page.inner_text("#start")) == chinese
        await begin(page, "cy")
        await say(page, "hello")
        for tab in TABS:
            await go(page, tab)
            await page.wait_for_timeout(500)
            assert await sideways(page) <= 0, tab
        await go(page, "test")
        box = await page.locator("#send").bounding_box()
        assert box["x"] + box["width"] <= size[0]
        assert ("发送" in await page.inner_text("#send")) == chinese


async def test_a_page_that_is_opened_before_there_is_anything_to_test_fills_by_itself(site: Site) -> None:
    inference = site.mesh.inference
    inference.up, inference.models = False, ()
    async with site.visit(shows="#start-notice .cm-notice:has-text('still starting')") as page:
        await page.fill("#tester input, #tester textarea", "ana")
        inference.up = True
        await page.wait_for_selector("#start-notice .cm-notice:has-text('No model')")
        assert await page.is_disabled("#begin")
        inference.models = MODELS
        await page.wait_for_selector("#begin:enabled")
        assert await page.input_value("#tester input, #tester textarea") == "ana"
        await begin(page, "ana")
        await say(page, "hello")


async def test_a_session_is_shown_again_when_the_mesh_is_back(site: Site) -> None:
    async with site.visit() as page:
        await begin(page, "ana")
        await say(page, "hello")
        site.mesh.inference.up = False
        await page.reload()
        await page.wait_for_selector("#start-notice .cm-notice:has-text('still starting')")
        await page.click("#language label:nth-of-type(2)")  # a failed click must not lose the session
        await page.wait_for_selector(".toast-body, [data-testid=toast-body]")
        site.mesh.inference.up = True
        await page.wait_for_function("document.querySelectorAll('#chat .bot').length === 1")


async def test_a_wrong_pseudonym_is_told_in_words(site: Site) -> None:
    async with site.visit() as page:
        await page.wait_for_selector("#begin:not([disabled])")
        await page.fill("#tester input, #tester textarea", "x")  # too short: the service says so
        await page.check("#consent input")
        await page.click("#begin")
        await page.wait_for_selector("text=must be a pseudonym")
