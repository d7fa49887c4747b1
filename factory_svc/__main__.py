"""Serve the factory: `python -m factory_svc [--config FILE] [--set KEY=VALUE]`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from chatmill.config import Config
from chatmill.factory.v1 import add_FactoryServiceServicer_to_server, add_RegistryServiceServicer_to_server
from chatmill.runtime import server
from factory_svc.bases import Bases
from factory_svc.clients import DatasetClient
from factory_svc.factory import Factory
from factory_svc.registry import Registry
from factory_svc.servicer import FactoryServicer, RegistryServicer
from factory_svc.shipped import shipped_entries
from factory_svc.store import JobStore
from factory_svc.watching import RegistryWatch


async def build(config: Config) -> server.Service:
    """The factory with its store, its registry and a channel to the dataset service."""
    home = config.home.resolve()
    store = JobStore(config.factory.database) if config.factory.database else JobStore.in_folder(home)
    registry = Registry(home, await asyncio.to_thread(shipped_entries))
    bases = Bases(registry, config.factory.roots)
    factory = Factory(
        home,
        store,
        registry,
        bases,
        DatasetClient(config),
        parallel=config.factory.parallel_jobs,
        grace=config.factory.worker_grace_seconds,
    )
    watch = RegistryWatch(registry)

    async def drain() -> None:
        await watch.close()
        await factory.drain()

    servicers: list[tuple[server.Add, Any]] = [
        (add_FactoryServiceServicer_to_server, FactoryServicer(factory)),
        (add_RegistryServiceServicer_to_server, RegistryServicer(registry, bases, watch)),
    ]
    return server.Service("factory", servicers, ready=factory.start, drain=drain, close=factory.close)


if __name__ == "__main__":
    sys.exit(server.main("factory", build))
