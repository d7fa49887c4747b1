"""Who answers when a model can't: chains, breakers, retractions, an operator's hand."""

import asyncio

import pytest
from serving_fakes import SMALL, TINY, FakeEngine, Script, kinds, open_door, request, text_of, until

from chatmill import errors
from chatmill.inference.v1 import (
    Fallback,
    FallbackReason,
    GetOverridesRequest,
    Overrides,
    UpdateOverridesRequest,
)
from inference_svc.entries import ModelEntry, ModelKind
from inference_svc.events import FallbackMode
from inference_svc.fallback import Breaker, Chain, Fallbacks, reason_of

CHAIN = '[{model: models/tiny, models: [models/small], canned: "Please call us."}]'
IMPATIENT = CHAIN.replace("canned", "first_word_seconds: 0.3, canned")


def two_engines():
    return {TINY.name: FakeEngine(max_rows=1), SMALL.name: FakeEngine()}


def door_with(tmp_path, engines, chain=CHAIN, **overrides):
    return open_door(tmp_path, TINY, SMALL, engines=engines, fallbacks=chain, **overrides)


async def test_overload_goes_to_the_smaller_model(tmp_path):
    engines = two_engines()
    engines[TINY.name].scripts["slow"] = Script(["x", asyncio.Event()])
    words = "[{name: words, response: block, parameters: {phrases: [forbidden]}}]"
    async with door_with(tmp_path, engines, max_queue=1, moderators=words) as door:
        calls = [door.stub.Generate(request("slow", fallback=Fallback.FALLBACK_FORBID)) for _ in range(2)]
        readers = [asyncio.ensure_future(_read(c)) for c in calls]
        await engines[TINY.name].full(1)
        await until(lambda: door.inference.report().waiting)
        events = await door.ask("hi")
        served_by = events[0].started.served_by
        assert served_by.model == SMALL.name
        assert served_by.requested_model == "models/tiny"
        assert served_by.fallback_reason == FallbackReason.FALLBACK_REASON_OVERLOAD
        assert events[-1].finished.served_by == served_by
        with pytest.raises(errors.ResourceExhausted):
            await door.ask("hi", fallback=Fallback.FALLBACK_FORBID)
        with pytest.raises(errors.ResourceExhausted):
            await door.ask("this is forbidden", fallback=Fallback.FALLBACK_FORBID)
        assert kinds(await door.ask("this is forbidden"))[0] == "moderation"
        for reader, call in zip(readers, calls, strict=True):
            reader.cancel()
            call.cancel()


async def _read(call):
    async for _ in call:
        pass


async def test_a_model_that_does_not_say_a_word_is_given_up(tmp_path):
    engines = two_engines()
    engines[TINY.name].scripts["hi"] = Script([asyncio.Event()])
    async with door_with(tmp_path, engines, IMPATIENT) as door:
        events = await door.ask("hi")
        assert text_of(events) == "Hello there."
        last = events[-1].finished.served_by
        assert (last.model, last.fallback_reason) == (SMALL.name, FallbackReason.FALLBACK_REASON_TIMEOUT)
        await engines[TINY.name].empty()


async def test_after_the_first_word_the_text_is_retracted(tmp_path):
    engines = two_engines()
    engines[TINY.name].scripts["hi"] = Script(["Half a ", "sent", errors.Aborted("died", reason="ENGINE_FAILED")])
    async with door_with(tmp_path, engines) as door:
        events = await door.ask("hi")
        shown = ""
        for event in events:
            if event.HasField("retracted"):
                assert shown
                shown = shown[: event.retracted.from_character_offset]
            elif event.HasField("delta"):
                assert event.delta.character_offset == len(shown)
                shown += event.delta.text
        assert "retracted" in kinds(events)
        assert shown == "Hello there."
        assert kinds(events).count("finished") == 1
        assert events[-1].finished.usage.discarded_tokens == 2
        assert [e.sequence for e in events] == list(range(len(events)))
        answer = await door.stub.Complete(_complete("hi"))
        assert answer.message.content == "Hello there."


def _complete(text):
    from chatmill.inference.v1 import CompleteRequest

    return CompleteRequest(spec=request(text).spec)


async def test_a_fixed_answer_comes_last(tmp_path):
    engines = two_engines()
    for engine in engines.values():
        engine.submit_error = errors.Unavailable("gone")
    async with door_with(tmp_path, engines) as door:
        events = await door.ask("hi")
        assert text_of(events) == "Please call us."
        assert events[0].started.served_by.model == "canned"
        assert events[0].started.served_by.fallback_reason == FallbackReason.FALLBACK_REASON_UNHEALTHY


async def test_without_a_chain_the_first_error_is_told(tmp_path):
    engines = two_engines()
    engines[TINY.name].submit_error = errors.Unavailable("the first is gone")
    engines[SMALL.name].submit_error = errors.InvalidArgument.field("messages", "too long for the small one")
    chain = "[{model: models/tiny, models: [models/small]}]"
    async with door_with(tmp_path, engines, chain) as door:
        with pytest.raises(errors.Unavailable, match="the first"):
            await door.ask("hi")


async def test_what_the_client_did_wrong_is_no_reason(tmp_path):
    engines = two_engines()
    engines[TINY.name].submit_error = errors.InvalidArgument.field("messages", "too long")
    async with door_with(tmp_path, engines) as door:
        with pytest.raises(errors.InvalidArgument, match="too long"):
            await door.ask("hi")
        assert not engines[SMALL.name].requests


