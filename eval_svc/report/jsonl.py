"""JSONL: an object per dialogue, a line each, made to be read by pandas or `jq`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from eval_svc.evaluations import Evaluation
from eval_svc.result import Trial
from eval_svc.suite import Suite


def render_jsonl(evaluation: Evaluation, suite: Suite, trials: list[Trial]) -> bytes:
    """All dialogues with all that was found in them, in order of scenario, trial, wording and side."""
    scenarios = {s.id: s for s in suite.scenarios}
    lines = []
    for trial in trials:
        scenario = scenarios[trial.unit.scenario]
        head = {
            "evaluation": evaluation.name,
            "suite": suite.id,
            "suite_digest": evaluation.record.suite_digest,
            "grader": evaluation.record.grader,
            "target": evaluation.record.targets[trial.unit.arm],
            "kind": scenario.kind,
            "severity": scenario.severity,
            "tags": scenario.tags,
            "source": dict(scenario.source),
        }
        lines.append(json.dumps(head | _trial(trial), ensure_ascii=False, default=str))
    return ("\n".join(lines) + "\n").encode() if lines else b""


def _trial(trial: Trial) -> dict[str, Any]:
    score = asdict(trial.score)
    scored = {turn["index"]: turn for turn in score.pop("turns")}
    unit = score.pop("unit")
    turns = []
    for exchange, reply in trial.transcript.played:
        turn = {"index": exchange.index, "user": exchange.user, **asdict(reply)}
        turns.append(turn | {k: v for k, v in scored.get(exchange.index, {}).items() if k != "index"})
    errors = [asdict(error) for error in trial.score.errors()]
    whole: dict[str, Any] = unit | score | {"system": trial.transcript.system, "turns": turns, "errors": errors}
    return whole
