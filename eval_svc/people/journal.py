"""The journal of the people's part: one append-only table, in the same database as the evaluations.

Whatever a tester does is one event. An edit is a new event; the state of a session is folded from its events when it is
asked for. This module knows no session and no label, only events.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from chatmill.errors import AlreadyExists

_meta = sa.MetaData()
_events = sa.Table(
    "people_events",
    _meta,
    sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False, index=True),
    sa.Column("session", sa.String(32), nullable=False, index=True),
    sa.Column("subject", sa.String(255), nullable=False, index=True),
    sa.Column("author", sa.String(64), nullable=False, index=True),
    sa.Column("request_id", sa.String(128), unique=True),
    sa.Column("payload", sa.JSON, nullable=False),
    # without it SQLite gives the number of a deleted last row out again
    sqlite_autoincrement=True,
)
for _change in ("UPDATE", "DELETE"):
    _guard = sa.DDL(  # type: ignore[no-untyped-call]
        f"CREATE TRIGGER IF NOT EXISTS people_events_no_{_change.lower()} BEFORE {_change} ON people_events "
        "BEGIN SELECT RAISE(ABORT, 'people_events is append-only'); END"
    )
    sa.event.listen(_events, "after_create", _guard.execute_if(dialect="sqlite"))


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that a person did.

    Attributes:
        sequence: grows with time; gaps are possible.
        time: seconds since the epoch.
        kind: session, turn, label, vote or defect.
        session: id of the session that it belongs to; empty for labels of machine-scored trials.
        subject: resource name of what it is about.
        author: pseudonym of who did it.
        payload: the rest, as JSON.
    """

    sequence: int
    time: float
    kind: str
    session: str
    subject: str
    author: str
    payload: Mapping[str, Any]


class Journal:
    """Appends events and reads them in order. Calls block for about a millisecond.

    Args:
        engine: of the database; the table is made if it is missing.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        _meta.create_all(engine)

    def append(
        self,
        kind: str,
        payload: Mapping[str, Any],
        *,
        session: str = "",
        subject: str = "",
        author: str = "",
        request_id: str = "",
    ) -> Event:
        """Keep an event; it is committed when this returns. The same request id gives the first call's event.

        Raises:
            AlreadyExists: reason `REQUEST_ID_REUSED`, if that request id belongs to an event with another content.
        """
        values = {"kind": kind, "session": session, "subject": subject, "author": author, "payload": dict(payload)}
        if request_id and (known := self._repeated(request_id, values)) is not None:
            return known
        now = time.time()
        try:
            with self._engine.begin() as db:
                added = db.execute(_events.insert().values(**values, time=now, request_id=request_id or None))
                key = added.inserted_primary_key
        except sa.exc.IntegrityError:
            # the same request came twice at once, and the other one was first
            known = self._repeated(request_id, values)
            if known is None:
                raise
            return known
        assert key is not None
        return Event(int(key[0]), now, **values)  # type: ignore[arg-type]

    def _repeated(self, request_id: str, values: Mapping[str, Any]) -> Event | None:
        """The event that a request id belongs to, if there is one and it has this content."""
        found = self.by_request(request_id)
        if found is None:
            return None
        if any(getattr(found, name) != value for name, value in values.items()):
            raise AlreadyExists(
                f"request_id {request_id!r} belongs to an earlier call with another content; use a new one",
                reason="REQUEST_ID_REUSED",
            )
        return found

    def by_request(self, request_id: str) -> Event | None:
        """The event of a request id, or None."""
        return next(self._select(_events.c.request_id == request_id), None)

    def of_session(self, session: str) -> list[Event]:
        """All events of a session, oldest first."""
        return list(self._select(_events.c.session == session))

    def of_subject(self, subject: str, kind: str) -> list[Event]:
        """All events of a kind about a subject, oldest first."""
        return list(self._select(_events.c.subject == subject, _events.c.kind == kind))

    def of_kinds(self, kinds: Sequence[str], after: int = 0) -> Iterator[Event]:
        """All events of these kinds behind a sequence number, oldest first."""
        return self._select(_events.c.kind.in_(kinds), _events.c.sequence > after)

    def newest(self, kind: str, limit: int, before: int | None = None, author: str = "") -> list[Event]:
        """The newest events of a kind, newest first; `before` is the sequence number of the last one seen."""
        query = sa.select(_events).where(_events.c.kind == kind)
        if before is not None:
            query = query.where(_events.c.sequence < before)
        if author:
            query = query.where(_events.c.author == author)
        with self._engine.connect() as db:
            return [_event(row) for row in db.execute(query.order_by(_events.c.sequence.desc()).limit(limit))]

    def _select(self, *where: sa.ColumnElement[bool]) -> Iterator[Event]:
        with self._engine.connect() as db:
            rows = db.execute(sa.select(_events).where(*where).order_by(_events.c.sequence)).all()
        return map(_event, rows)


def _event(row: Any) -> Event:
    return Event(row.sequence, row.time, row.kind, row.session, row.subject, row.author, row.payload)
