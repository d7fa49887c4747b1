"""What came out: scoreboards, lists, comparisons, rescoring, report files."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from chatmill import paging
from chatmill.cli import board as boards
from chatmill.cli import console as consoles
from chatmill.cli import settings
from chatmill.cli.meshes import found_or_started
from chatmill.common.v1 import JobState
from chatmill.errors import Aborted, InvalidArgument
from chatmill.eval.v1 import (
    CancelEvaluationRequest,
    CompareEvaluationsRequest,
    Evaluation,
    ExportReportRequest,
    GetEvaluationRequest,
    ListEvaluationsRequest,
    ListSuitesRequest,
    ReportFormat,
    RescoreRequest,
)
from chatmill.recipe import scoreboard
from chatmill.recipe.mesh import FOREVER, Mesh, connected

STATES: dict[int, str] = {
    JobState.JOB_STATE_QUEUED: "queued",
    JobState.JOB_STATE_RUNNING: "running",
    JobState.JOB_STATE_SUCCEEDED: "succeeded",
    JobState.JOB_STATE_FAILED: "failed",
    JobState.JOB_STATE_CANCELLING: "cancelling",
    JobState.JOB_STATE_CANCELLED: "cancelled",
}
AT_WORK = frozenset((JobState.JOB_STATE_QUEUED, JobState.JOB_STATE_RUNNING, JobState.JOB_STATE_CANCELLING))
REPORTS: dict[str, ReportFormat.ValueType] = {
    "html": ReportFormat.REPORT_FORMAT_HTML,
    "junit": ReportFormat.REPORT_FORMAT_JUNIT,
    "jsonl": ReportFormat.REPORT_FORMAT_JSONL,
}
"""Option to the form of the report that it names a file for."""


def evaluation_name(text: str) -> str:
    """`evaluations/{id}` from that or from the id alone."""
    return text if text.startswith("evaluations/") else f"evaluations/{text}"


def short(name: str) -> str:
    """The id alone."""
    return name.removeprefix("evaluations/")


@asynccontextmanager
async def evals(arguments: argparse.Namespace) -> AsyncIterator[Mesh]:
    """The mesh with its eval service, for commands that ask one thing."""
    config = settings.load(arguments)
    async with (
        found_or_started(arguments, config, consoles.stderr(), services=("eval",)) as found,
        connected(found.config, services=("eval",)) as mesh,
    ):
        yield mesh


async def finish(arguments: argparse.Namespace, mesh: Mesh, evaluation: Evaluation) -> int:
    """Print the scoreboard, write the files that were asked for; the exit code of the gate.

    Raises:
        Aborted: the evaluation failed before anything was scored; the message says why.
    """
    if evaluation.state == JobState.JOB_STATE_FAILED and not evaluation.HasField("candidate"):
        raise Aborted(f"{evaluation.name} failed: {evaluation.error.message}")
    written = await write_reports(arguments, mesh, evaluation)
    board = scoreboard.of_evaluation(evaluation)
    boards.show_scores(board, f"{evaluation.name} ({evaluation.suite})", consoles.stdout(), written)
    if evaluation.state == JobState.JOB_STATE_FAILED:
        consoles.stderr().print(f"error: the run failed: {evaluation.error.message}", markup=False)
        return 2
    return scoreboard.exit_code(board)


async def write_reports(arguments: argparse.Namespace, mesh: Mesh, evaluation: Evaluation) -> dict[str, str]:
    """Write each file that an option names; kind of report to path."""
    written = {}
    for kind, form in REPORTS.items():
        path: Path | None = getattr(arguments, kind, None)
        if path is not None:
            request = ExportReportRequest(name=evaluation.name, format=form)
            pieces = [piece.content async for piece in mesh.evals.ExportReport(request, timeout=FOREVER)]
            _write(path, b"".join(pieces))
            written[kind] = str(path)
    if isinstance(getattr(arguments, "json", None), Path):
        text = json.dumps(summary(evaluation), indent=2, ensure_ascii=False) + "\n"
        _write(arguments.json, text.encode())
        written["json"] = str(arguments.json)
    return written


def _write(path: Path, content: bytes) -> None:
    """All at once, so that a file that was there stays whole until then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """What `--json` writes; docs/evaluation.md lists the keys. Without a baseline, what compares is null."""
    score, compared = evaluation.candidate, evaluation.HasField("comparison")
    seen = evaluation.comparison
    return {
        "model": score.target,
        "baseline": evaluation.baseline.target if evaluation.HasField("baseline") else None,
        "verdict": scoreboard.VERDICTS.get(seen.verdict) if compared else None,
        "difference": seen.difference if compared else None,
        "interval": [seen.difference_interval.low, seen.difference_interval.high] if compared else None,
        "p_value": seen.p_value if compared else None,
        "pass_rate": score.pass_rate,
        "pass_hat_k": list(score.pass_hat_k),
        "error_rate": score.turn_error_rate,
        "critical": score.critical_count,
        "unscored": score.unscored_count,
        "infra": score.infra_count,
        "gate": scoreboard.GATES.get(evaluation.gate.state, "invalid"),
    }


