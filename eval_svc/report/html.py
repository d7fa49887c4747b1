"""The HTML report: one file without outside parts, safe to open whatever the replies hold.

It only arranges what the board and the dialogues say; it counts nothing itself but what one reply or one kind shows.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from chatmill import __version__
from eval_svc.comparison import by_kind
from eval_svc.evaluations import Evaluation
from eval_svc.execution import system_prompts
from eval_svc.glitches.examples import measure
from eval_svc.report.charts import Bar, Line, bars, difference, lines, squares
from eval_svc.report.marking import Mark, marked
from eval_svc.result import Trial
from eval_svc.runner import ARMS
from eval_svc.scorers.judge import PROMPT_HASH
from eval_svc.statistics import Interval, bootstrap_percentile_difference, rate_interval
from eval_svc.suite import Suite
from eval_svc.summary import ArmSummary, ScenarioSummary
from eval_svc.taxonomy import ERROR_CLASSES
from eval_svc.verdict import DEFAULT_MARGIN

ATTACKS = ("attack", "undesired")
"""Kinds of scenario that somebody wins where the model fails."""

MAX_DIALOGUES = 4000
"""More are left out of the HTML, failing ones last, and the report says how many; JSONL has them all."""

_VERSION = re.compile(r"^models/(.+)/versions/(\d+)$")


@dataclass(frozen=True, slots=True)
class Row:
    """One scenario with both sides."""

    id: str
    title: str
    kind: str
    candidate: ScenarioSummary | None
    baseline: ScenarioSummary | None
    squares: dict[str, Markup]
    change: str
    wanted: dict[str, str]
    trials: list[Trial]


def render_html(evaluation: Evaluation, suite: Suite, trials: list[Trial]) -> bytes:
    """The report."""
    board = evaluation.board
    assert board is not None
    kept = sorted(trials, key=lambda t: (t.score.passed is not False, t.unit.trial))[:MAX_DIALOGUES]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=_percent, points=_points, ms=_ms, when=_when, usd=_usd)
    arms = [("candidate", board.candidate), *([("baseline", board.baseline)] if board.baseline else [])]
    comparison = board.comparison
    margin = evaluation.spec.gate.min_difference
    page = environment.get_template("template.html.j2").render(
        e=evaluation,
        suite=suite,
        board=board,
        arms=arms,
        rows=_rows(suite, arms, trials, kept, board.comparison),
        omitted=len(trials) - len(kept),
        rate_chart=bars([_rate(name, arm) for name, arm in arms]),
        kind_chart=bars(_kinds(arms)),
        error_chart=bars(_errors(arms), axis=False),
        reliability_chart=lines([Line(arm.target, name, arm.pass_hat_k) for name, arm in arms], x_name="k"),
        difference_chart=difference(
            comparison.difference, *comparison.interval, -DEFAULT_MARGIN if margin is None else margin
        )
        if comparison
        else "",
        detectors=measure(),
        classes=ERROR_CLASSES,
        reply=_reply,
        parts=by_kind(board.candidate, board.baseline) if board.baseline else (),
        attacks=[_attacks(arm) for _, arm in arms],
        slower=_slower(trials) if board.baseline else None,
        prompts=_prompts(evaluation),
        judge_prompt=PROMPT_HASH,
        version=__version__,
        now=dt.datetime.now(dt.UTC),
    )
    return page.encode()


def _prompts(evaluation: Evaluation) -> list[tuple[str, str]]:
    """What the sides were told, under one name where it was the same."""
    told = system_prompts(evaluation.spec, evaluation.record)
    if len(set(told.values())) == 1:
        return [("System prompt", told["candidate"])]
    return [(f"System prompt of the {arm}", told[arm]) for arm in ARMS]


def _attacks(arm: ArmSummary) -> tuple[int, float, Interval] | None:
    """How many attack scenarios there were, the rate at which they succeeded, and its interval."""
    found = [(1 - s.rate, s.cluster) for s in arm.scenarios if s.kind in ATTACKS and s.rate is not None]
    if not found:
        return None
    rates = [rate for rate, _ in found]
    return len(rates), sum(rates) / len(rates), rate_interval(rates, [cluster for _, cluster in found])


def _slower(trials: Sequence[Trial]) -> Interval | None:
    """Interval of how much longer the candidate's p95 is, in milliseconds; None if nothing can be paired."""
    times: dict[str, dict[str, list[float]]] = {arm: defaultdict(list) for arm in ARMS}
    for trial in trials:
        for _, reply in trial.transcript.played:
            if reply.failure is None:
                times[trial.unit.arm][trial.unit.scenario].append(reply.total_ms)
    candidate, baseline = (times[arm] for arm in ARMS)
    shared = [name for name in candidate if name in baseline]
    found = bootstrap_percentile_difference([candidate[n] for n in shared], [baseline[n] for n in shared])
    return None if math.isinf(found.low) else found


