"""The inference service over one model folder, without a factory.

    python -m benchmarks.sides.serve_chatmill FOLDER PORT [KEY=VALUE ...]

Everything from the engine to the port is the product's; only the registry is this one entry.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from chatmill import config as configuration
from chatmill.inference.v1 import (
    add_InferenceServiceServicer_to_server,
    add_ServingAdminServiceServicer_to_server,
)
from chatmill.runtime import server
from chatmill.runtime.telemetry import setup_logging
from inference_svc.composition import compose
from inference_svc.entries import CatalogChange, ModelEntry, ModelFile, ModelKind
from inference_svc.servicer import InferenceServicer, ServingAdminServicer

NAME = "models/bench/versions/1"


class OneFolder:
    """A registry of one model."""

    def __init__(self, folder: Path) -> None:
        paths = sorted(p for p in folder.iterdir() if p.is_file())
        files = tuple(ModelFile(str(p), hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_size) for p in paths)
        self._entry = ModelEntry(NAME, "1", ModelKind.BASE, files=files)

    async def watch(self) -> AsyncIterator[CatalogChange]:
        """See `RegistrySource`."""
        yield CatalogChange((self._entry,), snapshot=True)
        await asyncio.Event().wait()


async def main(folder: Path, port: int, *overrides: str) -> None:
    """Serve until a signal."""
    values = dict(pair.split("=", 1) for pair in overrides)
    with tempfile.TemporaryDirectory() as home:
        config = configuration.load(
            None,
            {},
            {
                "mesh.home": home,
                "mesh.log_level": "warning",
                "inference.port": str(port),
                "inference.roots": str(folder),
                "inference.quantization": "none",
                "inference.preload": NAME,
                **values,
            },
            look=False,
        )
        setup_logging(config.mesh, "inference")
        inference = compose(config, OneFolder(folder))
        service = server.Service(
            "inference",
            [
                (add_InferenceServiceServicer_to_server, InferenceServicer(inference)),
                (add_ServingAdminServiceServicer_to_server, ServingAdminServicer(inference)),
            ],
            ready=inference.start,
            drain=inference.stop_taking,
            close=inference.close,
        )
        await server.serve(service, config)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]).resolve(), int(sys.argv[2]), *sys.argv[3:]))