async def listed(arguments: argparse.Namespace) -> int:
    """All evaluations."""
    names = {name: state for state, name in STATES.items()}
    if arguments.state and arguments.state not in names:
        raise InvalidArgument(f"--state {arguments.state}: there is no such state; known: {', '.join(names)}")
    request = ListEvaluationsRequest(page_size=200)
    if arguments.state:
        request.state = names[arguments.state]  # type: ignore[assignment]
    async with evals(arguments) as mesh:
        pages = paging.every(mesh.evals.ListEvaluations, request)
        found = [one async for page in pages for one in page.evaluations]
    if arguments.json:
        consoles.print_json([{"evaluation": e.name, "state": _state(e), **summary(e)} for e in found])
        return 0
    made = consoles.table(
        "evaluation", "suite", "candidate", "baseline", "state", "pass rate>", "verdict", "gate", "made"
    )
    for e in found:
        made.add_row(
            short(e.name),
            e.suite,
            e.candidate.target or e.spec.candidate.model or e.spec.candidate.openai.model,
            e.baseline.target or "-",
            _state(e),
            f"{e.candidate.pass_rate:.1%}" if e.HasField("candidate") else "-",
            scoreboard.VERDICTS.get(e.comparison.verdict, "-"),
            scoreboard.GATES.get(e.gate.state, "-"),
            e.create_time.ToDatetime().strftime("%Y-%m-%d %H:%M"),
        )
    consoles.stdout().print(
        made if found else "There are no evaluations yet; `chatmill eval run SUITE --model M` makes one."
    )
    return 0


def _state(evaluation: Evaluation) -> str:
    if evaluation.state == JobState.JOB_STATE_RUNNING and evaluation.progress.total:
        return f"running, {evaluation.progress.done / evaluation.progress.total:.0%}"
    return STATES.get(int(evaluation.state), "?")


async def show(arguments: argparse.Namespace) -> int:
    """The scoreboard of one evaluation."""
    async with evals(arguments) as mesh:
        request = GetEvaluationRequest(name=evaluation_name(arguments.evaluation))
        evaluation = (await mesh.evals.GetEvaluation(request)).evaluation
    if arguments.json:
        consoles.print_json({"state": _state(evaluation), **scoreboard.of_evaluation(evaluation)})
    elif evaluation.HasField("candidate"):
        title = f"{evaluation.name} ({evaluation.suite})"
        boards.show_scores(scoreboard.of_evaluation(evaluation), title, consoles.stdout(), {})
    else:
        print(f"{evaluation.name} is {_state(evaluation)} and has no scores yet. {evaluation.error.message}".rstrip())
    if not evaluation.HasField("candidate"):
        return 2 if evaluation.state == JobState.JOB_STATE_FAILED else 0
    return scoreboard.exit_code(scoreboard.of_evaluation(evaluation))


async def compare(arguments: argparse.Namespace) -> int:
    """The candidates of two evaluations."""
    async with evals(arguments) as mesh:
        request = CompareEvaluationsRequest(
            candidate=evaluation_name(arguments.candidate), baseline=evaluation_name(arguments.baseline)
        )
        answer = await mesh.evals.CompareEvaluations(request)
    board = scoreboard.of_evaluation(
        Evaluation(
            name=request.candidate,
            candidate=answer.candidate,
            baseline=answer.baseline,
            comparison=answer.comparison,
        )
    )
    del board["gate"]  # a comparison has none
    if arguments.json:
        consoles.print_json(board)
    else:
        boards.show_scores(board, f"{short(request.candidate)} beside {short(request.baseline)}", consoles.stdout(), {})
    return 0


async def rescore(arguments: argparse.Namespace) -> int:
    """Score again; the exit code of the gate as it is then."""
    async with evals(arguments) as mesh:
        request = RescoreRequest(name=evaluation_name(arguments.evaluation))
        answer = await mesh.evals.Rescore(request, timeout=FOREVER)
        consoles.stderr().print(f"{answer.changed_count:,} verdicts changed", markup=False)
        return await finish(arguments, mesh, answer.evaluation)


async def cancel(arguments: argparse.Namespace) -> int:
    """Ask an evaluation to stop."""
    async with evals(arguments) as mesh:
        request = CancelEvaluationRequest(name=evaluation_name(arguments.evaluation))
        answer = await mesh.evals.CancelEvaluation(request)
    print(f"{answer.evaluation.name}: {_state(answer.evaluation)}")
    return 0


async def report(arguments: argparse.Namespace) -> int:
    """Write the reports of an evaluation."""
    if not any(getattr(arguments, kind) for kind in (*REPORTS, "json")):
        raise InvalidArgument("name at least one file to write: --html, --junit, --jsonl or --json FILE")
    async with evals(arguments) as mesh:
        request = GetEvaluationRequest(name=evaluation_name(arguments.evaluation))
        evaluation = (await mesh.evals.GetEvaluation(request)).evaluation
        for path in (await write_reports(arguments, mesh, evaluation)).values():
            print(path)
    return 0


async def suites(arguments: argparse.Namespace) -> int:
    """The suites that are installed."""
    async with evals(arguments) as mesh:
        found = (await mesh.evals.ListSuites(ListSuitesRequest())).suites
    if arguments.json:
        keys = ("name", "version", "digest", "scenario_count", "description")
        consoles.print_json([{key: getattr(suite, key) for key in keys} for suite in found])
        return 0
    made = consoles.table("suite", "version", "scenarios>", "what for")
    for suite in found:
        made.add_row(suite.name.removeprefix("suites/"), suite.version, str(suite.scenario_count), suite.description)
    consoles.stdout().print(made)
    return 0
