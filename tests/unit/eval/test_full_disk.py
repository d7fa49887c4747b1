"""An evaluation whose end can't be written, since the disk is full: watchers are told, and room mends it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa

from chatmill.errors import FailedPrecondition, ResourceExhausted
from eval_svc.store import ENDED, Store

from .fakes import ScriptedAgent, evaluations, finish, scenario, spec, suite

GOOD = ScriptedAgent(lambda _: "hello there", "good")
HELD = suite(*(scenario(f"s{i}") for i in range(40)))


async def drain(core: Any, evaluation: str) -> None:
    async for _ in core.watch(evaluation):
        pass


def pages(core: Any, most: int) -> None:
    """Let the database grow to so many pages and no further, as a full disk does."""
    with core.store.engine.begin() as db:
        db.execute(sa.text(f"PRAGMA max_page_count={most}"))


async def run_out_of_room(core: Any) -> str:
    """An evaluation whose end can't be written, since the disk is full; its id."""
    accepted: str = (await core.start(spec(trials=3))).record.id
    with core.store.engine.begin() as db:
        now = db.execute(sa.text("PRAGMA page_count")).scalar_one()
    pages(core, now)
    with pytest.raises(ResourceExhausted, match="The disk is full: the evaluation database can't be written"):
        await drain(core, accepted)
    return accepted


async def test_on_a_full_disk_watchers_are_told_and_room_mends_it() -> None:
    core = evaluations(HELD, {"a": GOOD})
    accepted = await run_out_of_room(core)
    pages(core, 1_000_000)
    await core.take_up(accepted)
    async for event in core.watch(accepted, core.store.events(accepted, 0)[-1].sequence):
        last = event
    assert last.kind == "finished"
    assert core.get(accepted).board.candidate.trials == 120


async def test_how_it_ended_is_written_once_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval_svc.evaluations.RETRY_SECONDS", 0.01)
    core = evaluations(HELD, {"a": GOOD})
    accepted = await run_out_of_room(core)
    assert core.get(accepted).record.state not in ENDED
    pages(core, 1_000_000)
    async with asyncio.timeout(20):
        while not any(event.kind == "finished" for event in core.store.events(accepted, 0)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    ended = core.get(accepted).record
    assert (ended.state, ended.error["reason"]) == ("failed", "DISK_FULL")
    await drain(core, accepted)
    with pytest.raises(FailedPrecondition, match=r"has ended \(failed\)"):
        await core.cancel(accepted)
    await core.take_up(accepted)
    await drain(core, accepted)
    assert core.get(accepted).record.state == "succeeded"


async def test_cancelling_what_a_full_disk_ended_ends_it_for_watchers_too() -> None:
    core = evaluations(HELD, {"a": GOOD})
    accepted = await run_out_of_room(core)
    with pytest.raises(ResourceExhausted):
        await core.cancel(accepted)
    pages(core, 1_000_000)
    assert (await core.cancel(accepted)).record.state == "cancelled"
    await drain(core, accepted)
    await core.take_up(accepted)
    await drain(core, accepted)
    assert core.get(accepted).board.candidate.trials == 120


async def test_what_was_being_cancelled_when_the_service_died_is_cancelled_and_can_be_taken_up() -> None:
    store = Store("sqlite://")
    first = evaluations(HELD, {"a": GOOD}, store)
    accepted = (await finish(first, spec())).record.id
    store.reopen(accepted, spec().to_json())
    store.update(accepted, state="cancelling")
    assert await first.resume() == 1
    assert first.get(accepted).record.state == "cancelled"
    await drain(first, accepted)
    store.update(accepted, state="cancelling")
    await first.take_up(accepted)
    await drain(first, accepted)
    assert first.get(accepted).record.state == "succeeded"


async def test_what_a_full_disk_kept_from_being_queued_is_as_if_it_never_was() -> None:
    core = evaluations(HELD, {"a": GOOD})
    with core.store.engine.begin() as db:
        now = db.execute(sa.text("PRAGMA page_count")).scalar_one()
    pages(core, now)
    with pytest.raises(ResourceExhausted):
        await core.start(spec(), "r-1")
    assert core.newest(10, None, None) == []
    pages(core, 1_000_000)
    assert (await finish(core, spec(), "r-1")).record.state == "succeeded"
