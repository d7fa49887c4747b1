"""Defects: what people found a model doing that it must not, and what became of it.

They are found by people who look for them, so they are counted and shown, and never made into a rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chatmill.errors import NotFound
from eval_svc.people.journal import Event, Journal
from eval_svc.people.labels import check_pseudonym, severity_of
from eval_svc.people.records import DefectStatus, Label, Model, Session, Turn
from eval_svc.people.sessions import TestSessions
from eval_svc.people.subjects import SessionSubject, parse
from eval_svc.taxonomy import Severity
from eval_svc.transcript import Message


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a defect's status; `author` is empty where it follows from a label that was taken back."""

    status: DefectStatus
    author: str
    note: str
    time: float


@dataclass(frozen=True, slots=True)
class Defect:
    """A defect as it is now.

    Attributes:
        subject: resource name of the turn, or of the session.
        reporter: who found it first.
        labels: what people say about it now; empty if all was taken back.
        turn: the turn; None if it is about the whole session.
        sequence: number of its first event.
    """

    id: str
    subject: str
    session: Session
    turn: Turn | None
    reporter: str
    labels: tuple[Label, ...]
    changes: tuple[Change, ...]
    sequence: int

    @property
    def status(self) -> DefectStatus:
        """Where it stands."""
        return self.changes[-1].status

    @property
    def model(self) -> Model:
        """Which version did it."""
        return self.session.model_of(self.turn) if self.turn else self.session.opening.model

    @property
    def blind(self) -> bool:
        """Whether its tester is not to know the model yet."""
        return self.session.opening.model_hidden and not self.session.finished

    @property
    def error_classes(self) -> tuple[str, ...]:
        """What kinds of mistake, in the order they were named."""
        return tuple(dict.fromkeys(name for label in self.labels for name in label.error_classes))

    @property
    def severity(self) -> Severity:
        """The worst of its classes; major where none was named."""
        return severity_of(self.error_classes) or "major"

    @property
    def note(self) -> str:
        """What people wrote."""
        return "\n".join(label.note for label in self.labels if label.note)

    @property
    def evidence(self) -> str:
        """The passage that is wrong."""
        return next((label.evidence for label in self.labels if label.evidence), "")

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation up to it."""
        return self.session.messages(self.turn)


def reports(label: Label, session: Session) -> bool:
    """Whether a label reports a defect: a critical mistake anywhere, any mistake on a task to break the model, or a
    form that says it was broken where no reply of the session is named as the place."""
    subject = parse(label.subject)
    if isinstance(subject, SessionSubject) and subject.turn:
        critical = severity_of(label.error_classes) == "critical"
        return critical or (session.opening.task_kind == "break" and bool(label.error_classes))
    if label.form is None or not label.form.broke_it:
        return False
    return not any(reports(other, session) for other in session.labels if other.subject != session.name)


class Defects:
    """All defects.

    Args:
        sessions: where they were found.
    """

    def __init__(self, journal: Journal, sessions: TestSessions) -> None:
        self._journal = journal
        self._sessions = sessions

    def follow(self, label: Label, session: Session) -> str:
        """What a label means for its subject's defect; returns the defect's name, or an empty text.

        A first report opens it; a report that was taken back by everyone closes it, unless somebody decided otherwise.
        """
        changes = self._journal.of_subject(label.subject, "defect")
        status: DefectStatus | None = changes[-1].payload["status"] if changes else None
        decided = bool(changes) and bool(changes[-1].payload["by"]) and len(changes) > 1
        if reports(label, session):
            if status is None or (status == "rejected" and not decided):
                self._append(session.id, label.subject, "open", label.author, "")
            return f"defects/{defect_id(label.subject)}"
        others = any(reports(other, session) for other in session.labels if other.subject == label.subject)
        if status == "open" and not others:
            self._append(session.id, label.subject, "rejected", "", "the label was taken back")
        return ""

    def get(self, name: str) -> Defect:
        """A defect by its id. Raises NotFound."""
        subject = subject_of(name)
        events = self._journal.of_subject(subject, "defect") if subject else []
        if not events:
            raise NotFound(f"there is no defect defects/{name}; ListDefects shows what there is")
        return self._defect(events)

    def newest(self, limit: int, before: int | None, status: DefectStatus | None) -> list[Defect]:
        """Newest first; `before` is the sequence number of the last one seen."""
        by_subject: dict[str, list[Event]] = {}
        for event in self._journal.of_kinds(["defect"]):
            by_subject.setdefault(event.subject, []).append(event)
        found = []
        for events in reversed(by_subject.values()):
            fits = status is None or events[-1].payload["status"] == status
            if fits and (before is None or events[0].sequence < before):
                found.append(self._defect(events))
                if len(found) == limit:
                    break
        return found

    def update(self, name: str, status: DefectStatus, author: str, note: str) -> Defect:
        """Change its status. Raises NotFound, or InvalidArgument for what is no pseudonym."""
        check_pseudonym(author, "author")
        found = self.get(name)
        self._append(found.session.id, found.subject, status, author, note)
        return self.get(name)

    def _append(self, session: str, subject: str, status: DefectStatus, author: str, note: str) -> None:
        payload = {"status": status, "note": note, "by": author}
        self._journal.append("defect", payload, session=session, subject=subject, author=author)

    def _defect(self, events: Sequence[Event]) -> Defect:
        first = events[0]
        session = self._sessions.get(first.session)
        parsed = parse(first.subject)
        assert isinstance(parsed, SessionSubject)
        return Defect(
            id=defect_id(first.subject),
            subject=first.subject,
            session=session,
            turn=next((turn for turn in session.turns if turn.number == parsed.turn), None),
            reporter=first.author,
            labels=tuple(x for x in session.labels if x.subject == first.subject and reports(x, session)),
            changes=tuple(Change(e.payload["status"], e.payload["by"], e.payload["note"], e.time) for e in events),
            sequence=first.sequence,
        )


def defect_id(subject: str) -> str:
    """The id of the defect of a subject: `{session}` or `{session}-{turn}`."""
    return subject.removeprefix("testSessions/").replace("/turns/", "-")


def subject_of(defect: str) -> str:
    """The subject behind a defect's id, or an empty text for what is none."""
    session, _, turn = defect.partition("-")
    if not session.isalnum() or (turn and not turn.isdigit()):
        return ""
    return f"testSessions/{session}/turns/{turn}" if turn else f"testSessions/{session}"
