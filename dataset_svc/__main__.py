"""`python -m dataset_svc`: serve the datasets under the configured home."""

from __future__ import annotations

import asyncio
import logging
import sys
from concurrent.futures import ThreadPoolExecutor

from chatmill.config import Config
from chatmill.dataset import v1
from chatmill.runtime.server import Service, main
from dataset_svc.catalog import Catalog
from dataset_svc.classes import DATASET_CLASSES
from dataset_svc.servicer import DatasetAdminServicer, DatasetServicer

log = logging.getLogger(__name__)


async def build(config: Config) -> Service:
    """The service as the configuration wants it."""
    catalog = await asyncio.to_thread(Catalog, config.home, config.dataset.roots, DATASET_CLASSES)
    for name in catalog.swept:
        log.warning("cleared away what an earlier stop left behind: %s", name)
    executor = ThreadPoolExecutor(config.dataset.creators, thread_name_prefix="create")

    async def close() -> None:
        await asyncio.to_thread(executor.shutdown)

    return Service(
        "dataset",
        [
            (v1.add_DatasetServiceServicer_to_server, DatasetServicer(catalog)),
            (v1.add_DatasetAdminServiceServicer_to_server, DatasetAdminServicer(catalog, executor)),
        ],
        close=close,
    )


if __name__ == "__main__":
    sys.exit(main("dataset", build))
