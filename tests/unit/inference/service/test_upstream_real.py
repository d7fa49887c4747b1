"""The upstream engine against a server that was not written for it: `transformers serve` on a random tiny model."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from test_real_engine import make_model
from test_upstream import ask, events_of
from transformers import AutoModelForCausalLM

from chatmill import errors
from chatmill.ports import free_port
from inference_svc.engines.base import BaseSpec
from inference_svc.engines.openai.engine import UpstreamEngine
from inference_svc.engines.openai.parameters import UpstreamParameters
from inference_svc.generation import Delta, Finished, FinishReason, Message, Role, Sampling, Started

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
QUESTION = "Hello, where is my order?"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A folder with a model, and the URL of a server that serves it."""
    folder = tmp_path_factory.mktemp("upstream")
    tokenizer = make_model(folder)
    port = free_port("127.0.0.1")
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder), "--port", str(port)]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--device", "cpu"], stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
    try:
        until = time.monotonic() + 300
        while time.monotonic() < until and process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                break
            time.sleep(0.5)
        else:
            pytest.fail((folder / "server.log").read_text(errors="replace")[-2000:])
        yield folder, tokenizer, f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


@contextlib.asynccontextmanager
async def engine_for(url, model, **parameters):
    engine = UpstreamEngine(UpstreamParameters(url, model, **parameters))
    await engine.load_base(BaseSpec("models/far/versions/1"))
    try:
        yield engine
    finally:
        await engine.close()


def expected_text(folder, tokenizer, tokens):
    """What the model says greedily, by Transformers' own generate."""
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


async def test_the_text_is_the_models_own(served):
    folder, tokenizer, url = served
    async with engine_for(url, str(folder)) as engine:
        sampling = Sampling(temperature=0.0, max_output_tokens=24)
        events = await events_of(engine, ask(messages=(Message(Role.USER, QUESTION),), sampling=sampling))
        assert isinstance(events[0], Started)
        finished = events[-1]
        assert isinstance(finished, Finished)
        assert finished.finish_reason in (FinishReason.MAX_TOKENS, FinishReason.END_OF_TURN)
        text = "".join(e.text for e in events if isinstance(e, Delta))
        assert text.strip() == expected_text(folder, tokenizer, 24).strip()
        assert finished.usage.output_tokens > 0
        assert finished.timing.total_us >= finished.timing.time_to_first_token_us > 0
        load = engine.load()
        assert load.running == 0
        assert sum(load.finished_total.values()) == 1


async def test_several_at_once(served):
    folder, _, url = served
    async with engine_for(url, str(folder)) as engine:
        sampling = Sampling(temperature=0.0, max_output_tokens=8)
        streams = [ask(str(n), messages=(Message(Role.USER, QUESTION),), sampling=sampling) for n in range(6)]
        replies = await asyncio.gather(*(events_of(engine, stream) for stream in streams))
        texts = {"".join(e.text for e in events if isinstance(e, Delta)) for events in replies}
        assert len(texts) == 1
        assert all(isinstance(events[-1], Finished) for events in replies)


async def test_cancel_and_deadline_end_at_once_and_the_server_goes_on(served):
    folder, _, url = served
    async with engine_for(url, str(folder)) as engine:
        endless = Sampling(temperature=0.0, max_output_tokens=400)
        stream = await engine.submit(ask("long", sampling=endless))
        async for event in stream:
            if isinstance(event, Delta):
                break
        begun = time.monotonic()
        stream.cancel()
        rest = [event async for event in stream]
        # A short reply may have ended by itself before the cancel arrived.
        assert rest[-1].finish_reason in (FinishReason.CANCELLED, FinishReason.END_OF_TURN)
        assert time.monotonic() - begun < 5
        late = await events_of(engine, ask("late", sampling=endless, deadline=time.monotonic() + 0.01))
        assert late[-1].finish_reason is FinishReason.TIME_LIMIT
        again = await events_of(engine, ask("again", sampling=Sampling(temperature=0.0, max_output_tokens=4)))
        assert isinstance(again[-1], Finished)


async def test_a_model_that_is_not_there(served):
    _, _, url = served
    async with engine_for(url, "/nowhere/at/all", retries=0) as engine:
        with pytest.raises(errors.ChatmillError) as raised:
            await events_of(engine, ask())
        assert url in str(raised.value)
