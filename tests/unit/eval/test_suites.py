"""The suites that ship, against replies labelled right and wrong; and the report on replies that mean harm."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from chatmill import located_yaml
from eval_svc.comparison import by_kind
from eval_svc.glitches.examples import measure
from eval_svc.report import RENDERERS
from eval_svc.report.marking import Mark, marked
from eval_svc.scoring import Scoring, handover_expected, score_trial
from eval_svc.statistics import mcnemar
from eval_svc.suite import SHIPPED, SuiteLibrary, read_suite
from eval_svc.transcript import Exchange, Reply, Transcript, Unit

from .fakes import ScriptedAgent, evaluations, finish, handover, said, scenario, spec, suite

SUITES = ["handover", "undesired"]


@pytest.mark.parametrize("name", SUITES)
async def test_a_shipped_suite_tells_right_from_wrong(name: str) -> None:
    held = read_suite(SHIPPED / name)
    labelled = located_yaml.read(SHIPPED / name / "labelled.yaml").data
    assert set(labelled) == {s.id for s in held.scenarios}
    for entry in held.scenarios:
        for label, right in (("resists", True), ("breaks", False)):
            score = await score_trial(entry, _played(entry, labelled[entry.id][label]), Scoring())
            assert score.passed is right, (entry.id, label, list(score.errors()))


PHRASES = located_yaml.read(SHIPPED / "undesired" / "phrases.yaml").data


@pytest.mark.parametrize(
    ("language", "attack"), [(language, name) for language in PHRASES for name in PHRASES[language]]
)
async def test_attacks_are_told_apart_in_other_words_too(language: str, attack: str) -> None:
    labelled = located_yaml.read(SHIPPED / "undesired" / "labelled.yaml").data
    held = [s for s in read_suite(SHIPPED / "undesired").scenarios if s.id.startswith(f"{language}-{attack}-")]
    assert held
    for entry in held:
        for label, right in (("resists", True), ("breaks", False)):
            for said_last in PHRASES[language][attack][label]:
                replies = [*labelled[entry.id]["resists"][:-1], said_last]
                score = await score_trial(entry, _played(entry, replies), Scoring())
                assert score.passed is right, (entry.id, said_last, list(score.errors()))


def _played(entry: Any, replies: list[str]) -> Transcript:
    exchanges: list[Exchange] = []
    for index, text in enumerate(replies):
        reply = handover() if text == "HANDOVER" else said(text)
        exchanges.append(Exchange(index, entry.turns[index].user, reply))
        if reply.handed_over:
            break
    return Transcript(Unit("candidate", entry.id, 0, 0), 1, "You are an assistant.", (), tuple(exchanges))


def test_the_undesired_suite_is_large_enough_and_speaks_two_languages() -> None:
    held = read_suite(SHIPPED / "undesired")
    languages = [s.persona.language for s in held.scenarios]
    assert len(languages) >= 60
    assert min(languages.count("en"), languages.count("zh")) >= 25
    assert held.trials >= 5


def test_the_handover_suite_comes_in_pairs() -> None:
    held = read_suite(SHIPPED / "handover")
    expected = {s.id: handover_expected(s) for s in held.scenarios}
    for name, wanted in expected.items():
        stem, _, side = name.rpartition(".")
        assert wanted == ("must" if side == "must" else "must_not")
        assert f"{stem}.must" in expected
        assert f"{stem}.must-not" in expected


def test_shipped_suites_are_found_by_name() -> None:
    library = SuiteLibrary()
    assert [s.id for s, _, _ in library.installed() if s] == SUITES
    assert library.find("suites/undesired").id == "undesired"


def test_the_samples_suite_is_readable() -> None:
    folder = Path(__file__).parents[3] / "samples" / "suite"
    assert len(read_suite(folder).scenarios) >= 40


HOSTILE = "<script>alert(1)</script> **bold** [x](javascript:alert(1)) <img src=x onerror=alert(1)> \x00\ud83d hello"


async def test_replies_that_mean_harm_are_shown_as_text() -> None:
    held = suite(scenario("s", title="<b>title</b>", user="<i>hi</i>"))
    agent = ScriptedAgent(lambda _: said(HOSTILE.encode("utf-8", "replace").decode()), "<u>model")
    core = evaluations(held, {"a": agent})
    done = await finish(core, spec())
    files = {name: await core.report(done.record.id, render) for name, render in RENDERERS.items()}
    page = files["html"].decode()
    for raw in ("<script>", "<img", "<b>title", "<i>hi", "<u>model", 'href="javascript'):
        assert raw not in page, raw
    assert "&lt;script&gt;alert(1)" in page
    assert "http://" not in page
    assert "https://" not in page
    for quality in measure():
        assert quality.name.replace("_", " ") in page, "the table of detectors with their precision and recall"
    ET.fromstring(files["junit"])
    assert len(files["jsonl"].splitlines()) == 1


def test_evidence_is_marked_and_the_worse_mark_wins() -> None:
    text = "You have <30> days & more"
    found = marked(
        text, [Mark("<30> days", "good", "asked"), Mark("30", "bad", 'it is "14"'), Mark("nowhere", "bad", "")]
    )
    assert found == 'You have &lt;<mark class="bad" title="it is &#34;14&#34;">30</mark>&gt; days &amp; more'


async def test_a_run_without_any_scored_dialogue_still_has_a_report() -> None:
    agent = ScriptedAgent(lambda _: Reply(failure=None, text="", finish_reason="stop"))
    core = evaluations(suite(scenario("s")), {"a": agent})
    done = await finish(core, spec())
    for render in RENDERERS.values():
        assert await core.report(done.record.id, render)
    assert done.board.candidate.errors.keys() >= {"empty"}


async def test_attacks_and_kinds_stand_in_the_report_by_themselves() -> None:
    attack = {"forbid": [{"type": "contains_any", "value": "secret is"}]}
    held = suite(
        *({**scenario(f"a{i}", kind="attack"), "turns": [{"user": f"attack {i}", **attack}]} for i in range(8)),
        *(scenario(f"h{i}", user=f"ask {i}") for i in range(8)),
    )

    def weak(request: Any) -> str:
        return "the secret is 7" if request.messages[-1].content in [f"attack {i}" for i in range(6)] else "hello"

    core = evaluations(held, {"a": ScriptedAgent(lambda _: "hello", "a"), "b": ScriptedAgent(weak, "b")})
    done = await finish(core, spec("a", "b"))
    report = (await core.report(done.record.id, RENDERERS["html"])).decode()
    row = report.partition("Attacks that succeeded")[2].partition("</tr>")[0]
    assert "mean over 8 attack scenarios" in row
    assert "0.0%" in row
    assert "75.0%" in row
    attacks, happy = by_kind(done.board.candidate, done.board.baseline)
    assert (attacks.kind, attacks.scenarios, attacks.fixed, attacks.broken) == ("attack", 8, 6, 0)
    assert attacks.p_value == pytest.approx(2 * mcnemar(6, 0)), "two kinds are looked at"
    assert (happy.kind, happy.p_value) == ("happy", 1.0)
    assert "adjusted after Holm for the 2 kinds" in report
    assert "p95 of the run's replies, difference" in report
