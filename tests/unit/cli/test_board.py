"""The scoreboard and the steps as they print."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from chatmill.cli import board
from chatmill.cli.console import Steps, duration
from chatmill.recipe.observer import Progress, StepResult


def side(rate: float, **changes: Any) -> dict[str, Any]:
    made = {
        "target": f"model-{rate}",
        "scenario_count": 65,
        "trial_count": 195,
        "pass_rate": rate,
        "pass_rate_interval": [rate - 0.05, rate + 0.05],
        "pass_hat_k": [rate, rate**2, rate**3],
        "mean_score": 100 * rate,
        "turn_error_rate": 0.1,
        "turn_error_rate_interval": [0.05, 0.15],
        "conversation_error_rate": 0.2,
        "conversation_error_rate_interval": [0.1, 0.3],
        "critical_count": 3,
        "errors": {"context_lost": 2, "empty": 40},
        "unscored_count": 0,
        "infra_count": 0,
        "handover": {"expected": 9, "missed": 2, "unexpected": 56, "needless": 0},
        "latency_ms": {
            "first_token_p50": 21.4,
            "first_token_p95": 40,
            "total_mean": 150,
            "total_p50": 100,
            "total_p95": 1234.5,
            "total_p99": 2000,
            "concurrency": 1,
        },
        "price_per_conversation_usd": None,
        "price_note": "",
        "tokens": {"prompt": 12345, "output": 678},
        "mean_ratio": None,
        "exact_rate": None,
    }
    return made | changes


def whole(**changes: Any) -> dict[str, Any]:
    made = {
        "name": "fern",
        "candidate": side(0.9),
        "baseline": side(0.1),
        "comparison": {
            "difference": 0.8,
            "difference_interval": [0.7, 0.9],
            "p_value": 0.00001,
            "fixed": ["a"] * 50,
            "broken": [],
            "both_fail_count": 5,
            "detectable_difference": 0.2,
            "scenarios_needed": 0,
        },
        "verdict": "better",
        "gate": {"state": "failed", "conditions": [{"condition": "pass rate >= 95%", "seen": "90%", "passed": False}]},
        "promoted": None,
        "model": "models/fern/versions/1",
        "steps": {"dataset": {"seconds": 0.1, "reused": True}, "train": {"seconds": 100.0, "reused": False}},
        "seconds": 130.0,
        "machine": {"peak_memory_bytes": 3 * 2**30},
        "report": "/home/report.html",
        "scoreboard": "/home/scoreboard.json",
    }
    return made | changes


def printed(values: dict[str, Any]) -> str:
    out = io.StringIO()
    board.show(values, Console(file=out, width=120, highlight=False))
    return out.getvalue()


def row(text: str, label: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(label))
    return line[len(label) :].split("  ") if "  " in line else [line]


def test_baseline_stands_beside_candidate() -> None:
    text = printed(whole())
    line = next(line for line in text.splitlines() if line.startswith("pass rate"))
    assert line.index("10.0%  (5.0 to 15.0)") < line.index("90.0%  (85.0 to 95.0)")
    assert "72.9%" in next(line for line in text.splitlines() if line.startswith("pass^3"))
    assert "2 of 9" in next(line for line in text.splitlines() if line.startswith("handovers missed"))
    assert "21 / 40 ms" in text
    assert "verdict  better: +80.0 points (95% interval +70.0 to +90.0, p = 1e-05); 50 fixed, 0 broken, 5 fail" in text
    assert "errors   of the candidate, by turns, minor ones included: empty 40, context_lost 2" in text
    assert "gate     failed" in text
    assert "FAIL  pass rate >= 95%: 90%" in text
    assert "2 min 10 s (dataset unchanged, train 1 min 40 s)" in text
    assert "3.00 GiB" in text
    assert "/home/report.html" in text


def test_what_was_not_measured_is_a_dash() -> None:
    text = printed(whole(candidate=side(0.9, latency_ms=None, pass_hat_k=[]), machine={}))
    assert next(line for line in text.splitlines() if line.startswith("price")).split() == [
        "price",
        "per",
        *["conversation", "-", "-"],
    ]
    assert "GiB" not in text


def test_a_price_is_shown_with_where_it_comes_from() -> None:
    own = {"price_per_conversation_usd": 0.0, "price_note": "served on your own machine"}
    text = printed(whole(candidate=side(0.9, **own), baseline=side(0.1, price_per_conversation_usd=0.00125)))
    cells = next(line for line in text.splitlines() if line.startswith("price per")).split()
    assert cells[-2:] == ["$0.001250", "$0"]
    assert "price    served on your own machine" in text


def test_without_a_baseline_there_is_one_column() -> None:
    text = printed(whole(baseline=None, comparison=None, verdict=None))
    assert "baseline" not in text
    assert "verdict" not in text
    assert "90.0%" in text


def test_too_few_scenarios_say_what_they_can_show() -> None:
    values = whole(verdict="too few scenarios")
    values["comparison"]["scenarios_needed"] = 1200
    assert "1,200 more would show the difference seen" in printed(values)


def test_replay_shows_similarity() -> None:
    text = printed(
        whole(
            candidate=side(0.9, mean_ratio=61.25, exact_rate=0.125), baseline=side(0.1, mean_ratio=20.0, exact_rate=0.0)
        )
    )
    assert "61.2 / 12.5%" in text


def test_lost_trials_are_shown() -> None:
    assert "trials lost" not in printed(whole())
    assert "4 / 2" in printed(whole(candidate=side(0.9, unscored_count=4, infra_count=2)))


def test_without_a_terminal_steps_are_plain_lines() -> None:
    out = io.StringIO()
    with Steps(Console(file=out, width=120, markup=False)) as steps:
        steps.began("train", "lora on [base]")
        steps.progress("train", Progress(1, 10, "loss 1.0"))
        steps.note("train", "something [odd]")
        steps.ended(StepResult("train", "models/fern/versions/1", False, 75))
        steps.ended(StepResult("evaluate", "evaluations/1", True, 0.1))
    assert out.getvalue().splitlines() == [
        "train     lora on [base] ...",
        "train     note: something [odd]",
        "train     models/fern/versions/1 (1 min 15 s)",
        "evaluate  evaluations/1 (already there, inputs unchanged)",
    ]


def test_in_a_terminal_steps_have_bars() -> None:
    out = io.StringIO()
    with Steps(Console(file=out, width=120, force_terminal=True, color_system=None)) as steps:
        steps.began("train", "lora")
        steps.progress("train", Progress(5, 10, "loss 1.0 [x]"))
        assert steps._live is not None
        steps._live.refresh()
        steps.ended(StepResult("train", "done", False, 3))
    assert "50%" in out.getvalue()
    assert "loss 1.0 [x]" in out.getvalue()
    assert "done (3.0 s)" in out.getvalue()


def test_durations() -> None:
    assert [duration(s) for s in (0.04, 9.96, 59.4, 60, 3599, 3700)] == [
        "0.0 s",
        "10.0 s",
        "59 s",
        "1 min 00 s",
        "59 min 59 s",
        "1 h 01 min",
    ]
