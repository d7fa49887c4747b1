"""The steps of a run, each a client of one service; what each one makes carries a digest of what it was made from.

A step whose digest is found on something that exists is not done again. Nothing is kept beside the services' own
resources, so it makes no difference which machine ran the recipe before.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.struct_pb2 import Struct

from chatmill import paging
from chatmill.common.v1 import JobState
from chatmill.dataset.v1 import CreateDatasetRequest, Dataset, GetDatasetRequest, Split
from chatmill.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)
from chatmill.factory.v1 import (
    GetModelRequest,
    ListModelsRequest,
    ListTrainingJobsRequest,
    Model,
    ModelSource,
    RegisterModelRequest,
    SetAliasRequest,
    TrainingEvent,
    TrainingJob,
    TrainingSpec,
    TrainRequest,
    WatchTrainingJobRequest,
)
from chatmill.recipe import fingerprint
from chatmill.recipe.definition import Recipe
from chatmill.recipe.mesh import FOREVER, Followed, Mesh
from chatmill.recipe.observer import Observer, Progress
from chatmill.recipe.reading import model_name


@dataclass(frozen=True, slots=True)
class Made:
    """What a step made or found.

    Attributes:
        summary: for people.
        reused: whether it was there already.
    """

    summary: str
    reused: bool


@contextmanager
def blamed_on(recipe: Recipe, key: str) -> Iterator[None]:
    """An error that a service raises about the value at `key` names the line where the value was written."""
    try:
        yield
    except (NotFound, InvalidArgument, PermissionDenied, FailedPrecondition, AlreadyExists) as error:
        fields = [violation.field for violation in getattr(error, "violations", ())]
        if fields and all("parameters" in field.split(".") for field in fields):
            key = f"{key.split('.')[0]}.parameters"
        error.message = f"{recipe.where(key)}: {error.message}"
        error.args = (error.message,)
        raise


def struct(values: dict[str, Any]) -> Struct:
    """`values` as a protobuf Struct."""
    made = Struct()
    made.update(values)
    return made


async def make_dataset(recipe: Recipe, mesh: Mesh, observer: Observer, *, force: bool) -> tuple[Dataset, Made]:
    """The dataset of the recipe; replaced if this recipe made it from something else before.

    Raises:
        AlreadyExists: the id is taken by a dataset that another recipe made.
        FailedPrecondition: the suite replays held-back conversations, and there are none.
        ChatmillError: as `CreateDataset` documents.
    """
    section = recipe.dataset
    name = f"datasets/{section.id}"
    ours = False
    try:
        existing = (await mesh.datasets.GetDataset(GetDatasetRequest(name=name))).dataset
        ours = existing.labels.get(fingerprint.RECIPE_LABEL) == recipe.name
    except NotFound:
        pass
    request = CreateDatasetRequest(
        dataset_id=section.id,
        source=section.sources[0],
        more_sources=section.sources[1:],
        dataset_class=section.class_,
        parameters=struct(section.parameters),
        test_fraction=section.test_fraction,
        split_seed=section.seed,
        limit=section.limit,
        replace=ours,
        force=force,
        request_id=str(uuid.uuid4()),
        labels={fingerprint.RECIPE_LABEL: recipe.name},
    )
    finished = None
    with blamed_on(recipe, "dataset.sources"):
        async for response in mesh.dataset_admin.CreateDataset(request, timeout=FOREVER):
            if response.HasField("progress"):
                seen = response.progress
                text = f"{seen.phase}: {seen.read_count:,} conversations, {seen.kept_count:,} kept"
                observer.progress("dataset", Progress(seen.bytes_read, seen.bytes_total, text))
            elif response.HasField("finished"):
                finished = response.finished
    if finished is None:
        raise Aborted(f"the dataset service ended {name} without a result; run the same command again")
    made = finished.dataset
    for drop in made.drops:
        observer.note("dataset", f"left out {drop.count:,}: {drop.reason} ({drop.step})")
    _check_held_back(recipe, made)
    return made, Made(_dataset_summary(made), finished.unchanged)


def _sizes(dataset: Dataset) -> tuple[int, int]:
    """Conversations to train on, and held back."""
    sizes = {split.split: split.item_count for split in dataset.splits}
    return sizes.get(Split.SPLIT_TRAIN, 0), sizes.get(Split.SPLIT_TEST, 0)


def _check_held_back(recipe: Recipe, dataset: Dataset) -> None:
    """Before a training that could not be scored."""
    train, test = _sizes(dataset)
    if recipe.suite.replay is None or test:
        return
    near = dataset.near_duplicate_count
    why = f"; {near:,} of them are near-duplicates, which stay together" if near else ""
    raise FailedPrecondition(
        f"{recipe.where('suite.replay')}: {dataset.name} holds no conversation back to replay: all {train:,} went to "
        f"training{why}. Each is drawn by its id, so a small file may hold none back: give it more conversations, "
        "raise test_fraction, try another dataset.seed, or name scenarios as suite.path.",
        reason="EMPTY_SPLIT",
    )


def _dataset_summary(dataset: Dataset) -> str:
    train, test = _sizes(dataset)
    return f"{dataset.name}: {train:,} conversations to train on, {test:,} held back"


async def find_base(recipe: Recipe, mesh: Mesh) -> tuple[Model | None, Made]:
    """The registry's entry of the base, made now if it is a folder or a hub id that isn't known; None for `scratch`.

    Raises:
        NotFound: no such model, folder or hub id; names the line.
    """
    base = recipe.method.base
    if not base:
        return None, Made("from random weights", reused=False)
    with blamed_on(recipe, "method.base"):
        if base.startswith("/") or ("/" in base and not base.startswith("models/")):
            source = ModelSource(folder=base) if base.startswith("/") else ModelSource(hub_id=base)
            request = RegisterModelRequest(source=source, request_id=str(uuid.uuid4()))
            answer = await mesh.registry.RegisterModel(request, timeout=FOREVER)  # a hub id may have to be downloaded
            return answer.model, Made(_model_summary(answer.model), answer.unchanged)
        model = (await mesh.registry.GetModel(GetModelRequest(name=model_name(base)))).model
        return model, Made(_model_summary(model), reused=True)


def _model_summary(model: Model) -> str:
    size = f", {model.parameter_count / 1e6:.1f}M parameters" if model.parameter_count else ""
    return f"{model.name}{size}"


async def train(
    recipe: Recipe, mesh: Mesh, observer: Observer, dataset: Dataset, base: Model | None, *, force: bool
) -> tuple[Model, Made]:
    """The model of the recipe: found by the digest of its inputs, else by a job that is at work on it, else trained.

    Raises:
        Aborted: the training failed or was cancelled; the message says why.
        ChatmillError: as `Train` documents.
    """
    method = recipe.method
    inputs = fingerprint.of(
        {
            "method": method.name,
            "base": base.revision if base else "",
            "dataset": dataset.digest,
            "test_fraction": dataset.test_fraction,
            "split_seed": dataset.split_seed,
            "languages": sorted(recipe.dataset.languages),
            "parameters": method.parameters,
            "seed": method.seed,
            "skip_tool_messages": method.skip_tool_messages,
            "system_prompt": recipe.card.render(),
            "model_id": method.model_id,
        }
    )
    if not force:
        found = await _trained_before(mesh, method.model_id, inputs)
        if found is not None:
            return found, Made(_trained_summary(found), reused=True)
    request = TrainRequest(
        spec=TrainingSpec(
            base=base.name if base else "",
            dataset=dataset.name,
            model_id=method.model_id,
            method=method.name,
            parameters=struct(method.parameters),
            system_prompt=recipe.card.render(),
            languages=recipe.dataset.languages,
            seed=method.seed,
            skip_tool_messages=method.skip_tool_messages,
            labels={fingerprint.LABEL: inputs, fingerprint.RECIPE_LABEL: recipe.name},
        ),
        request_id=str(uuid.uuid4()),
    )
    running = None if force else await _at_work(mesh, inputs)
    if running is not None:
        observer.note("train", f"{running.name} is at work on exactly this since an earlier run; following it")
    job = await _follow_training(recipe, mesh, observer, request, running)
    model = (await mesh.registry.GetModel(GetModelRequest(name=job.model))).model
    return model, Made(_trained_summary(model), reused=False)


async def _trained_before(mesh: Mesh, model_id: str, inputs: str) -> Model | None:
    request = ListModelsRequest(parent=f"models/{model_id}", page_size=200)
    with contextlib.suppress(NotFound):  # the first version of its id
        async for page in paging.every(mesh.registry.ListModels, request):
            for model in page.models:  # newest first
                if model.labels.get(fingerprint.LABEL) == inputs:
                    return model
    return None


async def _at_work(mesh: Mesh, inputs: str) -> TrainingJob | None:
    for state in (JobState.JOB_STATE_RUNNING, JobState.JOB_STATE_QUEUED):
        request = ListTrainingJobsRequest(page_size=200, state=state)
        async for page in paging.every(mesh.factory.ListTrainingJobs, request):
            for job in page.training_jobs:
                if job.spec.labels.get(fingerprint.LABEL) == inputs:
                    return job
    return None


async def _follow_training(
    recipe: Recipe, mesh: Mesh, observer: Observer, request: TrainRequest, running: TrainingJob | None
) -> TrainingJob:
    followed: Followed[TrainingEvent] = Followed(
        service="factory",
        start=lambda: mesh.factory.Train(request, timeout=FOREVER),
        watch=lambda name, after: mesh.factory.WatchTrainingJob(
            WatchTrainingJobRequest(name=name, after_sequence=after), timeout=FOREVER
        ),
        resource="training_job",
        broken=lambda text: observer.note("train", text),
        name=running.name if running else "",
    )
    with blamed_on(recipe, "method"):
        try:
            async for event in followed.events():
                if event.HasField("state") and event.state == JobState.JOB_STATE_QUEUED:
                    observer.progress("train", Progress(0, 0, "waiting for its turn in the factory"))
                elif event.HasField("progress"):
                    seen = event.progress
                    if seen.note:
                        observer.note("train", seen.note)
                    observer.progress("train", Progress(seen.step, seen.total_steps, _training_text(event)))
                elif event.HasField("warning"):
                    observer.note("train", event.warning)
                elif event.HasField("finished"):
                    return _succeeded(event.finished)
        except asyncio.CancelledError:
            if followed.name:
                observer.note("train", f"{followed.name} goes on as long as its mesh does; a later run picks it up")
            raise
    raise Aborted("the factory ended the training without a result; run the same command again")


def _training_text(event: TrainingEvent) -> str:
    seen = event.progress
    if not seen.step or seen.phase != "training":
        return seen.phase
    # The first step also compiles and warms up, so there is no time to tell before the second.
    left = f"  {seconds(seen.seconds_left)} left" if seen.seconds_left or seen.step == seen.total_steps else ""
    return f"loss {seen.loss:.3f}  {seen.tokens_per_second:,.0f} tokens/s{left}"


def seconds(value: float) -> str:
    """A duration for people: `45 s`, `3 min 20 s`, `1 h 5 min`."""
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _succeeded(job: TrainingJob) -> TrainingJob:
    if job.state == JobState.JOB_STATE_SUCCEEDED:
        return job
    if job.state == JobState.JOB_STATE_FAILED:
        raise Aborted(f"{job.name} failed: {job.error.message}", reason="TRAINING_FAILED")
    raise Aborted(f"{job.name} was cancelled; run the same command to train again", reason="TRAINING_CANCELLED")


def _trained_summary(model: Model) -> str:
    record, data = model.training, model.data
    text = f"{model.name}: loss {record.final_loss:.3f} after {record.steps:,} steps"
    if data.truncated_count:
        text += f", {data.truncated_count:,} conversations cut to fit"
    dropped = sum(data.dropped.values())
    return f"{text}, {dropped:,} left out" if dropped else text


async def promote(recipe: Recipe, mesh: Mesh, model: Model, reason: str) -> Made:
    """Point the recipe's alias to `model`.

    Raises:
        ChatmillError: as `SetAlias` documents.
    """
    if recipe.promote in model.aliases:
        return Made(f"{recipe.promote} -> {model.name}", reused=True)
    with blamed_on(recipe, "promote"):
        request = SetAliasRequest(model=model.name, alias=recipe.promote, reason=reason)
        answer = await mesh.registry.SetAlias(request)
    before = f" (before: {answer.previous})" if answer.previous else ""
    return Made(f"{recipe.promote} -> {model.name}{before}", reused=False)


def missing_sources(recipe: Recipe) -> None:
    """For a mesh on this machine: say so at once if a source is not there.

    Raises:
        NotFound: names the first missing file and the line.
    """
    for source in recipe.dataset.sources:
        if not Path(source).is_file():
            kind = "is a folder; name the files in it" if Path(source).is_dir() else "there is no such file"
            raise NotFound(f"{recipe.where('dataset.sources')}: {source}: {kind}", reason="SOURCE_NOT_FOUND")
