"""What the page asks of the mesh, one call each; plain contract messages in and out. It knows no component."""

from __future__ import annotations

import random
import uuid
from collections.abc import Sequence

from bridge.mesh import Mesh
from bridge.testers.kit import Told
from bridge.testers.talking import PATIENCE
from chatmill import __version__
from chatmill.eval.v1 import (
    CreateBattleRequest,
    CreateTestSessionRequest,
    Defect,
    DefectStatus,
    DraftScenarioRequest,
    Evaluation,
    GetAgreementRequest,
    GetAgreementResponse,
    GetBattleSidesRequest,
    GetTestGuideRequest,
    GetTestGuideResponse,
    GetTestSessionRequest,
    HumanLabel,
    HumanScore,
    ListDefectsRequest,
    ListEvaluationsRequest,
    ListHumanScoresRequest,
    ListLabelQueueRequest,
    ListLabelQueueResponse,
    ListTestSessionsRequest,
    RecordTurnRequest,
    SubmitLabelRequest,
    SubmitVoteRequest,
    TestSession,
    TestTurn,
    UpdateDefectRequest,
    Vote,
)
from chatmill.inference.v1 import ListServedModelsRequest

SESSIONS_SHOWN = 30
QUEUE_SHOWN = 50


class Desk:
    """The mesh for one page.

    Args:
        models: what testers talk to; the newest version of each served model where it is empty.
        patience: seconds without a sign of life after which a reply is given up.
    """

    def __init__(self, mesh: Mesh, models: Sequence[str], patience: float = PATIENCE) -> None:
        self.mesh = mesh
        self.patience = patience
        self._models = tuple(models)

    async def guide(self, language: str) -> GetTestGuideResponse:
        """Tasks, rules, kinds of mistakes."""
        return await self.mesh.people.GetTestGuide(GetTestGuideRequest(language=language))

    async def models(self) -> list[str]:
        """What can be tested: the configured names, or the newest version of each model."""
        if self._models:
            return list(self._models)
        served = (await self.mesh.inference.ListServedModels(ListServedModelsRequest())).served_models
        newest: dict[str, int] = {}
        for entry in served:
            name, _, version = entry.model.partition("/versions/")
            if version.isdigit():
                newest[name] = max(newest.get(name, 0), int(version))
        return [f"{name}/versions/{version}" for name, version in sorted(newest.items())]

    async def session(self, name: str) -> TestSession:
        """A session as it is now. Raises Told where the page doesn't know its session any more."""
        if not name:  # the server was started again since the page was loaded, and has forgotten what the page shows
            raise Told("trouble.reload")
        return (await self.mesh.people.GetTestSession(GetTestSessionRequest(name=name))).session

    async def sessions(self, tester: str) -> list[TestSession]:
        """The tester's newest sessions, without what was said."""
        request = ListTestSessionsRequest(tester=tester, page_size=SESSIONS_SHOWN)
        return list((await self.mesh.people.ListTestSessions(request)).sessions)

    async def begin(self, tester: str, task: str, model: str, language: str) -> TestSession:
        """A conversation with one model; with an empty name one is drawn and hidden."""
        guide = await self.guide(language)
        if not (model or (models := await self.models())):
            raise Told("start.no_models")
        request = CreateTestSessionRequest(
            tester=tester,
            consent_version=guide.consent_version,
            task=task,
            model=model or random.choice(models),
            model_hidden=not model,
            language=language,
            app_version=__version__,
            request_id=uuid.uuid4().hex,
        )
        return (await self.mesh.people.CreateTestSession(request)).session

    async def begin_battle(self, tester: str, task: str, language: str) -> TestSession:
        """A blind comparison of two models drawn by lot."""
        guide = await self.guide(language)
        models = await self.models()
        if len(models) < 2:
            raise Told("start.one_model" if models else "start.no_models")
        first, second = random.sample(models, 2)
        request = CreateBattleRequest(
            tester=tester,
            consent_version=guide.consent_version,
            task=task,
            first_model=first,
            second_model=second,
            language=language,
            app_version=__version__,
            request_id=uuid.uuid4().hex,
        )
        return (await self.mesh.people.CreateBattle(request)).session

    async def sides(self, session: str) -> tuple[str, str]:
        """Which models answer left and right; for fetching replies, never for showing."""
        found = await self.mesh.people.GetBattleSides(GetBattleSidesRequest(session=session))
        return found.left_model, found.right_model

    async def record(self, session: str, turn: TestTurn) -> TestTurn:
        """Keep a turn."""
        request = RecordTurnRequest(session=session, turn=turn, request_id=uuid.uuid4().hex)
        return (await self.mesh.people.RecordTurn(request)).turn

    async def label(self, label: HumanLabel) -> str:
        """Keep a label; returns the name of the defect that it reports, or an empty text."""
        request = SubmitLabelRequest(label=label, request_id=uuid.uuid4().hex)
        return (await self.mesh.people.SubmitLabel(request)).defect

    async def vote(self, session: str, vote: Vote.ValueType, *, leaked: bool) -> TestSession:
        """Keep a vote; the session then names its models."""
        request = SubmitVoteRequest(session=session, vote=vote, identity_leaked=leaked, request_id=uuid.uuid4().hex)
        return (await self.mesh.people.SubmitVote(request)).session

    async def queue(self, author: str) -> ListLabelQueueResponse:
        """What wants this person's verdict."""
        return await self.mesh.people.ListLabelQueue(ListLabelQueueRequest(author=author, page_size=QUEUE_SHOWN))

    async def scores(self) -> list[HumanScore]:
        """What people say about each version."""
        return list((await self.mesh.people.ListHumanScores(ListHumanScoresRequest())).scores)

    async def agreement(self, evaluation: str) -> GetAgreementResponse:
        """Who agrees with whom; over all labels where no evaluation is named."""
        return await self.mesh.people.GetAgreement(GetAgreementRequest(evaluation=evaluation))

    async def evaluations(self) -> list[Evaluation]:
        """The newest evaluations."""
        found = await self.mesh.evaluations.ListEvaluations(ListEvaluationsRequest(page_size=20))
        return list(found.evaluations)

    async def defects(self) -> list[Defect]:
        """The newest defects."""
        return list((await self.mesh.people.ListDefects(ListDefectsRequest(page_size=100))).defects)

    async def set_defect(self, name: str, status: DefectStatus.ValueType, author: str, note: str) -> None:
        """Change where a defect stands."""
        await self.mesh.people.UpdateDefect(UpdateDefectRequest(name=name, status=status, author=author, note=note))

    async def scenario(self, name: str) -> str:
        """A confirmed defect as a scenario file."""
        return (await self.mesh.people.DraftScenario(DraftScenarioRequest(name=name))).yaml