async def test_a_breaker_keeps_requests_away_and_lets_one_try(tmp_path):
    engines = two_engines()
    tiny = engines[TINY.name]
    tiny.submit_error = errors.Unavailable("gone")
    async with door_with(tmp_path, engines, breaker_failures=2, breaker_seconds=60) as door:
        for _ in range(4):
            await door.ask("hi")
        tiny.submit_error = None
        events = await door.ask("hi")
        assert events[0].started.served_by.model == SMALL.name
        door.inference.pipeline._fallbacks.breaker("models/tiny")._opened -= 61
        events = await door.ask("hi")
        assert events[0].started.served_by.model == TINY.name


async def test_an_operator_forces_the_chain_and_blocks_a_phrase(tmp_path):
    engines = two_engines()
    async with door_with(tmp_path, engines) as door:
        engines[TINY.name].scripts["long"] = Script(["So ", gate := asyncio.Event(), "tomato ", "paste it is"])
        stream = aiter(door.stub.Generate(request("long")))
        while not (await anext(stream)).event.HasField("delta"):
            pass
        changes = Overrides(blocked_phrases=["tomato paste"], forced_fallback_models=["models/tiny"])
        await door.admin.UpdateOverrides(UpdateOverridesRequest(overrides=changes))
        gate.set()
        rest = [a.event async for a in stream]
        assert text_of(rest).strip() == ""
        events = await door.ask("hi")
        assert events[0].started.served_by.fallback_reason == FallbackReason.FALLBACK_REASON_FORCED
        with pytest.raises(errors.Unavailable, match="out of service"):
            await door.ask("hi", fallback=Fallback.FALLBACK_FORBID)
        held = (await door.admin.GetOverrides(GetOverridesRequest())).overrides
        assert held == changes
        with pytest.raises(errors.InvalidArgument, match=r"^overrides\.blocked_phrases: "):
            await door.admin.UpdateOverrides(UpdateOverridesRequest(overrides=Overrides(blocked_phrases=["..."])))
        path = tmp_path / "serving-overrides.yaml"
        assert "tomato paste" in path.read_text()
        path.write_text("blocked_phrases: [basil]\n")
        door.inference.overrides.refresh()
        assert (await door.ask("hi"))[0].started.served_by.model == TINY.name
        path.write_text("blocked_phrase: [basil]\n")
        assert not door.inference.overrides.refresh()
        assert door.inference.overrides.phrases == ("basil",)
        path.unlink()
        door.inference.overrides.refresh()
        assert door.inference.overrides.phrases == ()


async def test_a_remote_model_may_stand_in(tmp_path):
    remote = ModelEntry("models/far/versions/1", "r", ModelKind.REMOTE, base_url="http://far/v1", remote_name="big")
    engines = {TINY.name: FakeEngine(), remote.name: FakeEngine()}
    engines[TINY.name].load_error = errors.FailedPrecondition("corrupt", reason="ARTIFACT_MISMATCH")
    chain = "[{model: '*', models: [models/far]}]"
    async with open_door(tmp_path, TINY, remote, engines=engines, fallbacks=chain) as door:
        events = await door.ask("hi")
        assert events[0].started.served_by.model == remote.name


def test_breaker():
    now = [0.0]
    breaker = Breaker(2, 10, lambda: now[0])
    breaker.failure()
    assert breaker.allow()
    breaker.failure()
    assert breaker.open
    assert not breaker.allow()
    now[0] = 11
    assert breaker.allow()
    assert not breaker.allow()
    breaker.success()
    assert breaker.allow()
    assert not breaker.open


def test_which_chain_and_which_steps():
    entry = TINY
    alias = Chain("models/tiny/aliases/live", canned="a")
    version = Chain("models/tiny/versions/1", canned="v")
    model = Chain("models/tiny", models=("models/small",), by_default=False)
    rest = Chain("*", canned="r")
    assert Fallbacks([rest, model, version, alias]).chain("models/tiny/aliases/live", entry) is alias
    assert Fallbacks([rest, model, version]).chain("models/tiny", entry) is model
    assert Fallbacks([rest, version]).chain("models/tiny", entry) is version
    assert Fallbacks([rest]).chain("models/tiny", entry) is rest
    fallbacks = Fallbacks([model])
    assert len(fallbacks.steps("models/tiny", model, FallbackMode.DEFAULT)) == 1
    assert len(fallbacks.steps("models/tiny", model, FallbackMode.ALLOW)) == 2
    assert len(fallbacks.steps("models/tiny", model, FallbackMode.FORBID)) == 1
    with pytest.raises(ValueError, match="canned"):
        Chain("models/x")


def test_reasons():
    assert reason_of(errors.ResourceExhausted("full", reason="QUEUE_FULL")).value == "overload"
    assert reason_of(errors.ResourceExhausted("rate", reason="RATE_LIMITED")).value == "none"
    assert reason_of(TimeoutError()).value == "timeout"
    assert reason_of(errors.Unavailable("x")).value == "unhealthy"
    assert reason_of(errors.NotFound("x")).value == "none"
    assert reason_of(ZeroDivisionError()).value == "unhealthy"
