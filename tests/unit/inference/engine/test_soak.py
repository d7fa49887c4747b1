"""Thousands of aborted requests leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import random
from pathlib import Path

import psutil
import pytest

from inference_svc.engines.base import BaseSpec
from inference_svc.engines.rows.engine import RowsEngine
from inference_svc.engines.rows.parameters import RowsParameters
from inference_svc.generation import Delta, GenerationRequest, Sampling

ABORTS = 10_000
AT_ONCE = 64


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_memory_stays_flat_over_ten_thousand_aborts(folder: Path) -> None:
    engine = RowsEngine(RowsParameters(quantization="none", threads=1, max_rows=16, prefix_cache_tokens=4096))
    await engine.load_base(BaseSpec("tiny", "1", folder))
    chance = random.Random(0)
    sizes = []

    async def abort(number: int) -> None:
        prompt = tuple(chance.randrange(10, 300) for _ in range(chance.randrange(1, 60)))
        sampling = Sampling(max_output_tokens=200, ignore_eos=True, stop_sequences=("never to be seen",))
        generation = await engine.submit(GenerationRequest(str(number), token_ids=prompt, sampling=sampling))
        wanted = chance.randrange(3)
        if wanted:
            async for event in generation:
                wanted -= isinstance(event, Delta)
                if not wanted:
                    break
        generation.cancel()
        async for _ in generation:
            pass

    process = psutil.Process()
    for start in range(0, ABORTS, AT_ONCE):
        await asyncio.gather(*(abort(start + n) for n in range(AT_ONCE)))
        load = engine.load()
        assert load.running == load.waiting == 0
        gc.collect()
        sizes.append(process.memory_info().rss)
    assert not engine._generations
    # The first third fills caches and the allocator's pools; after that nothing may grow.
    settled, last = sizes[len(sizes) // 3], sizes[-1]
    assert last - settled < 8 << 20, f"grew by {(last - settled) >> 20} MiB"
    await engine.close()
