"""The contract's two dataset services: convert in, call the catalog, convert out.

All work on files runs in threads, so that a slow disk or a long import stalls no other call.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

from chatmill import paging
from chatmill.dataset import v1
from chatmill.runtime import Context
from dataset_svc import convert, work
from dataset_svc.build import Progress
from dataset_svc.catalog import Catalog


class DatasetServicer(v1.DatasetServiceServicer):
    """Reads datasets."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def GetItem(self, request: v1.GetItemRequest, context: Context) -> v1.GetItemResponse:
        """See the contract."""
        dataset, which = convert.which_item(request)
        index, item = await asyncio.to_thread(self._catalog.item, dataset, which)
        return v1.GetItemResponse(item=convert.item(dataset, index, item))

    async def StreamItems(
        self, request: v1.StreamItemsRequest, context: Context
    ) -> AsyncIterator[v1.StreamItemsResponse]:
        """See the contract."""
        selection = convert.selection(request)
        items = await asyncio.to_thread(self._catalog.select, selection)
        async for response in work.iterate(convert.batches(selection.dataset_id, items)):
            yield response

    async def GetContext(self, request: v1.GetContextRequest, context: Context) -> v1.GetContextResponse:
        """See the contract."""
        dataset, item = convert.item_name(request.item, "item")
        return convert.context(await asyncio.to_thread(self._catalog.context, dataset, item, request.turn))

    async def GetDataset(self, request: v1.GetDatasetRequest, context: Context) -> v1.GetDatasetResponse:
        """See the contract."""
        rows = await asyncio.to_thread(self._catalog.open, convert.dataset_id(request.name, "name"))
        return v1.GetDatasetResponse(dataset=convert.dataset(rows.manifest))

    async def ListDatasets(self, request: v1.ListDatasetsRequest, context: Context) -> v1.ListDatasetsResponse:
        """See the contract."""
        page = paging.page(request.page_size, request.page_token, "datasets", str)
        found = await asyncio.to_thread(self._catalog.listed, page.after or "", page.size + 1)
        shown, token = page.cut(found, lambda about: about.id)
        return v1.ListDatasetsResponse(datasets=map(convert.dataset, shown), next_page_token=token)

    async def GetStatistics(self, request: v1.GetStatisticsRequest, context: Context) -> v1.GetStatisticsResponse:
        """See the contract."""
        dataset = convert.dataset_id(request.dataset, "dataset")
        rows, numbers = await asyncio.to_thread(self._catalog.statistics, dataset, request.tokenizer)
        return v1.GetStatisticsResponse(statistics=convert.statistics(numbers, rows.manifest))

    async def ListDatasetClasses(
        self, request: v1.ListDatasetClassesRequest, context: Context
    ) -> v1.ListDatasetClassesResponse:
        """See the contract."""
        classes = await asyncio.to_thread(self._catalog.classes)
        return v1.ListDatasetClassesResponse(dataset_classes=map(convert.dataset_class, classes))


class DatasetAdminServicer(v1.DatasetAdminServiceServicer):
    """Makes and removes datasets.

    Args:
        catalog: the datasets.
        executor: threads in which datasets are made; as many at a time as it has.
    """

    def __init__(self, catalog: Catalog, executor: ThreadPoolExecutor) -> None:
        self._catalog = catalog
        self._executor = executor

    async def CreateDataset(
        self, request: v1.CreateDatasetRequest, context: Context
    ) -> AsyncIterator[v1.CreateDatasetResponse]:
        """See the contract."""
        wanted = convert.create_request(request)
        create = functools.partial(self._catalog.create, wanted)
        async for event in work.stream(self._executor, create, Progress("waiting")):
            yield convert.create_event(event)

    async def DeleteDataset(self, request: v1.DeleteDatasetRequest, context: Context) -> v1.DeleteDatasetResponse:
        """See the contract."""
        dataset = convert.dataset_id(request.name, "name")
        await asyncio.to_thread(self._catalog.delete, dataset, allow_missing=request.allow_missing)
        return v1.DeleteDatasetResponse()
