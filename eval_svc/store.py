"""Where evaluations live: one SQLite file (or any SQLAlchemy URL), one row per turn, per dialogue and per event.

Every answered turn is committed before the next one is asked, so that a killed service loses no reply that was paid
for. It knows no gRPC and makes no calls.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.pool import StaticPool

from chatmill import disk
from eval_svc.result import Trial, TrialScore
from eval_svc.tables import EVALUATIONS, EVENTS, JUDGEMENTS, TIMES, TRIALS, TURNS, UNIT_COLUMNS, prepare
from eval_svc.timing import Timed
from eval_svc.transcript import Exchange, Message, Transcript, Unit

State = Literal["queued", "running", "succeeded", "failed", "cancelling", "cancelled"]
ENDED: frozenset[State] = frozenset(("succeeded", "failed", "cancelled"))

_EXCHANGE = TypeAdapter(Exchange)
_SCORE = TypeAdapter(TrialScore)
_MESSAGES = TypeAdapter(tuple[Message, ...])

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
        decided: why the rest was left out although nothing went wrong: the gate could not pass any more.
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
    decided: str | None
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
        sa.event.listen(self.engine, "handle_error", _say_that_the_disk_is_full)
        prepare(self.engine)
        insert = postgresql.insert if self.engine.dialect.name == "postgresql" else sqlite.insert
        self._upserts = {table.name: _upsert(insert(table), table) for table in (TURNS, TRIALS, TIMES, JUDGEMENTS)}

    def close(self) -> None:
        """Let go of the file."""
        self.engine.dispose()

    def create(
        self, evaluation: str, request_id: str | None, spec: Mapping[str, Any], **values: Any
    ) -> tuple[Record, bool]:
        """Keep a new evaluation, with more columns where they are known; the second value is False if one with that
        request id was there, which is returned."""
        with self.engine.begin() as db:
            if request_id:
                row = db.execute(sa.select(EVALUATIONS).where(EVALUATIONS.c.request_id == request_id)).first()
                if row is not None:
                    return _record(row), False
            db.execute(
                EVALUATIONS.insert().values(
                    id=evaluation,
                    request_id=request_id or None,
                    state="queued",
                    spec=dict(spec),
                    created_at=time.time(),
                    **{"targets": {}, **values},
                )
            )
        found = self.get(evaluation)
        assert found is not None
        return found, True

    def get(self, evaluation: str) -> Record | None:
        """The evaluation, or None."""
        with self.engine.connect() as db:
            row = db.execute(sa.select(EVALUATIONS).where(EVALUATIONS.c.id == evaluation)).first()
        return _record(row) if row is not None else None

    def by_request(self, request_id: str) -> Record | None:
        """The evaluation that was started under this request id, or None."""
        with self.engine.connect() as db:
            row = db.execute(sa.select(EVALUATIONS).where(EVALUATIONS.c.request_id == request_id)).first()
        return _record(row) if row is not None else None

    def update(self, evaluation: str, **values: Any) -> None:
        """Change columns of an evaluation."""
        with self.engine.begin() as db:
            db.execute(EVALUATIONS.update().where(EVALUATIONS.c.id == evaluation).values(**values))

    def list(self, *, limit: int, before: Record | None = None, state: str | None = None) -> Sequence[Record]:
        """Newest first; `before` is the last one seen."""
        query = sa.select(EVALUATIONS).order_by(EVALUATIONS.c.created_at.desc(), EVALUATIONS.c.id.desc()).limit(limit)
        if before is not None:
            seen = sa.tuple_(before.created_at, before.id)
            query = query.where(sa.tuple_(EVALUATIONS.c.created_at, EVALUATIONS.c.id) < seen)
        if state is not None:
            query = query.where(EVALUATIONS.c.state == state)
        with self.engine.connect() as db:
            return [_record(row) for row in db.execute(query)]

    def unfinished(self) -> Sequence[Record]:
        """Evaluations that had not ended when the service did."""
        query = sa.select(EVALUATIONS).where(EVALUATIONS.c.state.not_in(ENDED)).order_by(EVALUATIONS.c.created_at)
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
        self._upsert(TURNS, values)

    def turns(self, evaluation: str) -> dict[Unit, dict[int, Exchange]]:
        """All answered turns of an evaluation."""
        found: dict[Unit, dict[int, Exchange]] = {}
        query = sa.select(TURNS).where(TURNS.c.evaluation == evaluation)
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
        self._upsert(TRIALS, values)

    def put_trials(self, evaluation: str, trials: Sequence[Trial]) -> None:
        """Keep many scored dialogues."""
        for trial in trials:
            self.put_trial(evaluation, trial)

    def trials(self, evaluation: str) -> Iterator[Trial]:
        """All scored dialogues of an evaluation, in a fixed order."""
        query = sa.select(TRIALS).where(TRIALS.c.evaluation == evaluation)
        query = query.order_by(TRIALS.c.scenario, TRIALS.c.trial, TRIALS.c.variant, TRIALS.c.arm)
        with self.engine.connect() as db:
            for row in db.execute(query):
                yield _trial(row)

    def trial(self, evaluation: str, unit: Unit) -> Trial | None:
        """One scored dialogue, or None."""
        with self.engine.connect() as db:
            row = db.execute(sa.select(TRIALS).where(*_matches(TRIALS, evaluation, unit))).first()
        return _trial(row) if row is not None else None

    def add_event(self, evaluation: str, kind: str, payload: Mapping[str, Any]) -> Event:
        """Append an event under the next sequence number."""
        now = time.time()
        with self.engine.begin() as db:
            raised = EVALUATIONS.update().where(EVALUATIONS.c.id == evaluation)
            raised = raised.values(sequence=EVALUATIONS.c.sequence + 1)
            sequence = int(db.execute(raised.returning(EVALUATIONS.c.sequence)).scalar_one())
            row = {"evaluation": evaluation, "sequence": sequence, "time": now, "kind": kind, "payload": dict(payload)}
            db.execute(EVENTS.insert().values(row))
        return Event(sequence, now, kind, payload)

    def events(self, evaluation: str, after: int, limit: int = 500) -> Sequence[Event]:
        """Events behind a sequence number, oldest first."""
        query = sa.select(EVENTS).where(EVENTS.c.evaluation == evaluation, EVENTS.c.sequence > after)
        with self.engine.connect() as db:
            rows = db.execute(query.order_by(EVENTS.c.sequence).limit(limit)).all()
        return [Event(row.sequence, row.time, row.kind, row.payload) for row in rows]

    def reopen(self, evaluation: str, spec: Mapping[str, Any]) -> None:
        """Make an ended evaluation one that waits, under this spec; its end becomes an event like any other, so that
        who watches from the beginning does not stop there."""
        with self.engine.begin() as db:
            kept = {
                "state": "queued",
                "ended_at": None,
                "error": None,
                "incomplete": "",
                "decided": None,
                "board": None,
            }
            db.execute(EVALUATIONS.update().where(EVALUATIONS.c.id == evaluation).values(**kept, spec=dict(spec)))
            ends = EVENTS.update().where(EVENTS.c.evaluation == evaluation, EVENTS.c.kind == "finished")
            db.execute(ends.values(kind="state", payload={"state": "queued"}))

    def judgement(self, evaluation: str, key: str) -> str | None:
        """What the judge, or the played customer, answered under this key; or None."""
        where = JUDGEMENTS.c.evaluation == evaluation, JUDGEMENTS.c.key == key
        with self.engine.connect() as db:
            found: str | None = db.execute(sa.select(JUDGEMENTS.c.answer).where(*where)).scalar()
        return found

    def put_judgement(self, evaluation: str, key: str, answer: str) -> None:
        """Keep what the judge, or the played customer, answered."""
        self._upsert(JUDGEMENTS, {"evaluation": evaluation, "key": key, "answer": answer})

    def put_time(self, evaluation: str, timed: Timed) -> None:
        """Keep the times of a reply that was asked for by itself."""
        self._upsert(TIMES, {"evaluation": evaluation, **asdict(timed)})

    def times(self, evaluation: str) -> Sequence[Timed]:
        """All replies that were timed by themselves, in order."""
        query = sa.select(TIMES).where(TIMES.c.evaluation == evaluation).order_by(TIMES.c.arm, TIMES.c.number)
        with self.engine.connect() as db:
            return [Timed(row.arm, row.number, row.first_token_ms, row.total_ms) for row in db.execute(query)]

    def _upsert(self, table: sa.Table, values: Mapping[str, Any]) -> None:
        with self.engine.begin() as db:
            db.execute(self._upserts[table.name], values)


def _say_that_the_disk_is_full(context: sa.engine.ExceptionContext) -> None:
    """One clear line, whichever statement met it."""
    if disk.is_full(context.original_exception):
        raise disk.full("the evaluation database") from context.original_exception


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
    return dict(zip(UNIT_COLUMNS, (evaluation, unit.arm, unit.scenario, unit.trial, unit.variant), strict=True))


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
