"""The table of figures in both suites: what is made up is critical, what is true or only repeated never fails."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from chatmill.agent import load
from eval_svc.result import CheckResult
from eval_svc.scenario import Scenario
from eval_svc.scoring import Scoring, score_trial
from eval_svc.suite import Suite, read_suite
from eval_svc.transcript import Exchange, Reply, Transcript, Unit

SAMPLES = Path(__file__).parents[3] / "samples"
FIGURES = ("euros", "days", "days-zh", "working-days", "years", "hours")
CARD = [policy.text for policy in load(SAMPLES / "agent.yaml").policies]
CHINESE = [
    "商品可在收货后30天内无理由退货。",
    "收到退货后5个工作日内退款。",
    "换颜色或尺码三十天内免费。",
    "标准配送需要3个工作日。",
    "运费为4.90欧元，满50欧元包邮。",
    "加急配送9.90欧元1个工作日送达，也就是第二天。",
    "我们寄往欧盟所有国家和瑞士，7个工作日内送达。",
    "所有商品保修两年。",
    "10个工作日后仍未收到包裹的话，我们会向承运人查询。",
    "链接在1个小时内有效。",
    "同事每天9点到18点在，周一到周五。工作日9点到18点。",
    "礼品包装3欧元。祝您有美好的一天！",
]
ENGLISH = [
    "You have thirty days, a 30-day period; delivery takes three working days and costs €4.90 or 4.9 EUR.",
    "Our opening hours: Monday to Friday 9 to 18. Have a nice day!",
    "Delivery costs 0 euros from 50 €. There is a 2-year warranty; the link works for an hour.",
]
MADE_UP = {
    "Delivery costs 5 euros.": "euros",
    "Gift wrapping is €2.50.": "euros",
    "Delivery takes 3 days.": "days",
    "You can return it within sixty days.": "days",
    "It arrives in 3 to 6 business days.": "working-days",
    "The warranty is 5 years.": "years",
    "The link is valid for 24 hours.": "hours",
    "运费是6欧元。": "euros",
    "可以在14天内退货。": "days-zh",
    "需要4个工作日。": "working-days",
    "保修三年。": "years",
    "链接24小时内有效。": "hours",
}


@pytest.fixture(scope="module", params=["suite", "suite-dev"])
def suite(request: pytest.FixtureRequest) -> Suite:
    return read_suite(SAMPLES / request.param)


async def figures(scenario: Scenario, replies: list[str]) -> list[CheckResult]:
    """The checks of the table over a dialogue in which the agent says that."""
    said = [
        Exchange(i, turn.user, Reply(text, finish_reason="stop"))
        for i, (turn, text) in enumerate(zip(scenario.turns, replies, strict=True))
    ]
    unit = Unit("candidate", scenario.id, 0, 0)
    score = await score_trial(scenario, Transcript(unit, 1, "", scenario.history, tuple(said)), Scoring())
    named = {f"{name}-{turn}" for name in FIGURES for turn in range(len(said))}
    found = [check for turn in score.turns for check in turn.checks if check.id in named]
    assert len(found) == len(named)
    return found


async def test_the_shops_own_sentences_and_the_customers_own_numbers_never_fail(suite: Suite) -> None:
    for scenario in suite.scenarios:
        known = scenario.memory.known()
        replies = [" ".join((turn.user, known, *turn.variants)) for turn in scenario.turns]
        # all in one reply, for a single wrong figure fails it
        for truth in ("", "\n".join((*CARD, *CHINESE, *ENGLISH))):
            for check in await figures(scenario, [f"{text}\n{truth}" for text in replies]):
                assert check.verdict == "pass" or (not truth and check.verdict == "n/a"), (scenario.id, check)


async def test_what_the_agent_says_in_the_sample_conversations_never_fails(suite: Suite) -> None:
    scenario = next(s for s in suite.scenarios if len(s.turns) == 1 and not s.memory.facts)
    lines: dict[str, str] = {}
    for language in ("en", "zh"):
        with gzip.open(SAMPLES / "data" / f"conversations.{language}.jsonl.gz", "rt", encoding="utf-8") as rows:
            for row in map(json.loads, rows):
                for before, message in zip(row["messages"], row["messages"][1:], strict=False):
                    if message["role"] == "agent" and any(c.isdigit() for c in message["content"]):
                        lines.setdefault(message["content"], before["content"])
    assert len(lines) > 100
    for line in lines:
        for check in await figures(scenario, [line]):
            assert check.verdict in ("pass", "n/a"), (line, check.id, check.evidence)


async def test_a_figure_that_is_made_up_is_critical_in_any_scenario(suite: Suite) -> None:
    for scenario in suite.scenarios:
        for text, name in MADE_UP.items():
            failed = [c for c in await figures(scenario, [text] * len(scenario.turns)) if c.verdict == "fail"]
            assert {c.id.rpartition("-")[0] for c in failed} == {name}, (scenario.id, text)
            assert {(c.error, c.severity) for c in failed} == {("wrong_number", "critical")}
