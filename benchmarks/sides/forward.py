"""The limit: `model.forward` in a loop over one padded batch, with nothing around it.

All requests that arrive together are one batch, prefilled at once and decoded greedily to the end with Transformers'
own growing cache. There is no text, no scheduling, no stop and no stream: the first token is delivered after the
prefill, the rest at the end, so the times between tokens mean nothing here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from benchmarks.sides.base import Side

GATHER_SECONDS = 0.002
"""How long the batch waits for the requests of its round."""


class ForwardLoop(Side):
    """See the module."""

    name = "forward"

    async def start(self) -> None:
        """Load the model as the engine would, in the same precision."""
        await asyncio.to_thread(self._load)
        self._waiting: list[tuple[str, asyncio.Queue[int]]] = []
        self._gathering: asyncio.Task[None] | None = None

    def _load(self) -> None:
        from inference_svc.engines.rows import loading
        from inference_svc.engines.rows.parameters import RowsParameters

        loaded = loading.load(self.folder, RowsParameters(quantization="none"))
        loading.use_threads(0)
        self._model: Any = loaded.model
        self._tokenizer: Any = loaded.tokenizer
        self._tokenizer.padding_side = "left"

    async def stream(self, prompt: str) -> AsyncIterator[int]:
        """Join the batch of the round."""
        queue: asyncio.Queue[int] = asyncio.Queue()
        self._waiting.append((prompt, queue))
        if self._gathering is None:
            self._gathering = asyncio.create_task(self._round())
        seen = 0
        while seen < self.max_new:
            count = await queue.get()
            seen += count
            yield count

    async def _round(self) -> None:
        await asyncio.sleep(GATHER_SECONDS)
        batch, self._waiting, self._gathering = self._waiting, [], None
        loop = asyncio.get_running_loop()

        def deliver(count: int) -> None:
            for _, queue in batch:
                loop.call_soon_threadsafe(queue.put_nowait, count)

        await asyncio.to_thread(self._generate, [prompt for prompt, _ in batch], deliver)

    def _generate(self, prompts: list[str], deliver: Any) -> None:
        import torch
        from transformers import DynamicCache

        texts = [
            self._tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
            )
            for prompt in prompts
        ]
        inputs = self._tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        cache = DynamicCache(config=self._model.config)
        with torch.inference_mode():
            for step in range(self.max_new):
                out = self._model(ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1)
                ids = out.logits[:, -1:].argmax(-1)
                mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], 1)
                if step == 0:
                    deliver(1)
        if self.max_new > 1:
            deliver(self.max_new - 1)

    async def stop(self) -> None:
        """Free the model."""
        del self._model
