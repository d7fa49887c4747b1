"""The scoreboard as people read it: the baseline beside the candidate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

from chatmill.cli.console import duration, table

Side = dict[str, Any]
Cell = Callable[[Side], str]
NONE = "-"


def _share(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f}%"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _with_interval(key: str) -> Cell:
    def cell(side: Side) -> str:
        low, high = side[f"{key}_interval"]
        return f"{_share(side[key])}  ({100 * low:.1f} to {100 * high:.1f})"

    return cell


def _pass_hat_k(side: Side) -> str:
    return _share(side["pass_hat_k"][-1]) if side["pass_hat_k"] else NONE


def _of(part: str, whole: str) -> Cell:
    def cell(side: Side) -> str:
        handover = side["handover"]
        return f"{handover[part]} of {handover[whole]}" if handover[whole] else NONE

    return cell


def _milliseconds(*keys: str) -> Cell:
    def cell(side: Side) -> str:
        latency = side["latency_ms"]
        nothing = latency is None or not any(latency[key] for key in keys)
        return NONE if nothing else " / ".join(f"{latency[key]:,.0f}" for key in keys) + " ms"

    return cell


def _at_once(side: Side) -> str:
    return str(side["latency_ms"]["concurrency"]) if side["latency_ms"] else NONE


def _price(side: Side) -> str:
    price = side["price_per_conversation_usd"]
    if price is None:
        return NONE
    return f"${price:.6f}" if price else "$0"


def _rows(board: dict[str, Any]) -> list[tuple[str, Cell]]:
    candidate = board["candidate"]
    trials = len(candidate["pass_hat_k"])
    rows: list[tuple[str, Cell]] = [
        ("pass rate (95% interval)", _with_interval("pass_rate")),
        (f"pass^{trials}" if trials else "pass^k", _pass_hat_k),
        ("mean score (0 to 100)", lambda side: f"{side['mean_score']:.1f}"),
    ]
    if candidate["mean_ratio"] is not None:
        rows.append(
            (
                "similarity / exact",
                lambda side: (
                    NONE if side["mean_ratio"] is None else f"{side['mean_ratio']:.1f} / {_share(side['exact_rate'])}"
                ),
            )
        )
    rows += [
        ("turns with a major error", _with_interval("turn_error_rate")),
        ("conversations with a major error", _with_interval("conversation_error_rate")),
        ("scenarios with a critical error", lambda side: str(side["critical_count"])),
        ("handovers missed", _of("missed", "expected")),
        ("handovers needless", _of("needless", "unexpected")),
        ("first token p50 / p95", _milliseconds("first_token_p50", "first_token_p95")),
        ("whole reply mean / p50 / p95 / p99", _milliseconds("total_mean", "total_p50", "total_p95", "total_p99")),
        ("conversations at once while timed", _at_once),
        ("price per conversation", _price),
        ("tokens read / written", lambda side: f"{side['tokens']['prompt']:,} / {side['tokens']['output']:,}"),
        ("scenarios x trials scored", lambda side: f"{side['scenario_count']} / {side['trial_count']}"),
    ]
    if any(side and (side["unscored_count"] or side["infra_count"]) for side in (candidate, board["baseline"])):
        rows.append(
            ("checks unscored / trials lost", lambda side: f"{side['unscored_count']} / {side['infra_count']}"),
        )
    if any(side and side.get("cut_history_count") for side in (candidate, board["baseline"])):
        rows.append(("replies without the beginning of the history", lambda side: str(side["cut_history_count"])))
    return rows


def show(board: dict[str, Any], console: Console) -> None:
    """Print the scoreboard of a recipe's run."""
    _table(board, f"Scoreboard of {board['name']}", console)
    for line in [*_verdict(board), *_ran(board)]:
        console.print(line, markup=False)


def show_scores(board: dict[str, Any], title: str, console: Console, written: Mapping[str, str]) -> None:
    """Print what one evaluation gives.

    Args:
        board: of `scoreboard.of_evaluation`; without `gate` where two evaluations are compared.
        title: what stands above.
        console: where to.
        written: kind of report to the file that it was written to.
    """
    _table(board, title, console)
    for line in [*_verdict(board), *(f"{kind:<8} {path}" for kind, path in written.items())]:
        console.print(line, markup=False)


def _table(board: dict[str, Any], title: str, console: Console) -> None:
    candidate, baseline = board["candidate"], board["baseline"]
    console.print()
    made = table("", *(["baseline>"] if baseline else []), "candidate>", title=title)
    if baseline:
        made.add_row("model", baseline["target"], candidate["target"])
    else:
        made.add_row("model", candidate["target"])
    for label, cell in _rows(board):
        made.add_row(label, *([cell(baseline)] if baseline else []), cell(candidate))
    console.print(made)
    console.print()


def _errors(side: Side) -> str:
    worst = sorted(side["errors"].items(), key=lambda entry: -entry[1])
    most = 5 if len(worst) == 5 else 4  # to say that there is one more takes as much room
    shown = ", ".join(f"{name} {count:,}" for name, count in worst[:most])
    return shown + (f" and {len(worst) - most} more kinds" if len(worst) > most else "")


def _verdict(board: dict[str, Any]) -> list[str]:
    lines = []
    if board["candidate"]["errors"]:
        lines.append(f"errors   of the candidate, by turns, minor ones included: {_errors(board['candidate'])}")
    comparison = board["comparison"]
    if comparison:
        low, high = comparison["difference_interval"]
        lines.append(
            f"verdict  {board['verdict'] or NONE}: {_points(comparison['difference'])} points "
            f"(95% interval {_points(low)} to {_points(high)}, p = {comparison['p_value']:.2g}); "
            f"{len(comparison['fixed'])} fixed, {len(comparison['broken'])} broken, "
            f"{comparison['both_fail_count']} fail on both sides"
        )
        if board["verdict"] in ("too few scenarios", "no clear difference"):
            needed = comparison["scenarios_needed"]
            lines.append(
                f"         this many scenarios can show {_points(comparison['detectable_difference'])} points"
                + (f"; {needed:,} more would show the difference seen" if needed else "")
            )
    if "gate" in board:
        lines.append(f"gate     {board['gate']['state']}")
        lines += [
            f"         {'ok  ' if condition['passed'] else 'FAIL'}  {condition['condition']}: {condition['seen']}"
            for condition in board["gate"]["conditions"]
        ]
    if board["candidate"]["price_note"]:
        lines.append(f"price    {board['candidate']['price_note']}")
    return lines


def _ran(board: dict[str, Any]) -> list[str]:
    lines = []
    if board["promoted"]:
        lines.append(f"promoted {board['promoted']['alias']} -> {board['promoted']['model']}")
    lines.append(f"model    {board['model']}")
    times = ", ".join(
        f"{name} {'unchanged' if step['reused'] else duration(step['seconds'])}"
        for name, step in board["steps"].items()
    )
    lines.append(f"time     {duration(board['seconds'])} ({times})")
    memory = (board.get("machine") or {}).get("peak_memory_bytes")
    if memory:
        lines.append(f"memory   {memory / 2**30:.2f} GiB at its highest, all services together")
    lines.append(f"report   {board['report']}")
    lines.append(f"scores   {board['scoreboard']}")
    return lines
