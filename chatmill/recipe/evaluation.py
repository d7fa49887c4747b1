"""The step that scores: candidate beside baseline on the recipe's suite."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterable, Callable
from pathlib import Path
from typing import Any

from chatmill import paging
from chatmill.common.v1 import JobState
from chatmill.dataset.v1 import Dataset
from chatmill.errors import Aborted
from chatmill.eval.v1 import (
    Evaluation,
    EvaluationEvent,
    EvaluationSpec,
    ExportReportRequest,
    Gate,
    ListEvaluationsRequest,
    ReplaySuite,
    ReportFormat,
    RunEvaluationRequest,
    Target,
    WatchEvaluationRequest,
)
from chatmill.factory.v1 import GetModelRequest, Model
from chatmill.recipe import fingerprint
from chatmill.recipe.definition import Recipe
from chatmill.recipe.mesh import FOREVER, Followed, Mesh
from chatmill.recipe.observer import Observer, Progress
from chatmill.recipe.reading import model_name
from chatmill.recipe.steps import Made, blamed_on, seconds

STEP = "evaluate"


async def evaluate(
    recipe: Recipe,
    mesh: Mesh,
    observer: Observer,
    dataset: Dataset,
    candidate: Model,
    base: Model | None,
    *,
    force: bool,
) -> tuple[Evaluation, Made]:
    """The evaluation of `candidate` beside the baseline: found by the digest of its inputs, else run.

    Raises:
        Aborted: the evaluation failed or was cancelled; the message says why.
        ChatmillError: as `RunEvaluation` documents.
    """
    baseline = base
    if recipe.baseline:
        with blamed_on(recipe, "baseline"):
            baseline = (await mesh.registry.GetModel(GetModelRequest(name=recipe.baseline))).model
    assert baseline is not None  # reading refuses a recipe without a base that names no baseline
    spec = _spec(recipe, dataset, candidate, baseline)
    inputs = fingerprint.of(
        {
            "suite": (await _checked(mesh, spec)).suite_digest,
            "candidate": candidate.revision or candidate.name,
            "baseline": baseline.revision or baseline.name,
            "spec": spec.SerializeToString(deterministic=True).hex(),
        }
    )
    spec.labels[fingerprint.LABEL] = inputs
    spec.labels[fingerprint.RECIPE_LABEL] = recipe.name
    if not force:
        found = await _find(mesh, inputs, JobState.JOB_STATE_SUCCEEDED)
        if found is not None:
            return found, Made(_summary(found), reused=True)
    running = None if force else await _find(mesh, inputs, JobState.JOB_STATE_RUNNING)
    if running is not None:
        observer.note("evaluate", f"{running.name} is at work on exactly this since an earlier run; following it")
    request = RunEvaluationRequest(spec=spec, request_id=str(uuid.uuid4()))
    with blamed_on(recipe, "suite"):
        done = _succeeded(
            await follow(
                mesh,
                observer,
                None if running else request,
                name=running.name if running else "",
                left=lambda name: f"{name} goes on as long as its mesh does; a later run picks it up",
            )
        )
    return done, Made(_summary(done), reused=False)


def _spec(recipe: Recipe, dataset: Dataset, candidate: Model, baseline: Model | None) -> EvaluationSpec:
    suite, gate = recipe.suite, recipe.gate
    spec = EvaluationSpec(
        candidate=Target(model=candidate.name),
        baseline=Target(model=baseline.name) if baseline else None,
        trials=recipe.trials,
        seed=suite.seed,
        concurrency=suite.concurrency,
        system_prompt=recipe.card.render(),
        gate=Gate(
            min_pass_rate=gate.min_pass_rate,
            min_difference=gate.min_difference,
            min_pass_hat_k=gate.min_pass_hat_k,
            max_critical=gate.max_critical,
        ),
        tags=suite.tags,
        max_output_tokens=suite.max_output_tokens,
        temperature=suite.temperature,
        policies={policy.id: policy.text for policy in recipe.card.policies},
    )
    if suite.judge:
        spec.judge.target.model = model_name(suite.judge)
    if suite.customer:
        spec.customer.model = model_name(suite.customer)
    if suite.turn_timeout_seconds is not None:
        spec.turn_timeout.FromMilliseconds(round(suite.turn_timeout_seconds * 1000))
    if gate.max_p95_ms is not None:
        spec.gate.max_p95_latency.FromMicroseconds(round(gate.max_p95_ms * 1000))
    if suite.replay is not None:
        spec.replay_suite.CopyFrom(
            ReplaySuite(
                dataset=dataset.name,
                max_conversations=suite.replay.max_conversations,
                max_turns=suite.replay.max_turns,
                pass_ratio=suite.replay.pass_ratio,
            )
        )
    else:
        spec.scenario_suite = suite.path
    return spec


async def check_suite(recipe: Recipe, mesh: Mesh, stand_in: str) -> None:
    """Have the eval service read the recipe's scenarios, so that a mistake in one isn't found after the training.

    A replay suite is not checked: its dataset may not be there yet, and there is nothing in it to mistype.

    Args:
        recipe: the recipe.
        mesh: who checks.
        stand_in: resource name of a model that exists, in the place of the one to be trained.

    Raises:
        InvalidArgument: names the scenario's file and line.
        ChatmillError: as `RunEvaluation` documents.
    """
    if recipe.suite.replay is None:
        with blamed_on(recipe, "suite"):
            await _checked(mesh, _spec(recipe, Dataset(), Model(name=stand_in), None))


async def _checked(mesh: Mesh, spec: EvaluationSpec) -> Evaluation:
    return await first(mesh, RunEvaluationRequest(spec=spec, validate_only=True))


async def first(mesh: Mesh, request: RunEvaluationRequest) -> Evaluation:
    """The evaluation as it was accepted, or only checked; it is not followed.

    Raises:
        Aborted: no answer came.
        ChatmillError: as `RunEvaluation` documents.
    """
    async for response in mesh.evals.RunEvaluation(request):
        if response.HasField("evaluation"):
            return response.evaluation
    raise Aborted("the eval service ended without an answer; run the same command again")


async def _find(mesh: Mesh, inputs: str, state: Any) -> Evaluation | None:
    request = ListEvaluationsRequest(page_size=200, state=state)
    async for page in paging.every(mesh.evals.ListEvaluations, request):
        for evaluation in page.evaluations:  # newest first
            if evaluation.spec.labels.get(fingerprint.LABEL) == inputs:
                return evaluation
    return None


async def follow(
    mesh: Mesh, observer: Observer, request: RunEvaluationRequest | None, *, name: str, left: Callable[[str], str]
) -> Evaluation:
    """The evaluation when it has ended, well or not; meanwhile its progress.

    Args:
        mesh: who evaluates.
        observer: told of progress, warnings and lost connections under the step `evaluate`.
        request: what to start; None follows `name`.
        name: resource name of an evaluation that is at work already; empty if it is to be started.
        left: what to tell, of its name, where following is broken off and the evaluation is not.

    Raises:
        Aborted: its stream ended without a result.
        ChatmillError: as `RunEvaluation` and `WatchEvaluation` document.
    """

    def start() -> AsyncIterable[Any]:
        if request is None:
            raise Aborted(f"{name} has no stream to follow; run the same command again")
        return mesh.evals.RunEvaluation(request, timeout=FOREVER)

    followed: Followed[EvaluationEvent] = Followed(
        service="eval",
        start=start,
        watch=lambda known, after: mesh.evals.WatchEvaluation(
            WatchEvaluationRequest(name=known, after_sequence=after), timeout=FOREVER
        ),
        resource="evaluation",
        broken=lambda text: observer.note(STEP, text),
        name=name,
    )
    try:
        async for event in followed.events():
            if event.HasField("progress"):
                observer.progress(STEP, _progress(event))
            elif event.HasField("warning"):
                observer.note(STEP, event.warning)
            elif event.HasField("finished"):
                return event.finished
    except asyncio.CancelledError:
        if followed.name:
            observer.note(STEP, left(followed.name))
        raise
    raise Aborted("the eval service ended without a result; run the same command again")


def _progress(event: EvaluationEvent) -> Progress:
    seen = event.progress
    text = (
        f"{seen.done:,} of {seen.total:,} done, {seen.passed:,} passed, {seen.errors:,} with errors, "
        f"{seconds(seen.seconds_left)} left"
    )
    return Progress(seen.done, seen.total, text)


def _succeeded(evaluation: Evaluation) -> Evaluation:
    if evaluation.state == JobState.JOB_STATE_SUCCEEDED:
        return evaluation
    if evaluation.state == JobState.JOB_STATE_FAILED:
        raise Aborted(f"{evaluation.name} failed: {evaluation.error.message}", reason="EVALUATION_FAILED")
    raise Aborted(f"{evaluation.name} was cancelled; run the same command again", reason="EVALUATION_CANCELLED")


def _summary(evaluation: Evaluation) -> str:
    score = evaluation.candidate
    return f"{evaluation.name}: {score.pass_rate:.1%} of {score.scenario_count} scenarios passed"


async def export_report(mesh: Mesh, evaluation: str, path: Path) -> None:
    """Write the evaluation's HTML report to `path`, all at once, so that a report there stays whole until then.

    Raises:
        ChatmillError: as `ExportReport` documents.
    """
    request = ExportReportRequest(name=evaluation, format=ReportFormat.REPORT_FORMAT_HTML)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            async for piece in mesh.evals.ExportReport(request):
                file.write(piece.content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
