"""Jobs and their events are kept, in order and without gaps."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatmill.errors import AlreadyExists, FailedPrecondition, NotFound
from factory_svc.jobs import LEGAL, EventKind, Job, JobSpec, State
from factory_svc.store import JobStore

SPEC = JobSpec(dataset="datasets/shop", model_id="shop", method="lora", parameters={"rank": 8}, languages=("en",))


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore.in_folder(tmp_path)


def _job(job_id: str = "j1", spec: JobSpec = SPEC) -> Job:
    return Job(id=job_id, spec=spec, created=datetime.now(UTC))


def test_a_job_is_the_same_after_a_restart(store: JobStore, tmp_path: Path) -> None:
    added, new = store.add(_job(), "r1")
    assert new
    store.close()
    again = JobStore.in_folder(tmp_path)
    assert again.get("j1") == added
    assert [e.kind for e in again.events("j1")] == [EventKind.STATE]


def test_a_request_id_makes_a_retry_safe(store: JobStore) -> None:
    first, _ = store.add(_job("j1"), "r1")
    assert store.add(_job("j2"), "r1") == (first, False)
    with pytest.raises(AlreadyExists, match="Use a new one"):
        store.add(_job("j3", JobSpec(dataset="datasets/x", model_id="shop", method="lora")), "r1")
    assert store.add(_job("j4"), "")[1]
    assert store.add(_job("j5"), "")[1]


@given(steps=st.lists(st.sampled_from(list(State)), max_size=6))
@settings(max_examples=40, deadline=None)
def test_only_legal_changes_happen_and_events_have_no_gaps(
    tmp_path_factory: pytest.TempPathFactory, steps: list[State]
) -> None:
    store = JobStore.in_folder(tmp_path_factory.mktemp("store"))
    state = store.add(_job())[0].state
    for wanted in steps:
        if wanted in LEGAL[state]:
            assert store.change("j1", wanted).state is wanted
            state = wanted
        else:
            with pytest.raises(FailedPrecondition, match=f"is {state} and can't become {wanted}"):
                store.change("j1", wanted)
    events = store.events("j1")
    job = store.get("j1")
    assert [e.sequence for e in events] == list(range(1, len(events) + 1))
    assert job.last_sequence == len(events)
    assert (events[-1].kind is EventKind.FINISHED) == job.state.final == (job.ended is not None)
    store.close()


def test_events_are_replayed_behind_a_number(store: JobStore) -> None:
    store.add(_job())
    store.change("j1", State.RUNNING)
    for step in range(5):
        store.progress("j1", {"step": step})
    store.warn("j1", "3 dropped")
    assert [e.sequence for e in store.events("j1", after=4)] == [5, 6, 7, 8]
    assert [e.sequence for e in store.events("j1", after=4, limit=2)] == [5, 6]
    assert store.events("j1", after=8) == []
    assert store.get("j1").progress == {"step": 4}
    assert store.events("j1")[-1].payload == {"text": "3 dropped"}


def test_pages_go_backwards_by_number_and_state(store: JobStore) -> None:
    for n in range(5):
        store.add(_job(f"j{n}"))
    store.change("j3", State.RUNNING)
    assert [j.id for j in store.page(limit=2)] == ["j4", "j3"]
    assert [j.id for j in store.page(limit=9, before=store.get("j3").number)] == ["j2", "j1", "j0"]
    assert [j.id for j in store.page(limit=9, state=State.RUNNING)] == ["j3"]
    assert [j.id for j in store.unfinished()] == ["j0", "j1", "j2", "j3", "j4"]


def test_an_unknown_job_is_named(store: JobStore) -> None:
    with pytest.raises(NotFound, match="trainingJobs/nope"):
        store.get("nope")


def test_a_database_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="can't be opened"):
        JobStore(f"sqlite:///{tmp_path}/no/such/folder/x.sqlite")
