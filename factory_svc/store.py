"""Keeps jobs and their events in a database: SQLite in WAL mode beside the registry, or any URL that SQLAlchemy takes.

Every method is one transaction. Events of a job are numbered without gaps, so a client that comes back asks for what
lies behind the last number it saw. The store knows nothing of how jobs run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from chatmill import disk
from chatmill.errors import AlreadyExists, FailedPrecondition, NotFound
from factory_svc.jobs import Event, EventKind, Job, JobSpec, State, check_transition

_metadata = sa.MetaData()
_jobs = sa.Table(
    "training_jobs",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(100), nullable=False, unique=True),
    sa.Column("request_id", sa.String(200), unique=True),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("base_name", sa.String(200), nullable=False),
    sa.Column("progress", sa.JSON, nullable=False),
    sa.Column("model", sa.String(200), nullable=False),
    sa.Column("error", sa.JSON(none_as_null=True)),
    sa.Column("created", sa.DateTime(timezone=True), nullable=False),
    sa.Column("started", sa.DateTime(timezone=True)),
    sa.Column("ended", sa.DateTime(timezone=True)),
    sa.Column("last_sequence", sa.Integer, nullable=False),
)
_events = sa.Table(
    "training_events",
    _metadata,
    sa.Column("job", sa.Integer, sa.ForeignKey("training_jobs.number"), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True),
    sa.Column("time", sa.DateTime(timezone=True), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("payload", sa.JSON, nullable=False),
)


class JobStore:
    """The jobs of one factory.

    Args:
        url: SQLAlchemy URL, for example `sqlite:////srv/chatmill-home/factory.sqlite`.

    Raises:
        FailedPrecondition: the database can't be opened.
    """

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(url)
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _sqlite_settings)
        try:
            _metadata.create_all(self._engine)
        except sa.exc.OperationalError as error:
            raise FailedPrecondition(
                f"The job database {url} can't be opened: {error.orig}.", reason="DATABASE_UNAVAILABLE"
            ) from error

    @classmethod
    def in_folder(cls, home: Path) -> JobStore:
        """The store in `home/factory.sqlite`."""
        home.mkdir(parents=True, exist_ok=True)
        return cls(f"sqlite:///{home / 'factory.sqlite'}")

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def add(self, job: Job, request_id: str = "") -> tuple[Job, bool]:
        """Accept a job.

        Returns:
            the job with its number and first event, and True; or the job of an earlier call with the same
            `request_id`, and False.

        Raises:
            AlreadyExists: `request_id` was used for another spec.
        """
        with self._transaction() as db:
            earlier = self._by_request(db, request_id)
            if earlier is not None:
                if earlier.spec != job.spec:
                    raise AlreadyExists(
                        f"request_id {request_id!r} was used for another training, {earlier.name}. Use a new one.",
                        reason="REQUEST_ID_REUSED",
                    )
                return earlier, False
            values = _row(job) | {"request_id": request_id or None}
            number = db.execute(sa.insert(_jobs).values(**values)).inserted_primary_key
            assert number is not None
            accepted = replace(job, number=number[0])
            event = self._append(db, accepted, EventKind.STATE, {"state": str(job.state)})
            return replace(accepted, last_sequence=event.sequence), True

    def by_request(self, request_id: str) -> Job | None:
        """The job that an earlier call with this `request_id` made, or None."""
        with self._transaction() as db:
            return self._by_request(db, request_id)

    def get(self, job_id: str) -> Job:
        """One job. Raises NotFound."""
        with self._transaction() as db:
            return self._get(db, job_id)

    def page(self, *, limit: int, before: int | None = None, state: State | None = None) -> list[Job]:
        """Jobs, newest first.

        Args:
            limit: at most so many.
            before: only jobs with a smaller number.
            state: only jobs in this state.
        """
        query = sa.select(_jobs).order_by(_jobs.c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(_jobs.c.number < before)
        if state is not None:
            query = query.where(_jobs.c.state == str(state))
        with self._transaction() as db:
            return [_job(row) for row in db.execute(query).mappings()]

    def unfinished(self) -> list[Job]:
        """Jobs that have not ended, oldest first."""
        final = [str(s) for s in State if s.final]
        query = sa.select(_jobs).where(_jobs.c.state.not_in(final)).order_by(_jobs.c.number)
        with self._transaction() as db:
            return [_job(row) for row in db.execute(query).mappings()]

    def change(self, job_id: str, state: State, *, model: str = "", error: dict[str, Any] | None = None) -> Job:
        """Move a job to another state; a final one ends it with the event `FINISHED`.

        Raises:
            NotFound: no such job.
            FailedPrecondition: the change is illegal.
        """
        with self._transaction() as db:
            job = self._get(db, job_id)
            check_transition(job.name, job.state, state)
            now = datetime.now(UTC)
            changed = replace(
                job,
                state=state,
                model=model or job.model,
                error=error,
                started=now if state is State.RUNNING else job.started,
                ended=now if state.final else None,
            )
            db.execute(sa.update(_jobs).where(_jobs.c.number == job.number).values(**_row(changed)))
            event = self._append(db, changed, EventKind.STATE, {"state": str(state)})
            if state.final:
                event = self._append(db, replace(changed, last_sequence=event.sequence), EventKind.FINISHED, {})
            return replace(changed, last_sequence=event.sequence)

    def progress(self, job_id: str, progress: dict[str, Any]) -> Event:
        """Keep a progress as the newest, and as an event."""
        with self._transaction() as db:
            job = self._get(db, job_id)
            db.execute(sa.update(_jobs).where(_jobs.c.number == job.number).values(progress=progress))
            return self._append(db, job, EventKind.PROGRESS, progress)

    def warn(self, job_id: str, text: str) -> Event:
        """Keep a warning as an event."""
        with self._transaction() as db:
            return self._append(db, self._get(db, job_id), EventKind.WARNING, {"text": text})

    def events(self, job_id: str, after: int = 0, limit: int = 500) -> list[Event]:
        """Events with a sequence number above `after`, in order. Raises NotFound."""
        with self._transaction() as db:
            job = self._get(db, job_id)
            query = (
                sa.select(_events)
                .where(_events.c.job == job.number, _events.c.sequence > after)
                .order_by(_events.c.sequence)
                .limit(limit)
            )
            return [
                Event(row["sequence"], _aware(row["time"]), EventKind(row["kind"]), row["payload"])
                for row in db.execute(query).mappings()
            ]

    def _get(self, db: sa.Connection, job_id: str) -> Job:
        row = db.execute(sa.select(_jobs).where(_jobs.c.id == job_id)).mappings().first()
        if row is None:
            raise NotFound(
                f"There is no training job trainingJobs/{job_id}; ListTrainingJobs shows what there is.",
                metadata={"name": f"trainingJobs/{job_id}"},
            )
        return _job(row)

    def _by_request(self, db: sa.Connection, request_id: str) -> Job | None:
        if not request_id:
            return None
        row = db.execute(sa.select(_jobs).where(_jobs.c.request_id == request_id)).mappings().first()
        return _job(row) if row is not None else None

    def _append(self, db: sa.Connection, job: Job, kind: EventKind, payload: dict[str, Any]) -> Event:
        event = Event(job.last_sequence + 1, datetime.now(UTC), kind, payload)
        db.execute(
            sa.insert(_events).values(
                job=job.number, sequence=event.sequence, time=event.time, kind=str(kind), payload=payload
            )
        )
        db.execute(sa.update(_jobs).where(_jobs.c.number == job.number).values(last_sequence=event.sequence))
        return event

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        with disk.clear_errors("the job database"), self._engine.begin() as db:
            yield db


def _sqlite_settings(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA busy_timeout=5000")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _row(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "state": str(job.state),
        "spec": job.spec.to_dict(),
        "base_name": job.base_name,
        "progress": job.progress,
        "model": job.model,
        "error": job.error,
        "created": job.created,
        "started": job.started,
        "ended": job.ended,
        "last_sequence": job.last_sequence,
    }


def _job(row: sa.RowMapping) -> Job:
    return Job(
        id=row["id"],
        number=row["number"],
        spec=JobSpec.from_dict(row["spec"]),
        base_name=row["base_name"],
        state=State(row["state"]),
        progress=row["progress"],
        model=row["model"],
        error=row["error"],
        created=_aware(row["created"]),
        started=_aware(row["started"]) if row["started"] else None,
        ended=_aware(row["ended"]) if row["ended"] else None,
        last_sequence=row["last_sequence"],
    )


def _aware(time: datetime) -> datetime:
    """SQLite drops the zone; what was written is UTC."""
    return time if time.tzinfo else time.replace(tzinfo=UTC)
