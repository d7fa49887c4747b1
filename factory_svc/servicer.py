"""The factory's two gRPC services: convert in, call the core, convert out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from chatmill import paging
from chatmill.factory.v1 import (
    CancelTrainingJobRequest,
    CancelTrainingJobResponse,
    FactoryServiceServicer,
    GetModelRequest,
    GetModelResponse,
    GetTrainingJobRequest,
    GetTrainingJobResponse,
    ListModelsRequest,
    ListModelsResponse,
    ListTrainingJobsRequest,
    ListTrainingJobsResponse,
    ListTrainingMethodsRequest,
    ListTrainingMethodsResponse,
    RecordEvaluationRequest,
    RecordEvaluationResponse,
    RegisterModelRequest,
    RegisterModelResponse,
    RegistryServiceServicer,
    SetAliasRequest,
    SetAliasResponse,
    TrainingEvent,
    TrainRequest,
    TrainResponse,
    WatchModelsRequest,
    WatchModelsResponse,
    WatchTrainingJobRequest,
    WatchTrainingJobResponse,
)
from chatmill.runtime import Context
from factory_svc import convert
from factory_svc.bases import Bases
from factory_svc.factory import Factory
from factory_svc.methods import METHODS
from factory_svc.registry import Registry
from factory_svc.watching import RegistryWatch


class FactoryServicer(FactoryServiceServicer):
    """Trains models."""

    def __init__(self, factory: Factory) -> None:
        self._factory = factory

    async def Train(self, request: TrainRequest, context: Context) -> AsyncIterator[TrainResponse]:
        """Accept a training and stream its events."""
        job = await self._factory.submit(convert.spec_from(request.spec), request.request_id)
        yield TrainResponse(training_job=convert.job_to(job))
        async for event in self._events(job.id, 0):
            yield TrainResponse(event=event)

    async def WatchTrainingJob(
        self, request: WatchTrainingJobRequest, context: Context
    ) -> AsyncIterator[WatchTrainingJobResponse]:
        """Replay and follow a job's events."""
        async for event in self._events(convert.job_id(request.name), request.after_sequence):
            yield WatchTrainingJobResponse(event=event)

    async def GetTrainingJob(self, request: GetTrainingJobRequest, context: Context) -> GetTrainingJobResponse:
        """One job."""
        job = await self._factory.get(convert.job_id(request.name))
        return GetTrainingJobResponse(training_job=convert.job_to(job))

    async def ListTrainingJobs(self, request: ListTrainingJobsRequest, context: Context) -> ListTrainingJobsResponse:
        """A page of jobs."""
        page = paging.page(request.page_size, request.page_token, f"jobs {request.state}", int)
        found = await self._factory.page(page.size + 1, page.after, convert.state_from(request.state))
        jobs, token = page.cut(found, lambda job: job.number)
        return ListTrainingJobsResponse(training_jobs=map(convert.job_to, jobs), next_page_token=token)

    async def CancelTrainingJob(self, request: CancelTrainingJobRequest, context: Context) -> CancelTrainingJobResponse:
        """Ask a job to stop."""
        job = await self._factory.cancel(convert.job_id(request.name))
        return CancelTrainingJobResponse(training_job=convert.job_to(job))

    async def ListTrainingMethods(
        self, request: ListTrainingMethodsRequest, context: Context
    ) -> ListTrainingMethodsResponse:
        """The installed methods."""
        methods = [convert.method_to(name, method) for name, method in METHODS.items()]
        return ListTrainingMethodsResponse(training_methods=methods)

    async def _events(self, job_id: str, after: int) -> AsyncIterator[TrainingEvent]:
        async for event in self._factory.watch(job_id, after):
            yield convert.event_to(event, await self._factory.get(job_id))


class RegistryServicer(RegistryServiceServicer):
    """Keeps what models there are. File access happens in threads, since a disk may be slow."""

    def __init__(self, registry: Registry, bases: Bases, watch: RegistryWatch) -> None:
        self._registry = registry
        self._bases = bases
        self._watch = watch

    async def GetModel(self, request: GetModelRequest, context: Context) -> GetModelResponse:
        """One version."""
        snapshot = await asyncio.to_thread(self._registry.read)
        return GetModelResponse(model=convert.model_to(snapshot.find(request.name), snapshot))

    async def ListModels(self, request: ListModelsRequest, context: Context) -> ListModelsResponse:
        """A page of versions."""
        page = paging.page(request.page_size, request.page_token, f"models {request.parent}", str)
        snapshot = await asyncio.to_thread(self._registry.read)
        entries, token = page.cut(snapshot.listed(request.parent, page.after or ""), lambda entry: entry.name)
        return ListModelsResponse(
            models=[convert.model_to(entry, snapshot) for entry in entries], next_page_token=token
        )

    async def WatchModels(self, request: WatchModelsRequest, context: Context) -> AsyncIterator[WatchModelsResponse]:
        """The registry, then its changes."""
        async for change in self._watch.follow():
            yield WatchModelsResponse(
                models=[convert.model_to(entry, change.snapshot) for entry in change.entries],
                snapshot=change.whole,
                registry_revision=change.snapshot.revision,
            )

    async def RegisterModel(self, request: RegisterModelRequest, context: Context) -> RegisterModelResponse:
        """Enter a model that was not trained here."""
        entry, unchanged = await asyncio.to_thread(
            self._bases.register,
            convert.source_from(request.source),
            model_id=request.model_id,
            system_prompt=request.system_prompt,
            description=request.description,
            license=request.license,
            labels=dict(request.labels),
        )
        snapshot = await asyncio.to_thread(self._registry.read)
        return RegisterModelResponse(model=convert.model_to(entry, snapshot), unchanged=unchanged)

    async def SetAlias(self, request: SetAliasRequest, context: Context) -> SetAliasResponse:
        """Point an alias to a version."""
        entry, previous = await asyncio.to_thread(
            self._registry.set_alias, request.model, request.alias, reason=request.reason
        )
        snapshot = await asyncio.to_thread(self._registry.read)
        return SetAliasResponse(model=convert.model_to(entry, snapshot), previous=previous)

    async def RecordEvaluation(self, request: RecordEvaluationRequest, context: Context) -> RecordEvaluationResponse:
        """Add a score to a version."""
        score = convert.evaluation_from(request.record)
        entry = await asyncio.to_thread(self._registry.record_evaluation, request.model, score)
        snapshot = await asyncio.to_thread(self._registry.read)
        return RecordEvaluationResponse(model=convert.model_to(entry, snapshot))
