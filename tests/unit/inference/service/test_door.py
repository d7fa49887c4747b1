"""The service through its public door, with a scripted engine behind a real gRPC server."""

import asyncio
import contextlib
import gc

import pytest
from serving_fakes import SMALL, TINY, FakeEngine, Script, kinds, open_door, request, text_of, until

from chatmill import errors
from chatmill.common.v1 import Message, Role, ToolCall
from chatmill.inference.v1 import (
    CancelGenerationRequest,
    CompleteRequest,
    CountTokensRequest,
    DeltaMode,
    DrainRequest,
    FinishReason,
    GetLoadRequest,
    ListServedModelsRequest,
    LoadModelRequest,
    Moderating,
    ModerationAction,
    ModerationMode,
    Sampling,
    Streaming,
    UnloadModelRequest,
)
from inference_svc.attempt import Attempt
from inference_svc.engines.base import Generation

HANDOVER = '<tool_call>{"name": "transfer_to_human", "arguments": {"reason": "complaint"}}</tool_call>'


async def test_a_reply_is_streamed(door):
    events = await door.ask("hi", sampling=Sampling(temperature=0.0, seed=11))
    assert kinds(events)[0] == "started"
    assert kinds(events)[-1] == "finished"
    assert kinds(events).count("finished") == 1
    assert [e.sequence for e in events] == list(range(len(events)))
    assert text_of(events) == "Hello there."
    started, finished = events[0].started, events[-1].finished
    assert started.served_by.model == "models/tiny/versions/1"
    assert started.served_by.revision == "rev1"
    assert (started.prompt_tokens, started.cached_prompt_tokens) == (7, 2)
    assert started.sampling.temperature == 0.0
    assert started.sampling.HasField("top_p")
    assert finished.finish_reason == FinishReason.FINISH_REASON_END_OF_TURN
    assert finished.usage.output_tokens == 2
    assert finished.timing.total_us > 0
    assert [m.content for m in door.engine.requests[-1].messages] == ["Be brief.", "hi"]


async def test_what_answered_is_gone_without_the_garbage_collector(door):
    """Rings of references are looked for among all objects, in the middle of other replies."""

    def alive():
        return {id(o) for o in gc.get_objects() if type(o) in (Generation, Attempt)}

    gc.collect()
    gc.disable()
    try:
        before = alive()
        await door.ask("hi")
        await until(lambda: alive() <= before)
    finally:
        gc.enable()


async def test_text_so_far_and_token_ids(door):
    streaming = Streaming(delta_mode=DeltaMode.DELTA_MODE_TEXT_SO_FAR, want_token_ids=True)
    gate = asyncio.Event()
    door.engine.scripts["hi"] = Script(["Hel", gate, "lo"])
    texts, ids = [], []
    async for answer in door.stub.Generate(request(streaming=streaming)):
        if answer.event.HasField("delta"):
            gate.set()
            texts.append(answer.event.delta.text)
            ids += answer.event.delta.token_ids
            assert answer.event.delta.character_offset == 0
    assert texts == ["Hel", "Hello"]
    assert ids == [1, 2]


async def test_complete_is_the_same_in_one_piece(door):
    answer = await door.stub.Complete(CompleteRequest(spec=request().spec))
    assert answer.message.content == "Hello there."
    assert answer.message.role == Role.ROLE_ASSISTANT
    assert answer.finished.finish_reason == FinishReason.FINISH_REASON_END_OF_TURN
    assert answer.started.prompt_tokens == 7
    assert not answer.HasField("handoff")


async def test_a_handover_and_other_calls_become_events(door):
    door.engine.scripts["angry"] = Script(["I am sorry", ".\n<tool_", *HANDOVER[6:]])
    events = await door.ask("angry")
    assert text_of(events) == "I am sorry."
    [handoff] = [e.handoff for e in events if e.HasField("handoff")]
    assert handoff.reason == "complaint"
    assert handoff.tool_call.name == "transfer_to_human"
    assert events[-1].finished.finish_reason == FinishReason.FINISH_REASON_TOOL_CALLS
    door.engine.scripts["order"] = Script(['<tool_call>{"name": "find", "arguments": {"id": 7}}</tool_call>', HANDOVER])
    answer = await door.stub.Complete(CompleteRequest(spec=request("order").spec))
    assert [c.name for c in answer.message.tool_calls] == ["find", "transfer_to_human"]
    assert [c.id for c in answer.message.tool_calls] == ["call_0", "call_1"]
    assert answer.handoff.reason == "complaint"
    assert answer.message.content == ""


async def test_a_malformed_call_is_text_and_counted(door):
    door.engine.scripts["x"] = Script(["<tool_call>{broken</tool_call>"])
    events = await door.ask("x")
    assert text_of(events) == "<tool_call>{broken</tool_call>"
    assert events[-1].finished.malformed_tool_calls == 1
    assert events[-1].finished.finish_reason == FinishReason.FINISH_REASON_END_OF_TURN


