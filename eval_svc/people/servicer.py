"""The contract's HumanEvalService: convert in, call the core, convert out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from chatmill import paging
from chatmill.eval import v1
from chatmill.runtime import Context
from eval_svc.convert import evaluation_id
from eval_svc.people import convert, scenarios
from eval_svc.people.desk import Desk
from eval_svc.people.subjects import session_id

QUEUE_PAGE, LARGEST_QUEUE_PAGE = 20, 100


class HumanEvalServicer(v1.HumanEvalServiceServicer):
    """Keeps what people say."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def GetTestGuide(self, request: v1.GetTestGuideRequest, context: Context) -> v1.GetTestGuideResponse:
        """See the contract."""
        return convert.guide_to_proto(self._desk.guide(), request.language)

    async def CreateTestSession(
        self, request: v1.CreateTestSessionRequest, context: Context
    ) -> v1.CreateTestSessionResponse:
        """See the contract."""
        asked = convert.session_request(request)
        session = await self._desk.sessions.open_chat(asked, request.model, hidden=request.model_hidden)
        return v1.CreateTestSessionResponse(session=convert.session_to_proto(session))

    async def GetTestSession(self, request: v1.GetTestSessionRequest, context: Context) -> v1.GetTestSessionResponse:
        """See the contract."""
        session = self._desk.sessions.get(session_id(request.name))
        return v1.GetTestSessionResponse(session=convert.session_to_proto(session))

    async def ListTestSessions(
        self, request: v1.ListTestSessionsRequest, context: Context
    ) -> v1.ListTestSessionsResponse:
        """See the contract."""
        page = paging.page(request.page_size, request.page_token, f"sessions {request.tester}", int)
        found = self._desk.sessions.newest(page.size + 1, page.after, request.tester)
        shown, token = page.cut(found, lambda session: session.sequence)
        return v1.ListTestSessionsResponse(
            sessions=[convert.session_to_proto(s, whole=False) for s in shown], next_page_token=token
        )

    async def RecordTurn(self, request: v1.RecordTurnRequest, context: Context) -> v1.RecordTurnResponse:
        """See the contract."""
        session = session_id(request.session, "session")
        turn = convert.turn_from_proto(request.turn, session)
        found, kept = self._desk.sessions.record(session, turn, request.request_id)
        return v1.RecordTurnResponse(turn=convert.turn_to_proto(found, kept))

    async def SubmitLabel(self, request: v1.SubmitLabelRequest, context: Context) -> v1.SubmitLabelResponse:
        """See the contract."""
        label, defect = self._desk.label(convert.label_from_proto(request.label), request.request_id)
        return v1.SubmitLabelResponse(label=convert.label_to_proto(label), defect=defect)

    async def CreateBattle(self, request: v1.CreateBattleRequest, context: Context) -> v1.CreateBattleResponse:
        """See the contract."""
        asked = convert.session_request(request)
        session = await self._desk.sessions.open_battle(asked, request.first_model, request.second_model)
        return v1.CreateBattleResponse(session=convert.session_to_proto(session))

    async def GetBattleSides(self, request: v1.GetBattleSidesRequest, context: Context) -> v1.GetBattleSidesResponse:
        """See the contract."""
        opening = self._desk.sessions.battle(session_id(request.session, "session")).opening
        return v1.GetBattleSidesResponse(left_model=opening.left.name, right_model=opening.right.name)

    async def SubmitVote(self, request: v1.SubmitVoteRequest, context: Context) -> v1.SubmitVoteResponse:
        """See the contract."""
        session = self._desk.sessions.vote(
            session_id(request.session, "session"),
            convert.name_of(convert.VOTES, request.vote, "vote"),
            leaked=request.identity_leaked,
            note=request.note,
            request_id=request.request_id,
        )
        return v1.SubmitVoteResponse(session=convert.session_to_proto(session))

    async def ListLabelQueue(self, request: v1.ListLabelQueueRequest, context: Context) -> v1.ListLabelQueueResponse:
        """See the contract."""
        named = evaluation_id(request.evaluation, "evaluation") if request.evaluation else ""
        size = paging.size_of(request.page_size, QUEUE_PAGE, LARGEST_QUEUE_PAGE)
        items, waiting, done = await asyncio.to_thread(self._desk.queue.open, request.author, named, size)
        return v1.ListLabelQueueResponse(
            items=[convert.item_to_proto(item) for item in items], open_count=waiting, done_count=done
        )

    async def GetAgreement(self, request: v1.GetAgreementRequest, context: Context) -> v1.GetAgreementResponse:
        """See the contract."""
        named = evaluation_id(request.evaluation, "evaluation") if request.evaluation else ""
        return convert.insight_to_proto(await asyncio.to_thread(self._desk.insights.agreement, named))

    async def ListHumanScores(self, request: v1.ListHumanScoresRequest, context: Context) -> v1.ListHumanScoresResponse:
        """See the contract."""
        scores = await asyncio.to_thread(self._desk.scores)
        return v1.ListHumanScoresResponse(scores=[convert.score_to_proto(score) for score in scores])

    async def ExportLabels(
        self, request: v1.ExportLabelsRequest, context: Context
    ) -> AsyncIterator[v1.ExportLabelsResponse]:
        """See the contract."""
        entries = await asyncio.to_thread(self._desk.export, request.after_sequence, request.latest_only)
        for entry in entries:
            yield convert.export_to_proto(entry)

    async def ListDefects(self, request: v1.ListDefectsRequest, context: Context) -> v1.ListDefectsResponse:
        """See the contract."""
        page = paging.page(request.page_size, request.page_token, f"defects {request.status}", int)
        status = convert.name_of(convert.STATUSES, request.status, "status") if request.status else None
        found = self._desk.defects.newest(page.size + 1, page.after, status)
        shown, token = page.cut(found, lambda defect: defect.sequence)
        return v1.ListDefectsResponse(defects=map(convert.defect_to_proto, shown), next_page_token=token)

    async def UpdateDefect(self, request: v1.UpdateDefectRequest, context: Context) -> v1.UpdateDefectResponse:
        """See the contract."""
        status = convert.name_of(convert.STATUSES, request.status, "status")
        found = self._desk.defects.update(convert.defect_id(request.name), status, request.author, request.note)
        return v1.UpdateDefectResponse(defect=convert.defect_to_proto(found))

    async def DraftScenario(self, request: v1.DraftScenarioRequest, context: Context) -> v1.DraftScenarioResponse:
        """See the contract."""
        scenario, text = scenarios.draft(self._desk.defects.get(convert.defect_id(request.name)))
        return v1.DraftScenarioResponse(scenario=scenario, yaml=text)
