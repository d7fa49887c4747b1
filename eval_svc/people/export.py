"""All labels and votes in order of time, each with what it is about, for a notebook or an archive."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from eval_svc.people.journal import Journal
from eval_svc.people.queue import sessions_of
from eval_svc.people.records import Label, Model, Session, Vote, label_of, vote_of
from eval_svc.people.subjects import TrialSubject, parse
from eval_svc.store import Store


@dataclass(frozen=True, slots=True)
class Exported:
    """One label or vote.

    Attributes:
        time: seconds since the epoch.
        session: None for a label of a machine-scored trial.
        task: task or scenario.
        user, reply: what was said, if it is about a turn.
        replaced: the same author has said something newer about the same subject.
    """

    sequence: int
    time: float
    label: Label | None = None
    vote: Vote | None = None
    session: Session | None = None
    model: Model = field(default_factory=Model)
    task: str = ""
    user: str = ""
    reply: str = ""
    replaced: bool = False


def export(journal: Journal, store: Store, after: int, *, latest_only: bool) -> Iterator[Exported]:
    """Everything behind a sequence number; with `latest_only` without what its author has replaced since.

    Reads all sessions at its beginning; go through it in a thread.
    """
    sessions = {session.id: session for session in sessions_of(journal)}
    events = list(journal.of_kinds(["label", "vote"]))
    newest = {(e.kind, e.subject, e.author): e.sequence for e in events}
    for event in events:
        replaced = newest[event.kind, event.subject, event.author] != event.sequence
        if event.sequence <= after or (replaced and latest_only):
            continue
        session = sessions.get(event.session)
        if event.kind == "vote":
            task = session.opening.task if session else ""
            yield Exported(event.sequence, event.time, vote=vote_of(event), session=session, task=task)
        else:
            yield _label(label_of(event), session, store, replaced=replaced)


def _label(label: Label, session: Session | None, store: Store, *, replaced: bool) -> Exported:
    model, task, user, reply = Model(), "", "", ""
    subject = parse(label.subject)
    if isinstance(subject, TrialSubject):
        record = store.get(subject.evaluation)
        target = record.targets.get(subject.unit.arm, {}) if record else {}
        model, task = Model(target.get("model", ""), target.get("revision", "")), subject.unit.scenario
    elif session is not None:
        model, task = session.opening.model, session.opening.task
        turn = next((turn for turn in session.turns if turn.number == subject.turn), None)
        if turn is not None:
            model, user, reply = session.model_of(turn), turn.user, turn.reply
    return Exported(label.sequence, label.time, label, None, session, model, task, user, reply, replaced)
