"""Serve inference: `python -m inference_svc [--config FILE] [--set KEY=VALUE]`."""

from __future__ import annotations

import sys

from chatmill.config import Config
from chatmill.inference.v1 import (
    add_InferenceServiceServicer_to_server,
    add_ServingAdminServiceServicer_to_server,
)
from chatmill.runtime import server
from inference_svc.clients import RegistryClient
from inference_svc.composition import compose
from inference_svc.servicer import InferenceServicer, ServingAdminServicer


async def build(config: Config) -> server.Service:
    """The pipeline with its engines, following the registry of the factory."""
    inference = compose(config, RegistryClient(config))
    return server.Service(
        "inference",
        [
            (add_InferenceServiceServicer_to_server, InferenceServicer(inference)),
            (add_ServingAdminServiceServicer_to_server, ServingAdminServicer(inference)),
        ],
        ready=inference.start,
        drain=inference.stop_taking,
        close=inference.close,
    )


if __name__ == "__main__":
    sys.exit(server.main("inference", build))
