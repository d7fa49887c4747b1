"""Where evaluations live: one SQLite file (or any SQLAlchemy URL), one row per turn, per dialogue and per event.

Every answered turn is committed before the next one is asked, so that a killed service loses no reply that was paid
for. It knows no gRPC and makes no calls.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.pool import StaticPool

from eval_svc.result import Trial, TrialScore
from eval_svc.transcript import Exchange, Message, Transcript, Unit

State = Literal["queued", "running", "succeeded", "failed", "cancelling", "cancelled"]
ENDED: frozenset[State] = frozenset(("succeeded", "failed", "cancelled"))

_EXCHANGE = TypeAdapter(Exchange)
_SCORE = TypeAdapter(TrialScore)
_MESSAGES = TypeAdapter(tuple[Message, ...])

_meta = sa.MetaData()
_evaluations = sa.Table(
    "evaluations",
    _meta,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("request_id", sa.String(128), unique=True),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("suite", sa.JSON),
    sa.Column("suite_id", sa.String(128), nullable=False, default=""),
    sa.Column("suite_digest", sa.String(64), nullable=False, default=""),
    sa.Column("targets", sa.JSON, nullable=False),
    sa.Column("board", sa.Text),
    sa.Column("progress", sa.JSON),
    sa.Column("error", sa.JSON),
    sa.Column("incomplete", sa.Text, nullable=False, default=""),
    sa.Column("grader", sa.String(16), nullable=False, default=""),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("ended_at", sa.Float),
    sa.Column("sequence", sa.Integer, nullable=False, default=0),
)
_unit_columns = ("evaluation", "arm", "scenario", "trial", "variant")


def _unit_key() -> list[sa.Column[Any]]:
    return [
        sa.Column("evaluation", sa.String(64), sa.ForeignKey("evaluations.id"), primary_key=True),
        sa.Column("arm", sa.String(16), primary_key=True),
        sa.Column("scenario", sa.String(128), primary_key=True),
        sa.Column("trial", sa.Integer, primary_key=True),
        sa.Column("variant", sa.Integer, primary_key=True),
    ]


_turns = sa.Table(
    "turns",
    _meta,
    *_unit_key(),
    sa.Column("turn", sa.Integer, primary_key=True),
    sa.Column("user", sa.Text, nullable=False),
    sa.Column("reply", sa.Text, nullable=False),
    sa.Column("finish_reason", sa.String(32), nullable=False),
    sa.Column("status", sa.String(64), nullable=False),
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("first_token_ms", sa.Float),
    sa.Column("total_ms", sa.Float, nullable=False),
    sa.Column("tokens_in", sa.Integer),
    sa.Column("tokens_out", sa.Integer),
    sa.Column("exchange", sa.Text, nullable=False),
)
_trials = sa.Table(
    "trials",
    _meta,
    *_unit_key(),
    sa.Column("seed", sa.Integer, nullable=False),
    sa.Column("passed", sa.Boolean),
    sa.Column("score_mean", sa.Float),
    sa.Column("score_min", sa.Float),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("infra", sa.String(64), nullable=False),
    sa.Column("system", sa.Text, nullable=False),
    sa.Column("history", sa.Text, nullable=False),
    sa.Column("exchanges", sa.Text, nullable=False),
    sa.Column("stopped", sa.Boolean, nullable=False),
    sa.Column("score", sa.Text, nullable=False),
)
_events = sa.Table(
    "events",
    _meta,
    sa.Column("evaluation", sa.String(64), sa.ForeignKey("evaluations.id"), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("payload", sa.JSON, nullable=False),
)
_EXCHANGES = TypeAdapter(tuple[Exchange, ...])


@dataclass(frozen=True, slots=True)
class Record:
    """One evaluation as stored.

    Attributes:
        spec: the request, as `evaluations.Spec` reads it.
        suite: snapshot of the suite that was run; None before it was resolved.
        targets: what was found out about each side, by arm.
        board: the results as JSON, see `eval_svc.board.Board`; None before the end.
        progress: the newest counts.
        error: code, message and reason of what ended it; None if nothing did.
        incomplete: why not everything was played; empty if it was.
        created_at, ended_at: seconds since the epoch.
        sequence: number of the newest event.
    """

    id: str
    request_id: str | None
    state: State
    spec: Mapping[str, Any]
    suite: Mapping[str, Any] | None
    suite_id: str
    suite_digest: str
    targets: Mapping[str, Any]
    board: str | None
    progress: Mapping[str, Any] | None
    error: Mapping[str, Any] | None
    incomplete: str
    grader: str
    created_at: float
    ended_at: float | None
    sequence: int


@dataclass(frozen=True, slots=True)
class Event:
    """One event as stored; `kind` is state, progress, trial, warning or finished."""

    sequence: int
    time: float
    kind: str
    payload: Mapping[str, Any]


class Store:
    """The database. Calls block for about a millisecond; reports over whole runs belong in a thread.

    Args:
        url: SQLAlchemy URL, or the path of a SQLite file, which is made if it is missing.
    """

    def __init__(self, url: str | Path) -> None:
        if isinstance(url, Path):
            url.parent.mkdir(parents=True, exist_ok=True)
            url = f"sqlite:///{url}"
        options: dict[str, Any] = {"connect_args": {"check_same_thread": False}} if url.startswith("sqlite") else {}
        if url in ("sqlite://", "sqlite:///:memory:"):
            options["poolclass"] = StaticPool
        self.engine = sa.create_engine(url, **options)
        if url.startswith("sqlite"):
            sa.event.listen(self.engine, "connect", _tune)
        _meta.create_all(self.engine)
        insert = postgresql.insert if self.engine.dialect.name == "postgresql" else sqlite.insert
        self._upserts = {table.name: _upsert(insert(table), table) for table in (_turns, _trials)}

    def close(self) -> None:
        """Let go of the file."""
        self.engine.dispose()

    def create(self, evaluation: str, request_id: str | None, spec: Mapping[str, Any]) -> tuple[Record, bool]:
        """Keep a new evaluation; the second value is False if one with that request id was there, which is returned."""
        with self.engine.begin() as db:
            if request_id:
                row = db.execute(sa.select(_evaluations).where(_evaluations.c.request_id == request_id)).first()
                if row is not None:
                    return _record(row), False
            db.execute(
                _evaluations.insert().values(
                    id=evaluation,
                    request_id=request_id or None,
                    state="queued",
                    spec=dict(spec),
                    targets={},
                    created_at=time.time(),
                )
            )
        found = self.get(evaluation)
        assert found is not None
        return found, True

    def get(self, evaluation: str) -> Record | None:
        """The evaluation, or None."""
        with self.engine.connect() as db:
            row = db.execute(sa.select(_evaluations).where(_evaluations.c.id == evaluation)).first()
        return _record(row) if row is not None else None

    def by_request(self, request_id: str) -> Record | None:
        """The evaluation that was started under this request id, or None."""
        with self.engine.connect() as db:
            row = db.execute(sa.select(_evaluations).where(_evaluations.c.request_id == request_id)).first()
        return _record(row) if row is not None else None

    def update(self, evaluation: str, **values: Any) -> None:
        """Change columns of an evaluation."""
        with self.engine.begin() as db:
            db.execute(_evaluations.update().where(_evaluations.c.id == evaluation).values(**values))

    def list(self, *, limit: int, before: Record | None = None, state: str | None = None) -> Sequence[Record]:
        """Newest first; `before` is the last one seen."""
        query = (
            sa.select(_evaluations).order_by(_evaluations.c.created_at.desc(), _evaluations.c.id.desc()).limit(limit)
        )
        if before is not None:
            seen = sa.tuple_(before.created_at, before.id)
            query = query.where(sa.tuple_(_evaluations.c.created_at, _evaluations.c.id) < seen)
        if state is not None:
            query = query.where(_evaluations.c.state == state)
        with self.engine.connect() as db:
            return [_record(row) for row in db.execute(query)]

    def unfinished(self) -> Sequence[Record]:
        """Evaluations that had not ended when the service did."""
        query = sa.select(_evaluations).where(_evaluations.c.state.not_in(ENDED)).order_by(_evaluations.c.created_at)
        with self.engine.connect() as db:
            return [_record(row) for row in db.execute(query)]

    def put_turn(self, evaluation: str, unit: Unit, exchange: Exchange) -> None:
        """Keep an answered turn."""
        reply = exchange.reply
        assert reply is not None
        values = {
            **_unit_values(evaluation, unit),
            "turn": exchange.index,
            "user": exchange.user,
            "reply": reply.text,
            "finish_reason": reply.finish_reason,
            "status": reply.failure.status if reply.failure else "OK",
            "started_at": reply.started_at,
            "first_token_ms": reply.first_token_ms,
            "total_ms": reply.total_ms,
            "tokens_in": reply.tokens_in,
            "tokens_out": reply.tokens_out,
            "exchange": _EXCHANGE.dump_json(exchange).decode(),
        }
        self._upsert(_turns, values)

    def turns(self, evaluation: str) -> dict[Unit, dict[int, Exchange]]:
        """All answered turns of an evaluation."""
        found: dict[Unit, dict[int, Exchange]] = {}
        query = sa.select(_turns).where(_turns.c.evaluation == evaluation)
        with self.engine.connect() as db:
            for row in db.execute(query):
                found.setdefault(_unit(row), {})[row.turn] = _EXCHANGE.validate_json(row.exchange)
        return found

    def put_trial(self, evaluation: str, trial: Trial) -> None:
        """Keep a scored dialogue; it replaces an earlier score of the same unit."""
        transcript, score = trial.transcript, trial.score
        values = {
            **_unit_values(evaluation, trial.unit),
            "seed": transcript.seed,
            "passed": score.passed,
            "score_mean": score.score_mean,
            "score_min": score.score_min,
            "outcome": score.outcome,
            "infra": score.infra.status if score.infra else "",
            "system": transcript.system,
            "history": _MESSAGES.dump_json(transcript.history).decode(),
            "exchanges": _EXCHANGES.dump_json(transcript.exchanges).decode(),
            "stopped": transcript.stopped,
            "score": _SCORE.dump_json(score).decode(),
        }
        self._upsert(_trials, values)

    def put_trials(self, evaluation: str, trials: Sequence[Trial]) -> None:
        """Keep many scored dialogues."""
        for trial in trials:
            self.put_trial(evaluation, trial)

    def trials(self, evaluation: str) -> Iterator[Trial]:
        """All scored dialogues of an evaluation, in a fixed order."""
        query = sa.select(_trials).where(_trials.c.evaluation == evaluation)
        query = query.order_by(_trials.c.scenario, _trials.c.trial, _trials.c.variant, _trials.c.arm)
        with self.engine.connect() as db:
            for row in db.execute(query):
                yield _trial(row)

    def trial(self, evaluation: str, unit: Unit) -> Trial | None:
        """One scored dialogue, or None."""
        with self.engine.connect() as db:
            row = db.execute(sa.select(_trials).where(*_matches(_trials, evaluation, unit))).first()
        return _trial(row) if row is not None else None

    def add_event(self, evaluation: str, kind: str, payload: Mapping[str, Any]) -> Event:
        """Append an event under the next sequence number."""
        now = time.time()
        with self.engine.begin() as db:
            raised = _evaluations.update().where(_evaluations.c.id == evaluation)
            raised = raised.values(sequence=_evaluations.c.sequence + 1)
            sequence = int(db.execute(raised.returning(_evaluations.c.sequence)).scalar_one())
            row = {"evaluation": evaluation, "sequence": sequence, "time": now, "kind": kind, "payload": dict(payload)}
            db.execute(_events.insert().values(row))
        return Event(sequence, now, kind, payload)

    def events(self, evaluation: str, after: int, limit: int = 500) -> Sequence[Event]:
        """Events behind a sequence number, oldest first."""
        query = sa.select(_events).where(_events.c.evaluation == evaluation, _events.c.sequence > after)
        with self.engine.connect() as db:
            rows = db.execute(query.order_by(_events.c.sequence).limit(limit)).all()
        return [Event(row.sequence, row.time, row.kind, row.payload) for row in rows]

    def _upsert(self, table: sa.Table, values: Mapping[str, Any]) -> None:
        with self.engine.begin() as db:
            db.execute(self._upserts[table.name], values)


def _upsert(insert: Any, table: sa.Table) -> Any:
    """The statement that inserts a row or replaces the one with its key."""
    keys = [column.name for column in table.primary_key]
    rest = {c.name: insert.excluded[c.name] for c in table.columns if c.name not in keys}
    return insert.on_conflict_do_update(index_elements=keys, set_=rest)


def _tune(connection: Any, _: Any) -> None:
    """WAL lets readers go on while a run writes; NORMAL still survives a killed process."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA busy_timeout=10000")
    cursor.close()


def _record(row: Any) -> Record:
    assert row.state in get_args(State)
    return Record(**row._mapping)


def _unit_values(evaluation: str, unit: Unit) -> dict[str, Any]:
    return dict(zip(_unit_columns, (evaluation, unit.arm, unit.scenario, unit.trial, unit.variant), strict=True))


def _matches(table: sa.Table, evaluation: str, unit: Unit) -> list[sa.ColumnElement[bool]]:
    return [table.c[name] == value for name, value in _unit_values(evaluation, unit).items()]


def _unit(row: Any) -> Unit:
    return Unit(row.arm, row.scenario, row.trial, row.variant)


def _trial(row: Any) -> Trial:
    transcript = Transcript(
        unit=_unit(row),
        seed=row.seed,
        system=row.system,
        history=_MESSAGES.validate_json(row.history),
        exchanges=_EXCHANGES.validate_json(row.exchanges),
        stopped=row.stopped,
    )
    return Trial(transcript, _SCORE.validate_json(row.score))
