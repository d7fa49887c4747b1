"""From a command's arguments to the configuration, and running coroutines so that a signal ends them tidily."""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import Coroutine
from typing import Any

from chatmill import config as configuration
from chatmill.config import SERVICES, Config
from chatmill.errors import InvalidArgument

__all__ = ["SERVICES", "Config", "load", "overrides", "run_async"]


def overrides(arguments: argparse.Namespace) -> dict[str, str]:
    """`--home` and each `--option key=value` as configuration overrides.

    Raises:
        InvalidArgument: reason `INVALID_CONFIG`; an option without `=`.
    """
    found: dict[str, str] = {}
    for text in arguments.option:
        key, equals, value = text.partition("=")
        if not equals:
            raise InvalidArgument(f"--option {text}: must be KEY=VALUE", reason="INVALID_CONFIG")
        found[key.strip()] = value
    if arguments.home is not None:
        found["mesh.home"] = str(arguments.home)
    return found


def load(arguments: argparse.Namespace) -> Config:
    """The configuration that holds for a command.

    Raises:
        InvalidArgument: reason `INVALID_CONFIG`.
    """
    return configuration.load(arguments.config, overrides=overrides(arguments))


def run_async(work: Coroutine[Any, Any, int]) -> int:
    """Run `work`; SIGTERM cancels it as Ctrl-C does, so that what it started is stopped. Returns its exit code."""

    async def guarded() -> int:
        task = asyncio.current_task()
        assert task is not None
        told: list[int] = []

        def terminate() -> None:
            told.append(signal.SIGTERM)
            task.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
        try:
            return await work
        except asyncio.CancelledError:
            if told:
                return 128 + signal.SIGTERM
            raise

    return asyncio.run(guarded())
