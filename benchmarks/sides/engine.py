"""The rows engine in this process: what the service around it adds is the difference to `chatmill`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count
from typing import Literal

from benchmarks.sides.base import Side
from chatmill.imports import import_bitsandbytes
from inference_svc.engines.base import BaseSpec
from inference_svc.generation import AdapterKey, Delta, Finished, GenerationRequest, Message, Role, Sampling


class EngineInProcess(Side):
    """See the module."""

    name = "engine"
    quantization: Literal["nf4", "int8", "none"] = "none"
    dtype: Literal["auto", "bfloat16"] = "auto"

    async def start(self) -> None:
        """Load the model."""
        import_bitsandbytes()
        from inference_svc.engines.rows.engine import RowsEngine
        from inference_svc.engines.rows.parameters import RowsParameters

        self._numbers = count()
        self._engine = RowsEngine(
            RowsParameters(quantization=self.quantization, dtype=self.dtype, smallest_quantized_mib=0)
        )
        self.info = await self._engine.load_base(BaseSpec("bench", "1", self.folder))

    def adapter(self, number: int) -> AdapterKey | None:
        """Which adapter request `number` asks for."""
        return None

    async def stream(self, prompt: str) -> AsyncIterator[int]:
        """One request."""
        sampling = Sampling(temperature=0.0, max_output_tokens=self.max_new, ignore_eos=True)
        number = next(self._numbers)
        generation = await self._engine.submit(
            GenerationRequest(
                str(number),
                adapter=self.adapter(number),
                messages=(Message(Role.USER, prompt),),
                sampling=sampling,
            )
        )
        seen = 0
        async for event in generation:
            if isinstance(event, Delta):
                seen += len(event.token_ids)
                yield len(event.token_ids)
            elif isinstance(event, Finished) and event.usage.output_tokens > seen:
                yield event.usage.output_tokens - seen

    async def stop(self) -> None:
        """Free the model."""
        await self._engine.close()
