"""The testers' page of a real mesh: ten people at once talk to a real model, and every click of theirs is kept."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bridge.mesh import Mesh as Stubs
from bridge.testers.desk import Desk
from chatmill import config as configuration
from chatmill.eval import v1
from eval_svc.scenario_file import read_scenario
from tests.mesh.conftest import CHATMILL, ROOT, SERVICES, chatmill, environment
from tests.unit.testers.browsing import CHROMIUM, begin, chromium, go, say, until, visiting

pytest.importorskip("gradio", reason="the testers' page is not installed: pip install 'chatmill[ui]'")
pytest.importorskip("playwright.async_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no browser at {CHROMIUM}; CHROMIUM names another one"),
]

TESTERS = 10
# A model that takes no training, and a suite of a few scenarios: the page is what is tested.
RECIPE = {
    "method.name": "prompt", "method.parameters": "", "limit": "60", "dataset.test_fraction": "0.2", "trials": "4",
    "suite.tags": "[small-talk]", "promote": "",
}  # fmt: skip


@dataclass(frozen=True)
class Up:
    """A mesh as `chatmill up` starts it, its page included.

    Attributes:
        url: of the page.
        config: under which the services are reached.
    """

    home: Path
    url: str
    config: configuration.Config

    def desk(self) -> Desk:
        return Desk(Stubs(self.config), ())


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    home = tmp_path_factory.mktemp("people") / "home"
    options = [part for name in (*SERVICES, "bridge") for part in ("-o", f"{name}.port=0")]
    process = subprocess.Popen(
        [CHATMILL, "up", "--home", str(home), *options],
        cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        assert process.stdout
        told = []
        for line in process.stdout:
            told.append(line.decode())
            if "The mesh is up" in told[-1]:
                break
        else:
            raise AssertionError("".join(told))
        sets = [part for key, value in RECIPE.items() for part in ("--set", f"{key}={value}")]
        ran = chatmill("run", "samples/recipe.yaml", *sets, home=home)
        assert ran.returncode in (0, 1), ran.stdout + ran.stderr
        bridge = json.loads((home / "run" / "bridge.json").read_text())
        config = configuration.load(None, env={}, overrides={"mesh.home": str(home)}, look=False)
        peers = {name: _target(home, name) for name in SERVICES}
        config = replace(config, mesh=replace(config.mesh, peers=replace(config.mesh.peers, **peers)))
        yield Up(home, f"http://127.0.0.1:{bridge['port']}", config)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            process.kill()


def _target(home: Path, name: str) -> str:
    told = json.loads((home / "run" / f"{name}.json").read_text())
    return f"{told['host']}:{told['port']}"


async def test_the_page_shows_the_agent_of_the_recipe(up: Up) -> None:
    async with chromium() as browser, visiting(browser, up.url) as page:
        shown = await page.inner_text("#start")
        assert "You talk to Mila, who speaks for Kettlemoor." in shown
        assert "Hand over: legal" in shown
        await begin(page, "first", model="shop")
        await page.click("#card summary")
        assert "Standard delivery takes 3 working days." in await page.inner_text("#card")


async def test_what_the_model_said_is_what_is_kept(up: Up) -> None:
    async with chromium() as browser, visiting(browser, up.url) as page:
        await begin(page, "second", model="shop")
        await say(page, "Hello! How long does delivery take?")
        desk = up.desk()
        (session,) = await desk.sessions("second")
        (turn,) = (await desk.session(session.name)).turns
        assert turn.status == "OK"
        assert turn.output_tokens > 0
        assert turn.prompt_tokens > 0
        assert 0 < turn.first_token_ms <= turn.total_ms
        shown = await page.locator("#chat .bot").last.inner_text()
        assert turn.reply.content.split()[0] in shown
        assert session.model.startswith("models/shop/versions/")
        assert session.revision
        await desk.mesh.close()


async def test_ten_testers_in_ten_browsers_lose_nothing(up: Up) -> None:
    async def tester(browser: Any, number: int) -> None:
        async with visiting(browser, up.url) as page:
            await begin(page, f"tester-{number}", model="shop")
            for place in (1, 2):
                await say(page, f"Question {place} of tester {number}: may I return a pan?", replies=place)
                await page.click(f"#thumb label:nth-of-type({1 + number % 2})")
                await page.wait_for_selector("#label-saved .cm-saved")
            await page.fill("#note textarea", f"note {number}")
            await page.click("#goal label:nth-of-type(1)")
            await page.wait_for_selector("#form-saved .cm-saved")

    began = time.monotonic()
    async with chromium() as browser:
        await asyncio.gather(*(tester(browser, number) for number in range(TESTERS)))
    print(f"{TESTERS} testers in {TESTERS} browser contexts took {time.monotonic() - began:.1f} s")
    desk = up.desk()
    for number in range(TESTERS):
        (listed,) = await desk.sessions(f"tester-{number}")
        session = await desk.session(listed.name)
        assert [turn.user.split(":")[0] for turn in session.turns] == [
            f"Question {place} of tester {number}" for place in (1, 2)
        ]
        assert {turn.status for turn in session.turns} == {"OK"}
        thumbs = {label.subject: label.thumb for label in session.labels if label.thumb}
        assert thumbs == {turn.name: 1 + number % 2 for turn in session.turns}
        assert [label.note for label in session.labels if label.note] == [f"note {number}"]
        assert any(label.form.goal_met == v1.GoalMet.GOAL_MET_YES for label in session.labels)
    await desk.mesh.close()


async def test_a_blind_comparison_of_two_real_models_ends_with_their_names(up: Up) -> None:
    async with chromium() as browser, visiting(browser, up.url) as page:
        await begin(page, "voter", battle=True)
        await say(page, "Hello! Do you sell pans?", "#left")
        assert await page.locator("#right .bot").count() == 1
        await page.click("#vote-both_bad")
        await page.wait_for_selector("#reveal .cm-reveal")
        told = await page.inner_text("#reveal")
        assert "shop v1" in told
        assert "chatmill-tiny v1" in told


async def test_the_machines_verdicts_wait_for_people(up: Up) -> None:
    desk = up.desk()
    waiting = (await desk.queue("judge")).open_count
    assert waiting > 0, "the recipe's evaluation has scored trials"
    async with chromium() as browser, visiting(browser, up.url) as page:
        await begin(page, "judge", model="shop")
        await go(page, "queue")
        await page.wait_for_selector("#verdict", state="visible")
        await page.click("#verdict label:nth-of-type(2)")

        async def counted() -> bool:
            return (await desk.queue("judge")).done_count == 1

        await until(counted)
        await go(page, "results")
        await page.wait_for_selector("#agreement table")
        assert "shop v1" in await page.inner_text("#scores")
    (score,) = [score for score in await desk.scores() if score.model == "models/shop/versions/1"]
    assert score.HasField("machine_pass_rate"), "people stand beside the machine"
    assert score.evaluation
    await desk.mesh.close()


async def test_a_break_becomes_a_scenario_from_the_command_line(up: Up, tmp_path: Path) -> None:
    desk = up.desk()
    async with chromium() as browser, visiting(browser, up.url) as page:
        await begin(page, "breaker", model="shop", task=6)
        await say(page, "Promise me that you refund it today.")
        await page.click("#errors label:nth-of-type(1)")
        await page.wait_for_selector("#label-saved .cm-saved")
    (found,) = [defect for defect in await desk.defects() if defect.reporter == "breaker"]
    refused = await asyncio.to_thread(chatmill, "eval", "from-label", found.name, "--to", str(tmp_path), home=up.home)
    assert refused.returncode == 2
    assert "confirm it first" in refused.stderr
    await desk.set_defect(found.name, v1.DefectStatus.DEFECT_STATUS_CONFIRMED, "lead", "seen")
    made = await asyncio.to_thread(chatmill, "eval", "from-label", found.name, "--to", str(tmp_path), home=up.home)
    assert made.returncode == 0, made.stderr
    assert read_scenario(Path(made.stdout.strip())).turns[0].user == "Promise me that you refund it today."
    await desk.mesh.close()


async def test_the_services_may_die_and_come_back_under_an_open_page(up: Up) -> None:
    async with chromium() as browser, visiting(browser, up.url) as page:
        await begin(page, "patient", model="shop")
        pid = int(json.loads((up.home / "run" / "inference.json").read_text())["pid"])
        os.kill(pid, signal.SIGKILL)
        await say(page, "Hello?")

        desk = up.desk()
        (session,) = await desk.sessions("patient")

        async def healed() -> bool:
            await page.click("#retry:not([disabled])")
            await page.wait_for_timeout(1000)
            return (await desk.session(session.name)).turns[-1].status == "OK"

        assert (await desk.session(session.name)).turns[-1].status == "UNAVAILABLE"
        await until(healed, 120)
        assert [turn.superseded for turn in (await desk.session(session.name)).turns][-2:] == [True, False]
        await desk.mesh.close()
