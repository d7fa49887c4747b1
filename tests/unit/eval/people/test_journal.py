from __future__ import annotations

import pytest
import sqlalchemy as sa

from chatmill.errors import AlreadyExists
from eval_svc.people.journal import Journal
from eval_svc.store import Store


def test_events_can_be_neither_changed_nor_deleted(store: Store) -> None:
    event = Journal(store.engine).append("label", {"note": "x"}, subject="s", author="ana")
    for statement in ("UPDATE people_events SET author = 'eve'", "DELETE FROM people_events"):
        with pytest.raises(sa.exc.IntegrityError, match="append-only"), store.engine.begin() as db:
            db.execute(sa.text(statement))
    assert [e.author for e in Journal(store.engine).of_subject("s", "label")] == [event.author]


def test_a_retry_finds_the_first_event_and_a_stranger_is_refused(store: Store) -> None:
    journal = Journal(store.engine)
    first = journal.append("label", {"note": "x"}, subject="s", author="ana", request_id="r")
    again = journal.append("label", {"note": "x"}, subject="s", author="ana", request_id="r")
    assert again == first
    with pytest.raises(AlreadyExists, match="another content"):
        journal.append("label", {"note": "y"}, subject="s", author="ana", request_id="r")


def test_events_survive_another_process_that_opens_the_same_file(store: Store) -> None:
    Journal(store.engine).append("turn", {"user": "你好"}, session="a", subject="testSessions/a")
    other = Store(str(store.engine.url))
    assert [e.payload["user"] for e in Journal(other.engine).of_session("a")] == ["你好"]
    other.close()
