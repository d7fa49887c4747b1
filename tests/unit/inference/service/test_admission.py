"""Who gets a place, who waits, who is refused: bounds, fairness, deadlines, rates."""

import asyncio
import gc
import time
import weakref

import pytest
from serving_fakes import TINY, FakeEngine, Script, open_door, request, text_of

from chatmill import errors
from chatmill.inference.v1 import GetLoadRequest, Limits
from inference_svc.admission import Admission, AdmissionSettings, Line
from inference_svc.rates import Rates


def line(capacity=1, **settings):
    return Line(AdmissionSettings(**settings), capacity)


async def test_free_places_are_granted_at_once_and_the_line_is_in_order():
    door = line(2)
    first, second = door.enter("a", 10), door.enter("a", 10)
    assert first.granted
    assert second.granted
    waiting = [door.enter("a", 10) for _ in range(3)]
    assert [p.position for p in waiting] == [1, 2, 3]
    assert (door.running, door.waiting, door.waiting_tokens) == (2, 3, 30)
    first.release()
    first.release()
    assert await waiting[0].wait()
    assert not await waiting[1].wait(0.001)
    assert [p.position for p in waiting] == [0, 1, 2]
    waiting[1].release()
    second.release()
    assert await waiting[2].wait()
    assert (door.running, door.waiting, door.waiting_tokens) == (2, 0, 0)


async def test_a_caller_with_many_requests_does_not_delay_one_with_few():
    door = line(1)
    running = door.enter("greedy", 10)
    greedy = [door.enter("greedy", 10) for _ in range(50)]
    modest = door.enter("modest", 10)
    assert modest.position <= 2
    order = []
    for _ in range(3):
        running.release()
        running = next(p for p in [*greedy, modest] if p.granted and not p.left)
        order.append(running.caller)
    assert "modest" in order


async def test_a_full_line_refuses_at_once_with_a_time_to_retry():
    door = line(1, max_queue=2)
    door.enter("a", 1)
    door.enter("a", 1)
    door.enter("a", 1)
    begun = time.process_time()
    with pytest.raises(errors.ResourceExhausted) as refused:
        door.enter("a", 1)
    assert time.process_time() - begun < 0.005
    assert refused.value.reason == "QUEUE_FULL"
    assert refused.value.retry_after > 0
    assert door.refused == 1


async def test_a_full_line_makes_room_for_a_caller_with_fewer():
    door = line(1, max_queue=3)
    door.enter("greedy", 1)
    greedy = [door.enter("greedy", 1) for _ in range(3)]
    modest = door.enter("modest", 1)
    with pytest.raises(errors.ResourceExhausted, match="fewer"):
        await greedy[-1].wait()
    assert not modest.left
    assert door.waiting == 3
    with pytest.raises(errors.ResourceExhausted):
        door.enter("greedy", 1)


async def test_the_line_is_bounded_in_tokens():
    door = line(1, max_queue_tokens=100)
    door.enter("a", 1000)
    door.enter("a", 90)
    with pytest.raises(errors.ResourceExhausted, match="90 prompt tokens"):
        door.enter("a", 11)
    door.enter("a", 10)


async def test_nobody_makes_room_for_a_prompt_that_does_not_fit_all_the_same():
    door = line(1, max_queue=2, max_queue_tokens=100)
    door.enter("greedy", 1)
    waiting = [door.enter("greedy", 10) for _ in range(2)]
    with pytest.raises(errors.ResourceExhausted, match="prompt tokens"):
        door.enter("modest", 91)
    assert not any(place.left for place in waiting)
    door.enter("modest", 90)
    assert waiting[-1].left


async def test_a_full_line_can_be_asked_without_entering_it():
    door = line(1, max_queue=1)
    door.check("a")
    door.enter("a", 1)
    door.check("a")
    waiting = door.enter("a", 1)
    with pytest.raises(errors.ResourceExhausted) as refused:
        door.check("a")
    assert refused.value.reason == "QUEUE_FULL"
    assert (door.running, door.waiting, waiting.left) == (1, 1, False)


async def test_a_line_goes_with_the_rows_that_it_waits_for():
    class Batch:
        max_rows = 2

    admission, batch = Admission(AdmissionSettings()), Batch()
    assert admission.line(batch).enter("a", 1).granted
    gone = weakref.ref(batch)
    del batch
    gc.collect()
    assert gone() is None
    assert not admission.lines