async def test_history_with_tool_calls_reaches_the_engine(door):
    call = ToolCall(id="c1", name="find", arguments_json='{"id": 7}')
    await door.ask(
        messages=[
            Message(role=Role.ROLE_USER, content="where is it?"),
            Message(role=Role.ROLE_ASSISTANT, tool_calls=[call]),
            Message(role=Role.ROLE_TOOL, content="in Leeds", tool_call_id="c1"),
        ],
        facts=["Customer since 2019.", "Likes tea."],
    )
    seen = door.engine.requests[-1].messages
    assert seen[0].content == "Be brief.\nCustomer since 2019. Likes tea."
    assert seen[2].tool_calls[0].arguments == '{"id": 7}'
    assert seen[3].tool_call_id == "c1"


async def test_a_running_request_is_cancelled_from_outside(door):
    door.engine.scripts["hi"] = Script(["a", asyncio.Event()])
    call = door.stub.Generate(request(request_id="r1"))
    events = []
    async for answer in call:
        events.append(answer.event)
        if answer.event.HasField("delta"):
            await door.stub.CancelGeneration(CancelGenerationRequest(request_id="r1"))
    assert events[-1].finished.finish_reason == FinishReason.FINISH_REASON_CANCELLED
    assert not door.engine.rows
    with pytest.raises(errors.NotFound, match="r1"):
        await door.stub.CancelGeneration(CancelGenerationRequest(request_id="r1"))


async def test_a_waiting_request_is_cancelled_from_outside(tmp_path):
    engine = FakeEngine(max_rows=1)
    engine.scripts["hi"] = Script([asyncio.Event()])
    async with open_door(tmp_path, TINY, engines={TINY.name: engine}) as door:
        first = door.stub.Generate(request())
        await first.read()
        beat = Streaming()
        beat.heartbeat_interval.FromMilliseconds(20)
        second = door.stub.Generate(request(request_id="r2", streaming=beat))
        rest = []
        async for answer in second:
            rest.append(answer.event)
            if answer.event.HasField("progress"):
                assert answer.event.progress.queue_position == 1
                with contextlib.suppress(errors.NotFound):
                    await door.stub.CancelGeneration(CancelGenerationRequest(request_id="r2"))
        assert kinds(rest)[-1] == "finished"
        assert rest[-1].finished.finish_reason == FinishReason.FINISH_REASON_CANCELLED
        first.cancel()
        await engine.empty()


async def test_a_silent_stream_has_a_heartbeat(door):
    gate = asyncio.Event()
    door.engine.scripts["hi"] = Script(["a", gate, "b"])
    streaming = Streaming()
    streaming.heartbeat_interval.FromMilliseconds(20)
    seen = []
    async for answer in door.stub.Generate(request(streaming=streaming)):
        seen.append(answer.event.WhichOneof("event"))
        if seen[-2:] == ["progress", "progress"]:
            assert answer.event.progress.output_tokens == 1
            gate.set()
    assert seen[0] == "started"
    assert "progress" in seen
    assert seen[-2:] == ["delta", "finished"]


async def test_models_are_listed_loaded_and_unloaded(door):
    listed = (await door.stub.ListServedModels(ListServedModelsRequest())).served_models
    assert [(m.model, m.loaded) for m in listed] == [
        ("models/small/versions/1", False),
        ("models/tiny/versions/1", False),
    ]
    answer = await door.admin.LoadModel(LoadModelRequest(model="models/tiny/aliases/live"))
    assert (answer.model, answer.memory_bytes) == ("models/tiny/versions/1", 1000)
    listed = (await door.stub.ListServedModels(ListServedModelsRequest())).served_models
    assert (listed[1].loaded, listed[1].engine, listed[1].max_context) == (True, "fake", 2048)
    await door.admin.UnloadModel(UnloadModelRequest(model="models/tiny"))
    assert door.engine.closed
    with pytest.raises(errors.NotFound, match="not in memory"):
        await door.admin.UnloadModel(UnloadModelRequest(model="models/tiny"))


async def test_tokens_are_counted(door):
    messages = [Message(role=Role.ROLE_USER, content="one two three")]
    answer = await door.stub.CountTokens(CountTokensRequest(model="models/tiny", messages=messages))
    assert (answer.prompt_tokens, answer.max_context) == (5, 2048)


async def test_load_and_drain(door):
    gate = asyncio.Event()
    door.engine.scripts["hi"] = Script(["a", gate, "b"])
    call = aiter(door.stub.Generate(request()))
    await anext(call)
    load = await door.admin.GetLoad(GetLoadRequest())
    assert (load.running, load.waiting, load.draining) == (1, 0, False)
    assert load.memory_bytes > 1e6
    assert load.cache_hit_rate == pytest.approx(0.4)
    assert (await door.admin.Drain(DrainRequest())).remaining == 1
    with pytest.raises(errors.Unavailable, match="draining") as refused:
        await door.ask()
    assert refused.value.reason == "DRAINING"
    waiting = DrainRequest()
    waiting.max_wait.FromSeconds(5)
    drained = asyncio.ensure_future(door.admin.Drain(waiting))
    gate.set()
    events = [a.event async for a in call]
    assert events[-1].finished.finish_reason == FinishReason.FINISH_REASON_END_OF_TURN
    assert (await drained).remaining == 0
    await door.admin.Drain(DrainRequest(resume=True))
    assert text_of(await door.ask("else")) == "Hello there."


