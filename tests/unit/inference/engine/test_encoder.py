"""The thread that tokenizes: the right ids for everybody, together, and nobody's failure is another's."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from chatmill.errors import Aborted, ChatmillError, InvalidArgument, Unavailable
from inference_svc.engines.base import BaseSpec, Generation
from inference_svc.engines.rows.encoder import MOST_AT_ONCE, Encoder
from inference_svc.engines.rows.engine import RowsEngine
from inference_svc.generation import Message, Role
from inference_svc.prompts import CONTEXT_OVERFLOW, ChatPrompts

from . import tiny
from .streams import PARAMETERS, read, read_any, request


def words() -> Tokenizer:
    """A tokenizer without an unknown token: it raises on words that it does not know."""
    found = Tokenizer(models.WordLevel({str(number): number for number in range(1000)}, unk_token="[UNK]"))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return found


class Noted:
    """A tokenizer that notes how many texts it gets at once, and can be held up."""

    def __init__(self) -> None:
        self._inner = words()
        self.sizes: list[int] = []
        self.asked = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def encode_batch_fast(self, texts: list[str], **options: Any) -> list[Any]:
        self.sizes.append(len(texts))
        self.asked.set()
        self.go.wait()
        return self._inner.encode_batch_fast(texts, **options)  # type: ignore[no-any-return]


async def test_everybody_gets_their_own() -> None:
    encoder = Encoder(words())
    asked = [[f"{number} 7", "", str(number + 1)] for number in range(200)]
    found = await asyncio.gather(*map(encoder.encode, asked))
    await encoder.close()
    assert found == [[number, 7, number + 1] for number in range(200)]


async def test_what_waits_is_tokenized_together_up_to_a_limit() -> None:
    noted = Noted()
    encoder = Encoder(noted)
    noted.go.clear()
    first = asyncio.create_task(encoder.encode(["1"]))
    await asyncio.to_thread(noted.asked.wait)
    others = [asyncio.create_task(encoder.encode([str(n)])) for n in range(MOST_AT_ONCE + 3)]
    await asyncio.sleep(0)
    noted.go.set()
    assert await first == [1]
    assert await asyncio.gather(*others) == [[n] for n in range(MOST_AT_ONCE + 3)]
    await encoder.close()
    assert noted.sizes == [1, MOST_AT_ONCE, 3]


async def test_a_text_that_fails_fails_alone() -> None:
    noted = Noted()
    encoder = Encoder(noted)
    noted.go.clear()
    tasks = [asyncio.create_task(encoder.encode([text])) for text in ("1", "2", "unheard-of", "3")]
    await asyncio.sleep(0)
    noted.go.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    await encoder.close()
    assert [found[0], found[1], found[3]] == [[1], [2], [3]]
    assert "UNK" in str(found[2])


class Panic(BaseException):
    """As the library raises it: not an Exception."""


class Fragile(Noted):
    def encode_batch_fast(self, texts: list[str], **options: Any) -> list[Any]:
        if "panic" in texts:
            raise Panic("at the disco")
        return super().encode_batch_fast(texts, **options)


async def test_a_panic_of_the_library_is_one_request_s_error() -> None:
    encoder = Encoder(Fragile())
    found = await asyncio.gather(*(encoder.encode([text]) for text in ("1", "panic", "2")), return_exceptions=True)
    assert [found[0], found[2]] == [[1], [2]]
    assert isinstance(found[1], RuntimeError)
    assert "disco" in str(found[1])
    assert await encoder.encode(["3"]) == [3]
    await encoder.close()


async def test_who_has_gone_is_no_trouble_and_closing_answers_the_rest() -> None:
    noted = Noted()
    encoder = Encoder(noted)
    noted.go.clear()
    gone, stays = (asyncio.create_task(encoder.encode([text])) for text in ("1", "2"))
    await asyncio.sleep(0)
    gone.cancel()
    closing = asyncio.create_task(encoder.close())
    await asyncio.sleep(0)
    noted.go.set()
    assert await stays == [2]
    await closing
    with pytest.raises(asyncio.CancelledError):
        await gone


async def test_a_burst_gets_what_each_would_get_alone(engine: RowsEngine) -> None:
    def said(number: int) -> tuple[Message, ...]:
        return (Message(Role.USER, f"number {number}, " + "please " * (number % 5)),)

    prompts = ChatPrompts(tiny.tokenizer())
    model = tiny.model("llama")
    alone = [tiny.generate(model, prompts.encode(said(n)), 8, ignore_eos=True) for n in range(7)]
    # Together they fill the engine; one of them is too long for what it allows, and the others do not notice.
    asked = [request(str(n), messages=said(n)) for n in range(7)]
    bad = request("bad", messages=said(7), max_prompt_tokens=3)
    *streams, refused = await asyncio.gather(*map(engine.submit, [*asked, bad]), return_exceptions=True)
    assert isinstance(refused, InvalidArgument)
    assert refused.reason == CONTEXT_OVERFLOW
    found = await asyncio.gather(*(read(stream) for stream in streams if isinstance(stream, Generation)))
    assert [ids for _, ids, _ in found] == alone


async def test_an_engine_that_never_had_a_model_can_be_closed_while_it_loads(tmp_path: Path) -> None:
    engine = RowsEngine(PARAMETERS)
    loading = asyncio.create_task(engine.load_base(BaseSpec("tiny", "1", tmp_path)))
    await asyncio.sleep(0)
    await engine.close()
    with pytest.raises(ChatmillError):
        await loading


async def test_an_engine_that_is_closed_leaves_nobody_waiting(folder: Path) -> None:
    engine = RowsEngine(PARAMETERS)
    await engine.load_base(BaseSpec("tiny", "1", folder))
    messages = (Message(Role.USER, "hello"),)
    streams = [asyncio.create_task(engine.submit(request(str(n), messages=messages))) for n in range(3)]
    await asyncio.sleep(0)
    await engine.close()
    for found in await asyncio.wait_for(asyncio.gather(*streams, return_exceptions=True), 10):
        if isinstance(found, Generation):
            with pytest.raises(Aborted):
                await read_any(found)
        else:
            assert isinstance(found, Unavailable)
    assert "encoder" not in [thread.name for thread in threading.enumerate()]