async def test_waiting_ends_with_the_time_allowed_or_the_deadline():
    door = line(1, max_queue_seconds=30)
    door.enter("a", 1)
    with pytest.raises(errors.ResourceExhausted) as refused:
        await door.enter("a", 1, max_wait=0.01).wait()
    assert refused.value.reason == "QUEUE_TIMEOUT"
    with pytest.raises(errors.DeadlineExceeded):
        await door.enter("a", 1, deadline=time.monotonic() + 0.01).wait()
    assert door.waiting == 0


async def test_a_wait_that_is_hopeless_is_refused_at_once():
    door = line(1)
    places = [door.enter("a", 1) for _ in range(6)]
    for place in places[:4]:
        await asyncio.sleep(0.02)
        place.release()
    assert door.expected_wait(1) > 0.005
    with pytest.raises(errors.ResourceExhausted) as refused:
        door.enter("a", 1, max_wait=0.001)
    assert refused.value.reason == "QUEUE_FULL"
    assert refused.value.retry_after >= 0.1


async def test_those_who_leave_do_not_pile_up_behind_a_hanging_engine():
    door = line(1)
    door.enter("a", 1)
    for _ in range(5000):
        door.enter("a", 1).release()
    assert door.waiting == 0
    assert len(door._heap) < 200
    assert not door._by_caller


async def test_rates_are_per_caller():
    rates = Rates(requests=2, tokens=100)
    await rates.charge("a", 10)
    await rates.charge("a", 10)
    with pytest.raises(errors.ResourceExhausted) as refused:
        await rates.charge("a", 10)
    assert refused.value.reason == "RATE_LIMITED"
    assert 0 < refused.value.retry_after <= 61
    assert refused.value.quota == "inference.requests_per_minute"
    await rates.charge("b", 10)
    await rates.settle("b", 85)
    with pytest.raises(errors.ResourceExhausted, match="100 tokens per minute"):
        await rates.charge("b", 10)
    unlimited = Rates()
    for _ in range(100):
        await unlimited.charge("a", 10**6)


async def test_overload_through_the_door(tmp_path):
    engine = FakeEngine(max_rows=2)
    engine.scripts["slow"] = Script(["x", asyncio.Event()])
    async with open_door(tmp_path, TINY, engines={TINY.name: engine}, max_queue=3) as door:
        calls = [door.stub.Generate(request("slow")) for _ in range(5)]
        readers = [asyncio.ensure_future(_first(call)) for call in calls]
        while (load := await door.admin.GetLoad(GetLoadRequest())).waiting < 3:
            pass
        assert load.running == 2
        seconds = []
        for _ in range(20):
            begun = time.process_time()
            with pytest.raises(errors.ResourceExhausted) as refused:
                await door.ask()
            seconds.append(time.process_time() - begun)
            assert refused.value.reason == "QUEUE_FULL"
            assert refused.value.retry_after is not None
        # Through the door and back, the client's work included; processor time, since the machine may be busy.
        assert min(seconds) < 0.005
        assert engine.peak == 2
        assert (await door.admin.GetLoad(GetLoadRequest())).refused == 20
        limits = Limits()
        limits.max_queue.FromMilliseconds(1)
        with pytest.raises(errors.ResourceExhausted):
            await door.ask(limits=limits)
        for call, reader in zip(calls, readers, strict=True):
            reader.cancel()
            call.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        await engine.empty()
        assert text_of(await door.ask()) == "Hello there."
        load = await door.admin.GetLoad(GetLoadRequest())
        assert (load.running, load.waiting, load.waiting_tokens) == (0, 0, 0)


async def _first(call):
    async for answer in call:
        if answer.event.HasField("delta"):
            await asyncio.Event().wait()


async def test_who_waits_gets_the_place_that_becomes_free(tmp_path):
    engine = FakeEngine(max_rows=1)
    gate = asyncio.Event()
    engine.scripts["slow"] = Script(["x", gate])
    async with open_door(tmp_path, TINY, engines={TINY.name: engine}) as door:
        first = asyncio.ensure_future(door.ask("slow"))
        await engine.full(1)
        second = asyncio.ensure_future(door.ask("next"))
        while (await door.admin.GetLoad(GetLoadRequest())).waiting < 1:
            pass
        gate.set()
        assert text_of(await first) == "x"
        events = await second
        assert text_of(events) == "Hello there."
        assert events[-1].finished.timing.queue_us > 0
        assert engine.peak == 1
