"""The other services as the factory sees them, over their stubs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from chatmill.config import Config
from chatmill.dataset.v1 import SPLIT_TRAIN, DatasetServiceStub, GetDatasetRequest, StreamItemsRequest
from chatmill.errors import Unavailable
from chatmill.runtime import channel
from factory_svc.convert import item_from
from factory_svc.examples import Item
from factory_svc.sources import DatasetInfo

_RESUMES = 5
"""How often a broken stream of items is taken up again behind the last item that came."""
_PAUSE = 0.5
"""Seconds before the first new attempt; each further one waits so much longer."""


class DatasetClient:
    """`ItemSource` over the dataset service.

    It is looked up for each use, since it may start after the factory, or again on another port.

    Args:
        config: says where the dataset service is.
    """

    def __init__(self, config: Config) -> None:
        self._config = config

    async def describe(self, dataset: str) -> DatasetInfo:
        """See `ItemSource.describe`."""
        async with channel.connect_service("dataset", self._config) as connection:
            found = (await DatasetServiceStub(connection).GetDataset(GetDatasetRequest(name=dataset))).dataset
        sizes = {split.split: split.item_count for split in found.splits}
        return DatasetInfo(found.name, found.digest, sizes.get(SPLIT_TRAIN, 0))

    async def training_items(self, dataset: str, languages: Sequence[str]) -> AsyncIterator[Item]:
        """See `ItemSource.training_items`; goes on where it was if the service is gone for a moment."""
        start, broken = 0, 0
        while True:
            request = StreamItemsRequest(dataset=dataset, split=SPLIT_TRAIN, languages=languages, start_index=start)
            try:
                async with channel.connect_service("dataset", self._config) as connection:
                    async for response in DatasetServiceStub(connection).StreamItems(request):
                        for item in response.items:
                            start = item.index + 1
                            yield item_from(item)
                return
            except Unavailable:
                broken += 1
                if broken > _RESUMES:
                    raise
                await asyncio.sleep(_PAUSE * broken)
