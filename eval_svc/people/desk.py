"""The people's part as one whole: sessions, defects, queue, insights, joined over one journal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from sys import maxsize

from eval_svc.people.defects import Defects
from eval_svc.people.export import Exported, export
from eval_svc.people.guide import Guide
from eval_svc.people.insight import Insights
from eval_svc.people.journal import Journal
from eval_svc.people.queue import LabelQueue, sessions_of
from eval_svc.people.records import Label, Model
from eval_svc.people.scores import HumanScore, human_scores
from eval_svc.people.sessions import Models, TestSessions
from eval_svc.people.subjects import TrialSubject
from eval_svc.ports import Agents, described
from eval_svc.spec import TargetSpec
from eval_svc.store import Store


@dataclass(frozen=True, slots=True)
class AgentModels:
    """Resolves names of models by asking the agents that evaluations talk to."""

    agents: Agents

    async def resolve(self, model: str, field: str) -> Model:
        """See `Models`. Raises Unavailable if nobody can say."""
        info = await described(self.agents, TargetSpec(model), field)
        return Model(info.model, info.revision)


class Desk:
    """Where what people say comes in.

    Args:
        store: of the evaluations; the journal is kept in the same database.
        guide: reads the tasks and the agent card.
        models: who answers.
    """

    def __init__(self, store: Store, guide: Callable[[], Guide], models: Models) -> None:
        self.guide = guide
        self._store = store
        self._journal = Journal(store.engine)
        self.sessions = TestSessions(self._journal, guide, models, self._has_trial)
        self.defects = Defects(self._journal, self.sessions)
        self.queue = LabelQueue(self._journal, store)
        self.insights = Insights(self._journal, self.queue)

    def _has_trial(self, subject: TrialSubject) -> bool:
        return self._store.trial(subject.evaluation, subject.unit) is not None

    def label(self, label: Label, request_id: str) -> tuple[Label, str]:
        """Keep a label; returns it with the name of the defect that it reports. Raises as `TestSessions.label`."""
        kept, session = self.sessions.label(label, request_id)
        return kept, self.defects.follow(kept, session) if session is not None else ""

    def scores(self) -> list[HumanScore]:
        """What people say about each version; takes some tenths of a second, call it in a thread."""
        found = self.defects.newest(maxsize, None, None)
        return human_scores(sessions_of(self._journal), found, self.queue.evaluations())

    def export(self, after: int, latest_only: bool) -> list[Exported]:
        """All labels and votes behind a sequence number; call it in a thread."""
        return list(export(self._journal, self._store, after, latest_only=latest_only))
