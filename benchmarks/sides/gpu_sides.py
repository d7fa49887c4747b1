"""Sides of the GPU benchmark that have requests."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.sides.base import python
from benchmarks.sides.engine import EngineInProcess
from benchmarks.sides.openai_sse import SseSide


class LoadedEngine(EngineInProcess):
    """The engine over a model that is in memory already."""

    def __init__(self, folder: Path, max_new: int, most: int, loaded: Any, **parameters: Any) -> None:
        super().__init__(folder, max_new, most)
        self._loaded, self._parameters = loaded, parameters

    async def start(self) -> None:
        """Put the engine around it."""
        from inference_svc.engines.base import BaseSpec
        from inference_svc.engines.rows import loading
        from inference_svc.engines.rows.engine import RowsEngine
        from inference_svc.engines.rows.parameters import RowsParameters

        self._numbers = count()
        self._engine = RowsEngine(RowsParameters(**self._parameters))
        with patch.object(loading, "load", return_value=self._loaded):
            self.info = await self._engine.load_base(BaseSpec("bench", "1", self.folder))


class ServeContinuous(SseSide):
    """`transformers serve --continuous-batching` at its own settings."""

    name = "transformers-serve-cb"
    ready_seconds = 75.0
    options: tuple[str, ...] = ()

    async def start(self) -> None:
        """Start it with the model preloaded."""
        program = "from transformers.cli.transformers import app; app()"
        options = ("--continuous-batching", *self.options, "--port", str(self.port))
        await self.launch(python(), "-c", program, "serve", str(self.folder), *options, HF_HUB_OFFLINE="1")
        await self.wait_ready()

    async def stop(self) -> None:
        """End it at once: it takes long to end by itself, on a device whose time is counted."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
