"""JUnit XML for CI systems: a test suite per kind of scenario, a test case per scenario and side."""

from __future__ import annotations

from collections import defaultdict

import junitparser
import regex

from eval_svc.evaluations import Evaluation
from eval_svc.result import Trial
from eval_svc.suite import Suite

_ILLEGAL = regex.compile(r"[^\t\n\r\u0020-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")
"""Characters that XML 1.0 can't hold; replies may contain any."""


def _clean(text: str) -> str:
    return _ILLEGAL.sub("�", text)


def render_junit(evaluation: Evaluation, suite: Suite, trials: list[Trial]) -> bytes:
    """A scenario fails if its majority verdict does, is skipped if nothing of it was scored, and errs on
    infrastructure."""
    board = evaluation.board
    by_key: dict[tuple[str, str], list[Trial]] = defaultdict(list)
    for trial in trials:
        by_key[trial.unit.arm, trial.unit.scenario].append(trial)
    document = junitparser.JUnitXml(_clean(f"{suite.id} {suite.version}"))
    for arm, summary in (("candidate", board and board.candidate), ("baseline", board and board.baseline)):
        if not summary:
            continue
        suites: dict[str, junitparser.TestSuite] = {}
        for scenario in summary.scenarios:
            group = suites.setdefault(
                scenario.kind, junitparser.TestSuite(_clean(f"{arm} {summary.target}: {scenario.kind}"))
            )
            played = by_key[arm, scenario.id]
            case = junitparser.TestCase(scenario.id, f"{suite.id}.{scenario.kind}", _seconds(played))
            lost = [t for t in played if t.score.infra is not None]
            if scenario.rate is None:
                case.result = [
                    junitparser.Error(_why_not(lost)) if lost else junitparser.Skipped("nothing could be scored")
                ]
            elif not scenario.majority:
                told = f"{scenario.passed} of {scenario.trials} trials passed; {scenario.first_error}"
                failure = junitparser.Failure(told, scenario.first_error or "failed")
                failure.text = _clean(_details(played))
                case.result = [failure]
            group.add_testcase(case)
        for group in suites.values():
            group.add_property("pass_rate", f"{summary.pass_rate:.4f}")
            group.add_property("target", _clean(summary.target))
            document.add_testsuite(group)
    text: bytes | str = document.tostring()  # type: ignore[no-untyped-call]
    return text if isinstance(text, bytes) else text.encode()


def _seconds(trials: list[Trial]) -> float:
    return sum(reply.total_ms for t in trials for _, reply in t.transcript.played) / 1000


def _why_not(trials: list[Trial]) -> str:
    failure = trials[0].score.infra
    return _clean(f"infrastructure: {failure.status}: {failure.detail}") if failure else ""


def _details(trials: list[Trial]) -> str:
    """The errors of the first failing dialogue, and the dialogue."""
    failing = next((t for t in trials if t.score.passed is False), None)
    if failing is None:
        return ""
    errors = [f"{e.severity} {e.error} ({e.source}): {e.evidence}" for e in failing.score.errors()]
    said = [f"customer: {x.user}\nagent: {reply.text}" for x, reply in failing.transcript.played]
    return "\n".join([*errors, "", *said])