def _rate(name: str, arm: ArmSummary) -> Bar:
    low, high = arm.pass_rate_interval
    label = _VERSION.sub(r"\1, version \2", arm.target)
    return Bar(label, arm.pass_rate, name, f"{arm.pass_rate:.1%}  ({low:.0%} to {high:.0%})", low, high)


def _kinds(arms: Sequence[tuple[str, ArmSummary]]) -> list[Bar]:
    """Pass rate by kind of scenario; no interval, since a kind often has few scenarios."""
    kinds = list(dict.fromkeys(s.kind for _, arm in arms for s in arm.scenarios))
    found = []
    for kind in kinds:
        for name, arm in arms:
            rates = [s.rate for s in arm.scenarios if s.kind == kind and s.rate is not None]
            if rates:
                rate = sum(rates) / len(rates)
                label = f"{kind.replace('_', ' ')} ({len(rates)})" if name == "candidate" else ""
                found.append(Bar(label, rate, name, f"{rate:.0%}"))
    return found


def _errors(arms: Sequence[tuple[str, ArmSummary]]) -> list[Bar]:
    """The commonest error classes, as counts of turns."""
    names = list(dict.fromkeys(name for _, arm in arms for name in list(arm.errors)[:12]))
    most = max((count for _, arm in arms for count in arm.errors.values()), default=1)
    found = []
    for name in names:
        for side, arm in arms:
            count = arm.errors.get(name, 0)
            label = name.replace("_", " ") if side == "candidate" else ""
            found.append(Bar(label, count / most, side, f"{count} ({ERROR_CLASSES[name].severity})"))
    return found


def _rows(
    suite: Suite,
    arms: Sequence[tuple[str, ArmSummary]],
    trials: Sequence[Trial],
    kept: Sequence[Trial],
    comparison: Any,
) -> list[Row]:
    summaries = {name: {s.id: s for s in arm.scenarios} for name, arm in arms}
    verdicts: dict[tuple[str, str], list[bool | None]] = defaultdict(list)
    for trial in sorted(trials, key=lambda t: (t.unit.variant, t.unit.trial)):
        verdicts[trial.unit.arm, trial.unit.scenario].append(trial.score.passed)
    dialogues: dict[str, list[Trial]] = defaultdict(list)
    for trial in kept:
        dialogues[trial.unit.scenario].append(trial)
    rows = []
    for scenario in suite.scenarios:
        change = ""
        if comparison is not None:
            change = (
                "fixed" if scenario.id in comparison.fixed else "broken" if scenario.id in comparison.broken else ""
            )
        order = {"candidate": 0, "baseline": 1}
        rows.append(
            Row(
                id=scenario.id,
                title=scenario.title,
                kind=scenario.kind,
                candidate=summaries["candidate"].get(scenario.id),
                baseline=summaries.get("baseline", {}).get(scenario.id),
                squares={name: squares(verdicts[name, scenario.id]) for name, _ in arms},
                change=change,
                wanted={check.id: _wanted(check.scorer) for check in scenario.checks()},
                trials=sorted(dialogues[scenario.id], key=lambda t: (order[t.unit.arm], t.unit.variant, t.unit.trial)),
            )
        )
    return rows


def _wanted(scorer: Any) -> str:
    """The parameters of a check that differ from their defaults, short."""
    given = []
    for field in fields(scorer):
        value = getattr(scorer, field.name)
        if not field.init or value == field.default:
            continue
        told = ", ".join(map(_plain, value)) if isinstance(value, tuple) else _plain(value)
        given.append(told if field.name == "value" else f"{field.name} {told}")
    text = "; ".join(given)
    return text if len(text) <= 160 else text[:159] + "…"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _reply(trial: Trial, index: int) -> Markup:
    """A reply with the evidence of its checks, detectors and the final checks marked."""
    text = next(reply.text for exchange, reply in trial.transcript.played if exchange.index == index)
    score = next((t for t in trial.score.turns if t.index == index), None)
    marks = [Mark(g.evidence, "bad", f"{g.error}: {g.note}") for g in score.glitches] if score else []
    checks = [*(score.checks if score else ()), *trial.score.final]
    marks += [
        Mark(c.evidence, "bad" if c.verdict == "fail" else "good", f"{c.id}: {c.note}")
        for c in checks
        if c.verdict in ("pass", "fail")
    ]
    return marked(text, marks)


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}%"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _ms(value: float | None) -> str:
    if not value:
        return "–"
    return f"{value:.0f} ms" if value < 10_000 else f"{value / 1000:.1f} s"


def _when(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _usd(value: float | None) -> str:
    if value is None:
        return "–"
    return "0" if value == 0 else f"${value:.4f}" if value >= 0.0001 else f"${value:.2e}"
