"""Test sessions: opened, talked in, labelled, voted on. The rules of business of the people's part stand here.

It knows neither gRPC nor how a model is reached; replies come from outside, by `record`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from chatmill.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from eval_svc.people import leaks
from eval_svc.people.guide import Guide, Task, spoken
from eval_svc.people.journal import Event, Journal
from eval_svc.people.labels import check_label, check_pseudonym
from eval_svc.people.records import (
    Choice,
    Label,
    Model,
    Opening,
    Session,
    Turn,
    Vote,
    fold,
    label_of,
    opening_of,
    payload_of,
    turn_of,
)
from eval_svc.people.subjects import SessionSubject, TrialSubject, parse

MAX_TEXT = 65_536
"""Characters of a question or a reply that are kept; longer ones are refused, as no chat shows them."""


class Models(Protocol):
    """Who answers."""

    async def resolve(self, model: str, field: str) -> Model:
        """The version that a name stands for now. Raises NotFound, or InvalidArgument that names `field`."""


@dataclass(frozen=True, slots=True)
class Request:
    """Who wants to test what.

    Attributes:
        consent_version: which text the tester agreed to.
        language: of the page, ISO 639-1.
        app_version: of the program that records it.
        request_id: makes a retry safe; empty for none.
    """

    tester: str
    consent_version: str
    task: str
    language: str = ""
    app_version: str = ""
    request_id: str = ""


class TestSessions:
    """All sessions.

    Args:
        guide: reads the tasks and the agent card; asked each time, since an operator may mend the files meanwhile.
        models: who answers.
        trial_exists: whether a machine-scored trial is there to be labelled.
    """

    __test__ = False  # pytest would take it for a test

    def __init__(
        self,
        journal: Journal,
        guide: Callable[[], Guide],
        models: Models,
        trial_exists: Callable[[TrialSubject], bool],
    ) -> None:
        self.journal = journal
        self.guide = guide
        self._models = models
        self._trial_exists = trial_exists

    async def open_chat(self, request: Request, model: str, *, hidden: bool) -> Session:
        """A conversation with one model.

        Raises:
            InvalidArgument: pseudonym, consent or task are wrong.
            NotFound: no such model.
            AlreadyExists: the request id belongs to another call.
        """
        task = self._checked(request)
        if known := self._known(request):
            return known
        opening = _opening(request, task, "chat")
        opening = replace(opening, model=await self._models.resolve(model, "model"), model_hidden=hidden)
        return self._open(opening, request)

    async def open_battle(self, request: Request, first: str, second: str) -> Session:
        """A blind comparison; sides are drawn by lot. Raises as `open_chat`, or InvalidArgument for equals."""
        task = self._checked(request)
        if known := self._known(request):
            return known
        models = [
            await self._models.resolve(first, "first_model"),
            await self._models.resolve(second, "second_model"),
        ]
        if models[0].name == models[1].name:
            raise InvalidArgument.field(
                "second_model", f"is {models[1].name} like the first one; compare two different versions"
            )
        if uuid.uuid4().int % 2:
            models.reverse()
        opening = replace(_opening(request, task, "battle"), left=models[0], right=models[1], model_hidden=True)
        return self._open(opening, request)

    def _checked(self, request: Request) -> Task:
        check_pseudonym(request.tester, "tester")
        guide = self.guide()
        guide.check_consent(request.consent_version)
        return guide.task(request.task)

    def _known(self, request: Request) -> Session | None:
        """The session that the same request opened before."""
        event = self.journal.by_request(request.request_id) if request.request_id else None
        if event is None:
            return None
        opening = opening_of(event) if event.kind == "session" else None
        if opening is None or (opening.tester, opening.task) != (request.tester, request.task):
            raise AlreadyExists(
                f"request_id {request.request_id!r} belongs to another call; use a new one", reason="REQUEST_ID_REUSED"
            )
        return self.get(event.session)

    def _open(self, opening: Opening, request: Request) -> Session:
        # the same request may have come twice, and been first while this one asked who answers
        if known := self._known(request):
            return known
        session = uuid.uuid4().hex[:16]
        try:
            self.journal.append(
                "session",
                payload_of(opening),
                session=session,
                subject=f"testSessions/{session}",
                author=opening.tester,
                request_id=request.request_id,
            )
        except AlreadyExists:  # or in another process
            if known := self._known(request):
                return known
            raise
        return self.get(session)

    def get(self, session: str) -> Session:
        """A session with all that happened in it. Raises NotFound."""
        found = fold(self.journal.of_session(session)) if session else None
        if found is None:
            raise NotFound(f"there is no session testSessions/{session}; ListTestSessions shows what there is")
        return found

    def newest(self, limit: int, before: int | None, tester: str) -> list[Session]:
        """Newest first; `before` is the sequence number of the last one seen."""
        return [self.get(event.session) for event in self.journal.newest("session", limit, before, tester)]

    def record(self, session: str, turn: Turn, request_id: str = "") -> tuple[Session, Turn]:
        """Keep a turn; returns it with its number.

        Raises:
            NotFound: no such session.
            FailedPrecondition: it is finished.
            InvalidArgument: a side that the session doesn't have, no such turn to replace, or a text too long.
        """
        found = self.get(session)
        known = self.journal.by_request(request_id) if request_id else None
        if known is None:
            _check_turn(found, turn)
        event = self.journal.append(
            "turn",
            payload_of(turn),
            session=session,
            subject=found.name,
            author=found.opening.tester,
            request_id=request_id,
        )
        return found, turn_of(event)

    def label(self, label: Label, request_id: str = "") -> tuple[Label, Session | None]:
        """Keep a label; the second value is the session that it belongs to, None for a machine-scored trial.

        Raises:
            InvalidArgument: a subject of another form, an unknown class, a mark out of range.
            NotFound: no such subject.
        """
        check_label(label)
        subject = parse(label.subject)
        session: Session | None = None
        if isinstance(subject, SessionSubject):
            session = self.get(subject.session)
            if subject.turn and all(turn.number != subject.turn for turn in session.turns):
                raise NotFound(f"there is no turn {label.subject}; RecordTurn gives turns their names")
        elif not self._trial_exists(subject):
            raise NotFound(f"there is no trial {label.subject}; ListLabelQueue gives their names")
        event = self._append_label(label, session, request_id)
        return label_of(event), self.get(session.id) if session else None

    def _append_label(self, label: Label, session: Session | None, request_id: str) -> Event:
        return self.journal.append(
            "label",
            payload_of(label),
            session=session.id if session else "",
            subject=label.subject,
            author=label.author,
            request_id=request_id,
        )

    def battle(self, session: str) -> Session:
        """A session that compares two models. Raises NotFound."""
        found = self.get(session)
        if found.opening.kind != "battle":
            raise NotFound(f"{found.name} is no comparison; CreateBattle makes one")
        return found

    def vote(self, session: str, choice: Choice, *, leaked: bool, note: str, request_id: str = "") -> Session:
        """Keep a vote. It is void if a side told its name, or the tester knew it.

        Raises:
            NotFound: no such comparison.
            FailedPrecondition: a side has not answered yet, or there is another vote.
        """
        found = self.battle(session)
        if found.vote is not None:
            if found.vote.choice == choice:
                return found
            raise FailedPrecondition(
                f"{found.name} has a vote already ({found.vote.choice}), and its models are known since; open another "
                "comparison to vote again",
                reason="ALREADY_VOTED",
            )
        if {turn.side for turn in found.turns if turn.status == "OK"} != {"left", "right"}:
            raise FailedPrecondition(
                f"{found.name} has no answer of both sides yet; vote when both have answered", reason="NOT_ANSWERED"
            )
        self.journal.append(
            "vote",
            payload_of(Vote(choice, _void_reason(found, leaked), note)),
            session=session,
            subject=found.name,
            author=found.opening.tester,
            request_id=request_id,
        )
        return self.get(session)


def _opening(request: Request, task: Task, kind: str) -> Opening:
    return Opening(
        tester=request.tester,
        consent_version=request.consent_version,
        task=task.id,
        task_kind=task.kind,
        task_title=spoken(task.title, "en"),
        kind="battle" if kind == "battle" else "chat",
        facts=task.facts,
        language=request.language,
        app_version=request.app_version,
    )


def _check_turn(session: Session, turn: Turn) -> None:
    if session.finished:
        raise FailedPrecondition(
            f"{session.name} is finished; open another session to go on", reason="SESSION_FINISHED"
        )
    if bool(turn.side) != (session.opening.kind == "battle"):
        raise InvalidArgument.field("turn.side", "must be set in a comparison, and only there")
    if turn.replaces and all(t.number != turn.replaces or t.side != turn.side for t in session.turns):
        raise InvalidArgument.field("turn.replaces", "names no turn of this side of the session")
    for field, text in (("turn.user", turn.user), ("turn.reply", turn.reply)):
        if len(text) > MAX_TEXT:
            raise InvalidArgument.field(field, f"has {len(text)} characters; at most {MAX_TEXT} are kept")
    if not turn.user:
        raise InvalidArgument.field("turn.user", "must not be empty")


def _void_reason(session: Session, leaked: bool) -> str:
    opening = session.opening
    for side, model in (("left", opening.left), ("right", opening.right)):
        if told := leaks.identity(model.name, (t.reply for t in session.turns if t.side == side)):
            return f"the {side} side said {told!r}"
    return "the tester could tell which model is which" if leaked else ""
