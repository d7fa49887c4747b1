"""The registry as this service sees it, over the factory's stub."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from math import inf

from chatmill.config import Config
from chatmill.errors import ChatmillError
from chatmill.factory.v1 import RegistryServiceStub, WatchModelsRequest
from chatmill.runtime import channel
from inference_svc import convert
from inference_svc.entries import CatalogChange

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


class RegistryClient:
    """Implements `RegistrySource`. Models that are known stay served while the factory is away.

    Args:
        config: where the factory is.
    """

    def __init__(self, config: Config) -> None:
        self._config = config

    async def watch(self) -> AsyncIterator[CatalogChange]:
        """See `RegistrySource`."""
        pause = _FIRST_PAUSE
        while True:
            try:
                async with channel.connect_service("factory", self._config) as connection:
                    stub = RegistryServiceStub(connection)
                    async for message in stub.WatchModels(WatchModelsRequest(), timeout=inf):
                        pause = _FIRST_PAUSE
                        yield convert.change_from(message)
            except ChatmillError as error:
                # At the start the factory may simply be later than we are.
                log.log(logging.INFO if pause < 1 else logging.WARNING, "the registry can't be watched: %s", error)
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 2)
