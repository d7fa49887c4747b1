"""The scoreboard: what a run found, as JSON for programs. `docs/recipe.md` lists the keys.

Rates are shares from 0 to 1, times in milliseconds unless the key says seconds; what was not measured is null.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from chatmill.eval.v1 import Evaluation, GateState, Interval, LatencyScore, Score, Verdict

SCHEMA = 1
VERDICTS = {
    Verdict.VERDICT_BETTER: "better",
    Verdict.VERDICT_WORSE: "worse",
    Verdict.VERDICT_NO_CLEAR_DIFFERENCE: "no clear difference",
    Verdict.VERDICT_TOO_FEW_SCENARIOS: "too few scenarios",
}
GATES = {
    GateState.GATE_STATE_PASSED: "passed",
    GateState.GATE_STATE_FAILED: "failed",
    GateState.GATE_STATE_INVALID: "invalid",
}
EXIT_CODES = {"passed": 0, "failed": 1, "invalid": 2}
"""State of the gate to the exit code of `chatmill run`."""


def of_evaluation(evaluation: Evaluation) -> dict[str, Any]:
    """The part of the scoreboard that an evaluation gives: both sides, comparison, verdict, gate."""
    board: dict[str, Any] = {
        "evaluation": evaluation.name,
        "suite": evaluation.suite,
        "suite_digest": evaluation.suite_digest,
        "candidate": of_score(evaluation.candidate),
        "baseline": of_score(evaluation.baseline) if evaluation.HasField("baseline") else None,
        "comparison": None,
        "verdict": None,
    }
    if evaluation.HasField("comparison"):
        seen = evaluation.comparison
        board["verdict"] = VERDICTS.get(seen.verdict)
        board["comparison"] = {
            "difference": seen.difference,
            "difference_interval": _interval(seen.difference_interval),
            "p_value": seen.p_value,
            "fixed": list(seen.fixed),
            "broken": list(seen.broken),
            "both_fail_count": seen.both_fail_count,
            "detectable_difference": seen.detectable_difference,
            "scenarios_needed": seen.scenarios_needed,
        }
    board["gate"] = {
        "state": GATES.get(evaluation.gate.state, "invalid"),
        "conditions": [
            {"condition": c.condition, "seen": c.seen, "passed": c.passed} for c in evaluation.gate.conditions
        ],
    }
    return board


def of_score(score: Score) -> dict[str, Any]:
    """One side."""
    handover = score.handover
    return {
        "target": score.target,
        "scenario_count": score.scenario_count,
        "trial_count": score.trial_count,
        "pass_rate": score.pass_rate,
        "pass_rate_interval": _interval(score.pass_rate_interval),
        "pass_hat_k": list(score.pass_hat_k),
        "mean_score": score.mean_score,
        "turn_error_rate": score.turn_error_rate,
        "turn_error_rate_interval": _interval(score.turn_error_rate_interval),
        "conversation_error_rate": score.conversation_error_rate,
        "conversation_error_rate_interval": _interval(score.conversation_error_rate_interval),
        "critical_count": score.critical_count,
        "critical_rate": score.critical_rate,
        "critical_rate_bound": score.critical_rate_bound,
        "glitch_rate": score.glitch_rate,
        "flaky_count": score.flaky_count,
        "robustness": _optional(score, "robustness"),
        "errors": dict(sorted(score.errors.items())),
        "unscored_count": score.unscored_count,
        "unscored_trial_count": score.unscored_trial_count,
        "infra_count": score.infra_count,
        "handover": {
            "expected": handover.expected_count,
            "missed": handover.missed_count,
            "unexpected": handover.unexpected_count,
            "needless": handover.needless_count,
        },
        "latency_ms": _latency(score.latency) if score.HasField("latency") else None,
        "latency_under_load_ms": _latency(score.latency_under_load) if score.HasField("latency_under_load") else None,
        "cut_history_count": score.cut_history_count,
        "tokens": {"prompt": score.prompt_tokens, "output": score.output_tokens},
        "price_per_conversation_usd": _optional(score, "price_per_conversation_usd"),
        "price_note": score.price_note,
        "mean_ratio": _optional(score, "mean_ratio"),
        "exact_rate": _optional(score, "exact_rate"),
    }


def _latency(latency: LatencyScore) -> dict[str, float]:
    return {
        "first_token_p50": latency.first_token_p50_ms,
        "first_token_p95": latency.first_token_p95_ms,
        "total_mean": latency.total_mean_ms,
        "total_p50": latency.total_p50_ms,
        "total_p95": latency.total_p95_ms,
        "total_p99": latency.total_p99_ms,
        "concurrency": latency.concurrency,
        "replies": latency.reply_count,
    }


def _interval(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


def _optional(score: Score, field: Any) -> float | None:
    return getattr(score, field) if score.HasField(field) else None


def exit_code(board: dict[str, Any]) -> int:
    """0 gate passed, 1 gate failed, 2 the evaluation says nothing."""
    return EXIT_CODES[board["gate"]["state"]]


def write(board: dict[str, Any], path: Path) -> None:
    """Write the scoreboard, all at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(board, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)