async def test_an_unknown_model_is_named_with_the_nearest(door):
    with pytest.raises(errors.NotFound, match="did you mean 'models/tiny'"):
        await door.ask(model="models/tinny")
    with pytest.raises(errors.InvalidArgument, match="models/ID/aliases/ALIAS"):
        await door.ask(model="tiny")


async def test_input_and_output_are_moderated(tmp_path):
    moderators = "[{name: words, response: block, parameters: {phrases: [shit]}}, {name: personal, response: redact}]"
    async with open_door(tmp_path, moderators=moderators, blocked_reply="I can't say that.") as door:
        events = await door.ask("this is s h i t")
        assert kinds(events) == ["moderation", "started", "delta", "finished"]
        assert events[0].moderation.action == ModerationAction.MODERATION_ACTION_BLOCKED
        assert text_of(events) == "I can't say that."
        assert events[-1].finished.finish_reason == FinishReason.FINISH_REASON_CONTENT_BLOCKED
        assert not door.engine.requests
        await door.ask("my card is 4111 1111 1111 1111, ok?")
        assert door.engine.requests[-1].messages[-1].content == "my card is [card], ok?"
        door.engine.scripts["hi"] = Script(["Well, sh", "it happ", "ens ", asyncio.Event()])
        events = await door.ask("hi")
        assert text_of(events) == "Well, I can't say that."
        assert events[-1].finished.finish_reason == FinishReason.FINISH_REASON_CONTENT_BLOCKED
        await door.engine.empty()
        report = Moderating(mode=ModerationMode.MODERATION_MODE_REPORT)
        door.engine.scripts["hi"] = Script(["Well, sh", "it happens"])
        events = await door.ask("hi", moderating=report)
        assert text_of(events) == "Well, shit happens"
        [found] = [e.moderation for e in events if e.HasField("moderation")]
        assert (found.span_start, found.span_end) == (6, 10)
        off = await door.ask("hi", moderating=Moderating(mode=ModerationMode.MODERATION_MODE_OFF))
        assert "moderation" not in kinds(off)


async def test_an_operator_can_forbid_relaxing_moderation(tmp_path):
    async with open_door(tmp_path, client_may_relax_moderation="false") as door:
        with pytest.raises(errors.PermissionDenied, match="OFF"):
            await door.ask("hi", moderating=Moderating(mode=ModerationMode.MODERATION_MODE_OFF))


async def test_token_ids_never_tell_what_was_masked(tmp_path):
    async with open_door(
        tmp_path, moderators="[{name: words, response: redact, parameters: {phrases: [shit]}}]"
    ) as door:
        door.engine.scripts["hi"] = Script(["oh ", "sh", "it", "! ok"])
        events = await door.ask("hi", streaming=Streaming(want_token_ids=True))
        assert text_of(events) == "oh [removed]! ok"
        ids = [i for e in events if e.HasField("delta") for i in e.delta.token_ids]
        assert not {2, 3} & set(ids)


async def test_two_requests_can_not_have_one_id(door):
    door.engine.scripts["hi"] = Script([asyncio.Event()])
    call = door.stub.Generate(request(request_id="same"))
    await call.read()
    with pytest.raises(errors.AlreadyExists, match="same"):
        await door.ask("else", request_id="same")
    call.cancel()
    await door.engine.empty()


async def test_prompt_models_render_their_template(tmp_path):
    from inference_svc.entries import ModelEntry, ModelKind

    prompt = ModelEntry(
        "models/p/versions/1", "rp", ModelKind.PROMPT, base=TINY.name, system_prompt="You are Mia.",
        examples=(("Hi", "Hello!"),), prompt_template="Known: {context}\nBefore:\n{history}\nNow: {question}",
    )  # fmt: skip
    async with open_door(tmp_path, TINY, prompt, engines={TINY.name: FakeEngine()}) as door:
        events = await door.ask(
            model="models/p",
            messages=[
                Message(role=Role.ROLE_USER, content="{question} {history}"),
                Message(role=Role.ROLE_ASSISTANT, content="Yes?"),
                Message(role=Role.ROLE_USER, content="Where is it? {context}"),
            ],
            facts=["VIP.", "Owes nothing."],
        )
        assert events[0].started.served_by.model == "models/p/versions/1"
        seen = [(m.role.value, m.content) for m in door.engine.requests[-1].messages]
        before = "Customer: {question} {history}\nAgent: Yes?"
        said = f"Known: VIP.\nOwes nothing.\nBefore:\n{before}\nNow: Where is it? {{context}}"
        assert seen == [
            ("system", "You are Mia."),
            ("user", "Hi"),
            ("assistant", "Hello!"),
            ("user", said),
        ]


async def test_small_is_another_engine(door):
    await door.ask()
    await door.ask(model=SMALL.name)
    assert [len(door.engines[n].requests) for n in (TINY.name, SMALL.name)] == [1, 1]
