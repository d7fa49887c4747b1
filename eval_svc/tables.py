"""The tables of evaluations: a row per run, per turn, per dialogue, per event, per reply timed by itself, and per
answer of the judge."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

META = sa.MetaData()
EVALUATIONS = sa.Table(
    "evaluations",
    META,
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
    sa.Column("decided", sa.Text),
    sa.Column("grader", sa.String(16), nullable=False, default=""),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("ended_at", sa.Float),
    sa.Column("sequence", sa.Integer, nullable=False, default=0),
)
UNIT_COLUMNS = ("evaluation", "arm", "scenario", "trial", "variant")


def _unit_key() -> list[sa.Column[Any]]:
    return [
        sa.Column("evaluation", sa.String(64), sa.ForeignKey("evaluations.id"), primary_key=True),
        sa.Column("arm", sa.String(16), primary_key=True),
        sa.Column("scenario", sa.String(128), primary_key=True),
        sa.Column("trial", sa.Integer, primary_key=True),
        sa.Column("variant", sa.Integer, primary_key=True),
    ]


TURNS = sa.Table(
    "turns",
    META,
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
TRIALS = sa.Table(
    "trials",
    META,
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
EVENTS = sa.Table(
    "events",
    META,
    sa.Column("evaluation", sa.String(64), sa.ForeignKey("evaluations.id"), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("payload", sa.JSON, nullable=False),
)
TIMES = sa.Table(
    "times",
    META,
    sa.Column("evaluation", sa.String(64), sa.ForeignKey("evaluations.id"), primary_key=True),
    sa.Column("arm", sa.String(16), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("first_token_ms", sa.Float),
    sa.Column("total_ms", sa.Float),
)
JUDGEMENTS = sa.Table(
    "judgements",
    META,
    sa.Column("evaluation", sa.String(64), sa.ForeignKey("evaluations.id"), primary_key=True),
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("answer", sa.Text, nullable=False),
)


def prepare(engine: sa.Engine) -> None:
    """Make what is missing: tables, and columns that came after a database was made. Those may be null."""
    META.create_all(engine)
    for table in META.tables.values():
        there = {column["name"] for column in sa.inspect(engine).get_columns(table.name)}
        for column in (c for c in table.columns if c.name not in there):
            kind = column.type.compile(engine.dialect)
            with engine.begin() as db:
                db.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}"))
