"""Services that keep what they are told in memory and answer at once; the recipe can't tell them from real ones."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from chatmill.common.v1 import JobState
from chatmill.dataset import v1 as dataset_v1
from chatmill.errors import Aborted, AlreadyExists, InvalidArgument, NotFound, Unavailable
from chatmill.eval import v1 as eval_v1
from chatmill.factory import v1 as factory_v1
from chatmill.recipe.mesh import Mesh, connected
from chatmill.runtime.server import Service
from chatmill.runtime.testing import local_config, running


@dataclass
class World:
    """What the fakes know, and how they are to misbehave."""

    datasets: dict[str, dataset_v1.Dataset] = field(default_factory=dict)
    dataset_requests: dict[str, bytes] = field(default_factory=dict)
    models: list[factory_v1.Model] = field(default_factory=list)
    jobs: list[factory_v1.TrainingJob] = field(default_factory=list)
    evaluations: list[eval_v1.Evaluation] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    break_streams_after: int | None = None
    fail_training: str = ""
    held_back: int = 10
    gate: Any = eval_v1.GateState.GATE_STATE_PASSED


class Datasets(dataset_v1.DatasetServiceServicer, dataset_v1.DatasetAdminServiceServicer):
    """One folder's worth of datasets."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def ListDatasetClasses(self, request: Any, context: Any) -> Any:
        classes = [
            dataset_v1.DatasetClass(class_name="conversations"),
            dataset_v1.DatasetClass(class_name="shop", parameters=[dataset_v1.ParameterSpec(name="strict")]),
        ]
        return dataset_v1.ListDatasetClassesResponse(dataset_classes=classes)

    async def GetDataset(self, request: Any, context: Any) -> Any:
        if request.name not in self.world.datasets:
            raise NotFound(f"no {request.name}")
        return dataset_v1.GetDatasetResponse(dataset=self.world.datasets[request.name])

    async def CreateDataset(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.world.calls.append("CreateDataset")
        name = f"datasets/{request.dataset_id}"
        plain = dataset_v1.CreateDatasetRequest()
        plain.CopyFrom(request)
        for ignored in ("request_id", "replace", "force"):
            plain.ClearField(ignored)
        asked = plain.SerializeToString(deterministic=True)
        known = self.world.dataset_requests.get(name)
        if known is not None and known != asked and not request.replace:
            raise AlreadyExists(f"{name} holds other data")
        unchanged = known == asked and not request.force
        progress = dataset_v1.CreateDatasetProgress(bytes_read=5, bytes_total=10, phase="reading")
        yield dataset_v1.CreateDatasetResponse(progress=progress)
        self.world.dataset_requests[name] = asked
        self.world.datasets[name] = dataset_v1.Dataset(
            name=name,
            digest=hashlib.sha256(asked).hexdigest(),
            labels=request.labels,
            splits=[
                dataset_v1.SplitSize(split=dataset_v1.Split.SPLIT_TRAIN, item_count=90),
                dataset_v1.SplitSize(split=dataset_v1.Split.SPLIT_TEST, item_count=self.world.held_back),
            ],
            near_duplicate_count=7,
            drops=[dataset_v1.DropCount(step="duplicates", reason="seen before", count=2)],
        )
        finished = dataset_v1.CreateDatasetFinished(dataset=self.world.datasets[name], unchanged=unchanged)
        yield dataset_v1.CreateDatasetResponse(finished=finished)


class Factory(factory_v1.FactoryServiceServicer, factory_v1.RegistryServiceServicer):
    """Trains by making an entry."""

    STEPS = 5

    def __init__(self, world: World) -> None:
        self.world = world

    async def ListTrainingMethods(self, request: Any, context: Any) -> Any:
        parameters = [factory_v1.TrainingParameter(name="rank"), factory_v1.TrainingParameter(name="epochs")]
        methods = [factory_v1.TrainingMethod(method=name, parameters=parameters) for name in ("lora", "scratch")]
        return factory_v1.ListTrainingMethodsResponse(training_methods=methods)

    async def ListTrainingJobs(self, request: Any, context: Any) -> Any:
        found = [job for job in self.world.jobs if job.state == request.state]
        return factory_v1.ListTrainingJobsResponse(training_jobs=found)

    async def Train(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.world.calls.append("Train")
        job = factory_v1.TrainingJob(
            name=f"trainingJobs/{len(self.world.jobs) + 1}", spec=request.spec, state=JobState.JOB_STATE_RUNNING
        )
        self.world.jobs.append(job)
        yield factory_v1.TrainResponse(training_job=job)
        async for event in self._events(job, 0):
            yield factory_v1.TrainResponse(event=event)

    async def WatchTrainingJob(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.world.calls.append(f"WatchTrainingJob after {request.after_sequence}")
        job = next(job for job in self.world.jobs if job.name == request.name)
        async for event in self._events(job, request.after_sequence):
            yield factory_v1.WatchTrainingJobResponse(event=event)

    async def _events(self, job: Any, after: int) -> AsyncIterator[Any]:
        for sent, sequence in enumerate(range(after + 1, self.STEPS + 1)):
            if self.world.break_streams_after is not None and sent >= self.world.break_streams_after:
                raise Unavailable("the factory went away")
            progress = factory_v1.TrainingProgress(step=sequence, total_steps=self.STEPS, loss=1 / sequence)
            yield factory_v1.TrainingEvent(sequence=sequence, progress=progress)
        if self.world.fail_training:
            job.state = JobState.JOB_STATE_FAILED
            job.error.message = self.world.fail_training
        else:
            job.state = JobState.JOB_STATE_SUCCEEDED
            job.model = self._register(job.spec).name
        yield factory_v1.TrainingEvent(sequence=self.STEPS + 1, finished=job)

    def _register(self, spec: Any) -> Any:
        version = 1 + sum(model.name.startswith(f"models/{spec.model_id}/") for model in self.world.models)
        name = f"models/{spec.model_id}/versions/{version}"
        model = factory_v1.Model(name=name, base=spec.base, revision=f"sha256:{name}", labels=spec.labels)
        model.training.steps = self.STEPS
        self.world.models.insert(0, model)
        return model

    async def GetModel(self, request: Any, context: Any) -> Any:
        for model in self.world.models:
            if model.name == request.name or model.name.startswith(f"{request.name}/versions/"):
                return factory_v1.GetModelResponse(model=model)
        raise NotFound(f"no model {request.name}")

    async def ListModels(self, request: Any, context: Any) -> Any:
        found = [model for model in self.world.models if model.name.startswith(f"{request.parent}/")]
        if not found:
            raise NotFound(f"no {request.parent}")
        return factory_v1.ListModelsResponse(models=found)

    async def RegisterModel(self, request: Any, context: Any) -> Any:
        self.world.calls.append(f"RegisterModel {request.source.WhichOneof('place')}")
        model = factory_v1.Model(name="models/registered/versions/1", revision="r")
        self.world.models.append(model)
        return factory_v1.RegisterModelResponse(model=model)

    async def SetAlias(self, request: Any, context: Any) -> Any:
        previous = self.world.aliases.get(request.alias, "")
        self.world.aliases[request.alias] = request.model
        model = next(model for model in self.world.models if model.name == request.model)
        model.aliases.append(request.alias)
        return factory_v1.SetAliasResponse(model=model, previous=previous)


class Evals(eval_v1.EvalServiceServicer):
    """Finds every candidate good."""

    TRIALS = 4

    def __init__(self, world: World) -> None:
        self.world = world

    async def ListEvaluations(self, request: Any, context: Any) -> Any:
        found = [evaluation for evaluation in self.world.evaluations if evaluation.state == request.state]
        return eval_v1.ListEvaluationsResponse(evaluations=found)

    async def ListSuites(self, request: Any, context: Any) -> Any:
        return eval_v1.ListSuitesResponse(suites=[eval_v1.Suite(name="suites/undesired", digest="d")])

    def _digest(self, spec: Any) -> str:
        if spec.WhichOneof("suite") == "replay_suite" or spec.scenario_suite.startswith("suites/"):
            return str(spec.WhichOneof("suite"))
        text = "".join(path.read_text(encoding="utf-8") for path in sorted(Path(spec.scenario_suite).rglob("*.yaml")))
        if "broken" in text:
            raise InvalidArgument("one.yaml:1: broken")
        return text

    async def RunEvaluation(self, request: Any, context: Any) -> AsyncIterator[Any]:
        if request.validate_only:
            yield eval_v1.RunEvaluationResponse(evaluation=eval_v1.Evaluation(suite_digest=self._digest(request.spec)))
            return
        self.world.calls.append("RunEvaluation")
        evaluation = eval_v1.Evaluation(
            name=f"evaluations/{len(self.world.evaluations) + 1}", spec=request.spec, state=JobState.JOB_STATE_RUNNING
        )
        self.world.evaluations.insert(0, evaluation)
        yield eval_v1.RunEvaluationResponse(evaluation=evaluation)
        async for event in self._events(evaluation, 0):
            yield eval_v1.RunEvaluationResponse(event=event)

    async def WatchEvaluation(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.world.calls.append(f"WatchEvaluation after {request.after_sequence}")
        evaluation = next(e for e in self.world.evaluations if e.name == request.name)
        async for event in self._events(evaluation, request.after_sequence):
            yield eval_v1.WatchEvaluationResponse(event=event)

    async def _events(self, evaluation: Any, after: int) -> AsyncIterator[Any]:
        for sent, sequence in enumerate(range(after + 1, self.TRIALS + 1)):
            if self.world.break_streams_after is not None and sent >= self.world.break_streams_after:
                raise Unavailable("the eval service went away")
            progress = eval_v1.EvaluationProgress(done=sequence, total=self.TRIALS, passed=sequence)
            yield eval_v1.EvaluationEvent(sequence=sequence, progress=progress)
        self._finish(evaluation)
        yield eval_v1.EvaluationEvent(sequence=self.TRIALS + 1, finished=evaluation)

    def _finish(self, evaluation: Any) -> None:
        evaluation.state = JobState.JOB_STATE_SUCCEEDED
        evaluation.suite = "shop"
        for side, rate in ((evaluation.candidate, 0.9), (evaluation.baseline, 0.2)):
            side.target = "candidate" if rate == 0.9 else "baseline"
            side.scenario_count, side.trial_count, side.pass_rate = 10, 20, rate
            side.pass_rate_interval.low, side.pass_rate_interval.high = rate - 0.1, rate + 0.1
            side.pass_hat_k.extend([rate, rate**2])
            side.handover.expected_count, side.handover.missed_count = 3, 1
            side.latency.first_token_p50_ms, side.latency.total_p95_ms = 20, 300
        evaluation.comparison.difference = 0.7
        evaluation.comparison.verdict = eval_v1.Verdict.VERDICT_BETTER
        evaluation.comparison.fixed.extend(["a", "b"])
        evaluation.gate.state = self.world.gate
        condition = eval_v1.GateCondition(condition="pass rate >= 85%", seen="90%", passed=True)
        evaluation.gate.conditions.append(condition)

    async def ExportReport(self, request: Any, context: Any) -> AsyncIterator[Any]:
        if not any(e.name == request.name for e in self.world.evaluations):
            raise Aborted("no such evaluation")
        yield eval_v1.ExportReportResponse(content=b"<html>")
        yield eval_v1.ExportReportResponse(content=b"</html>")


@asynccontextmanager
async def mesh_of(world: World, home: Path) -> AsyncIterator[Mesh]:
    """The fakes on real servers, and real channels to them."""
    datasets, factory, evals = Datasets(world), Factory(world), Evals(world)
    services = [
        Service(
            "dataset",
            [
                (dataset_v1.add_DatasetServiceServicer_to_server, datasets),
                (dataset_v1.add_DatasetAdminServiceServicer_to_server, datasets),
            ],
        ),
        Service(
            "factory",
            [
                (factory_v1.add_FactoryServiceServicer_to_server, factory),
                (factory_v1.add_RegistryServiceServicer_to_server, factory),
            ],
        ),
        Service("eval", [(eval_v1.add_EvalServiceServicer_to_server, evals)]),
    ]
    config = local_config(home)
    async with AsyncExitStack() as stack:
        started = [await stack.enter_async_context(running(service, config)) for service in services]
        targets = {harness.running.service.name: harness.channel.target for harness in started}
        at = replace(config, mesh=replace(config.mesh, peers=replace(config.mesh.peers, **targets)))
        names = [service.name for service in services]
        yield await stack.enter_async_context(connected(at, services=names))
