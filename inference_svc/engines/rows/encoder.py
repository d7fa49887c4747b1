"""Tokenizes what several requests brought, together, on a thread that does not hold the interpreter meanwhile.

To tokenize a prompt is much of what the event loop would do for a request before the engine has it, and prompts that
come at once would follow each other there. This module knows no model and no request.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

log = logging.getLogger(__name__)

MOST_AT_ONCE = 32
"""Requests whose texts are tokenized in one go; what comes later waits for no more than these."""


@dataclass(frozen=True, slots=True)
class _Asked:
    texts: Sequence[str]
    answer: asyncio.Future[list[int]]


@dataclass(frozen=True, slots=True)
class _Found:
    asked: _Asked
    ids: list[int]
    error: Exception | None = None


class Encoder:
    """A thread with a tokenizer. Make it on the event loop; `close` ends it.

    Args:
        tokenizer: of the tokenizers library.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._loop = asyncio.get_running_loop()
        self._waiting: SimpleQueue[_Asked | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="encoder", daemon=True)
        self._thread.start()

    async def encode(self, texts: Sequence[str]) -> list[int]:
        """Token ids of the texts one after the other, each tokenized by itself, without special tokens around them."""
        asked = _Asked(texts, self._loop.create_future())
        self._waiting.put(asked)
        return await asked.answer

    async def close(self) -> None:
        """Answer what was asked before, then end the thread."""
        self._waiting.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        while batch := self._next():
            found = self._encoded(batch)
            try:
                self._loop.call_soon_threadsafe(_answer, found)
            except RuntimeError:
                log.debug("the event loop is gone; nobody waits for token ids any more")
                return

    def _next(self) -> list[_Asked]:
        """What waits, up to the limit; waits for the first one. Nothing at the end."""
        batch: list[_Asked] = []
        try:
            while len(batch) < MOST_AT_ONCE:
                asked = self._waiting.get(block=not batch)
                if asked is None:
                    if batch:
                        self._waiting.put(None)
                    break
                batch.append(asked)
        except Empty:
            pass
        return batch

    def _encoded(self, batch: list[_Asked]) -> list[_Found]:
        texts = [text for asked in batch for text in asked.texts]
        try:
            # Unlike one text's `encode` this lets go of the interpreter; the fast one leaves out where tokens stood.
            encodings = iter(self._tokenizer.encode_batch_fast(texts, add_special_tokens=False))
            return [_Found(asked, [i for _ in asked.texts for i in next(encodings).ids]) for asked in batch]
        except BaseException as error:
            # A vocabulary without an unknown token, say, or a panic of the library, which is no Exception. Who else was
            # in the batch must not notice.
            if len(batch) == 1:
                failure = RuntimeError(f"the tokenizer failed: {error}")
                failure.__cause__ = error
                return [_Found(batch[0], [], failure)]
            return [found for asked in batch for found in self._encoded([asked])]


def _answer(batch: list[_Found]) -> None:
    for found in batch:
        answer = found.asked.answer
        if answer.done():  # whoever asked has gone
            continue
        if found.error is not None:
            answer.set_exception(found.error)
        else:
            answer.set_result(found.ids)
