"""The contract's EvalService: convert in, call the core, convert out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from chatmill import paging
from chatmill.eval import v1
from chatmill.runtime import Context
from eval_svc import convert
from eval_svc.drafts import MAX_TURNS
from eval_svc.evaluations import Evaluations
from eval_svc.report import RENDERERS, pieces


class EvalServicer(v1.EvalServiceServicer):
    """Scores models."""

    def __init__(self, evaluations: Evaluations) -> None:
        self._evaluations = evaluations

    async def RunEvaluation(
        self, request: v1.RunEvaluationRequest, context: Context
    ) -> AsyncIterator[v1.RunEvaluationResponse]:
        """See the contract."""
        spec = convert.spec_from_proto(request.spec)
        if request.validate_only:
            suite, _ = await self._evaluations.examine(spec)
            checked = v1.Evaluation(spec=request.spec, suite=suite.id, suite_digest=suite.digest)
            yield v1.RunEvaluationResponse(evaluation=checked)
            return
        accepted = await self._evaluations.start(spec, request.request_id)
        yield v1.RunEvaluationResponse(evaluation=convert.evaluation_to_proto(accepted))
        async for event in self._events(accepted.record.id, 0):
            yield v1.RunEvaluationResponse(event=event)

    async def WatchEvaluation(
        self, request: v1.WatchEvaluationRequest, context: Context
    ) -> AsyncIterator[v1.WatchEvaluationResponse]:
        """See the contract."""
        async for event in self._events(convert.evaluation_id(request.name), request.after_sequence):
            yield v1.WatchEvaluationResponse(event=event)

    async def _events(self, evaluation: str, after: int) -> AsyncIterator[v1.EvaluationEvent]:
        async for event in self._evaluations.watch(evaluation, after):
            trial = self._evaluations.trial_of(evaluation, event)
            finished = self._evaluations.get(evaluation) if event.kind == "finished" else None
            yield convert.event_to_proto(event, trial, finished)

    async def GetEvaluation(self, request: v1.GetEvaluationRequest, context: Context) -> v1.GetEvaluationResponse:
        """See the contract."""
        found = self._evaluations.get(convert.evaluation_id(request.name))
        return v1.GetEvaluationResponse(evaluation=convert.evaluation_to_proto(found))

    async def ListEvaluations(self, request: v1.ListEvaluationsRequest, context: Context) -> v1.ListEvaluationsResponse:
        """See the contract."""
        page = paging.page(request.page_size, request.page_token, f"evaluations {request.state}", str)
        found = self._evaluations.newest(page.size + 1, page.after, convert.state_name(request.state))
        shown, token = page.cut(found, lambda evaluation: evaluation.record.id)
        return v1.ListEvaluationsResponse(evaluations=map(convert.evaluation_to_proto, shown), next_page_token=token)

    async def ResumeEvaluation(
        self, request: v1.ResumeEvaluationRequest, context: Context
    ) -> v1.ResumeEvaluationResponse:
        """See the contract."""
        found = await self._evaluations.take_up(convert.evaluation_id(request.name))
        return v1.ResumeEvaluationResponse(evaluation=convert.evaluation_to_proto(found))

    async def CancelEvaluation(
        self, request: v1.CancelEvaluationRequest, context: Context
    ) -> v1.CancelEvaluationResponse:
        """See the contract."""
        found = await self._evaluations.cancel(convert.evaluation_id(request.name))
        return v1.CancelEvaluationResponse(evaluation=convert.evaluation_to_proto(found))

    async def CompareEvaluations(
        self, request: v1.CompareEvaluationsRequest, context: Context
    ) -> v1.CompareEvaluationsResponse:
        """See the contract."""
        left = convert.evaluation_id(request.candidate, "candidate")
        right = convert.evaluation_id(request.baseline, "baseline")
        comparison, candidate, baseline = await asyncio.to_thread(self._evaluations.compare, left, right)
        return v1.CompareEvaluationsResponse(
            comparison=convert.comparison_to_proto(comparison),
            candidate=convert.score_to_proto(candidate),
            baseline=convert.score_to_proto(baseline),
        )

    async def Rescore(self, request: v1.RescoreRequest, context: Context) -> v1.RescoreResponse:
        """See the contract."""
        found, changed = await self._evaluations.rescore(convert.evaluation_id(request.name))
        return v1.RescoreResponse(evaluation=convert.evaluation_to_proto(found), changed_count=changed)

    async def ExportReport(
        self, request: v1.ExportReportRequest, context: Context
    ) -> AsyncIterator[v1.ExportReportResponse]:
        """See the contract."""
        render = RENDERERS[convert.report_format(request.format)]
        content = await self._evaluations.report(convert.evaluation_id(request.name), render)
        for piece in pieces(content):
            yield v1.ExportReportResponse(content=piece)

    async def DraftScenarios(
        self, request: v1.DraftScenariosRequest, context: Context
    ) -> AsyncIterator[v1.DraftScenariosResponse]:
        """See the contract."""
        max_turns = request.max_turns if request.HasField("max_turns") else MAX_TURNS
        drafts = self._evaluations.drafts(request.dataset, request.max_conversations, request.seed, max_turns)
        async for draft in drafts:
            yield convert.draft_to_proto(request.dataset, draft)

    async def ListSuites(self, request: v1.ListSuitesRequest, context: Context) -> v1.ListSuitesResponse:
        """See the contract."""
        installed = await asyncio.to_thread(self._evaluations.suites.installed)
        suites = [convert.suite_to_proto(suite, folder.name, problem) for suite, folder, problem in installed]
        return v1.ListSuitesResponse(suites=sorted(suites, key=lambda s: s.name))
