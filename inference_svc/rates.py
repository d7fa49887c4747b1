"""How fast one caller may ask: requests and tokens per minute, counted by `limits` in memory or in Redis.

In Redis all replicas count together. A store that can't be reached lets requests pass, since a rate guards the service
and its store must not become what stops it; each such request is counted and the outage is logged. This module knows
no engine and no queue.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from limits import RateLimitItemPerMinute
from limits.aio.storage import Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import ConfigurationError, StorageError
from limits.storage import storage_from_string

from chatmill.errors import InvalidArgument, ResourceExhausted
from chatmill.plugins import install_command
from inference_svc import metrics

log = logging.getLogger(__name__)

RATE_LIMITED = "RATE_LIMITED"
_Answer = TypeVar("_Answer")
_PATIENCE = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0}
"""Seconds that a request waits for Redis, before it passes uncounted."""
_QUIET_SECONDS = 60.0
"""An outage is logged so often."""


class Rates:
    """The rates of all callers, by the name that their token or certificate gives them.

    Args:
        requests: per minute, of one caller; 0 for any number.
        tokens: prompt and output tokens per minute, of one caller; 0 for any number.
        storage: where they are counted: `async+memory://` or `async+redis://host:6379`. Not looked at without a rate.

    Raises:
        InvalidArgument: on `inference.rate_storage`: it is none of these, or its client library is not installed.
    """

    def __init__(self, requests: int = 0, tokens: int = 0, storage: str = "async+memory://") -> None:
        self._requests = requests and RateLimitItemPerMinute(requests)
        self._tokens = tokens and RateLimitItemPerMinute(tokens, 1, "tokens")
        self._limiter = SlidingWindowCounterRateLimiter(_store(storage)) if requests or tokens else None
        self._told = -_QUIET_SECONDS

    async def charge(self, caller: str, tokens: int) -> None:
        """Count a request and its prompt.

        Raises:
            ResourceExhausted: reason `RATE_LIMITED`, with the time after which the caller may go on.
        """
        if self._limiter is None:
            return
        for item, cost, name in ((self._requests, 1, "requests"), (self._tokens, tokens, "tokens")):
            if not item or await self._asked(self._limiter.hit(item, caller, cost=min(cost, item.amount)), True):
                continue
            window = await self._asked(self._limiter.get_window_stats(item, caller), None)
            metrics.REFUSED.labels(RATE_LIMITED).inc()
            raise ResourceExhausted(
                f"The rate of {caller or 'this caller'} is {item.amount} {name} per minute, and it is used up.",
                reason=RATE_LIMITED,
                retry_after=max(0.1, window.reset_time - time.time()) if window else 1.0,
                quota=f"inference.{name}_per_minute",
            )

    async def settle(self, caller: str, tokens: int) -> None:
        """Count the output tokens of a request that has ended."""
        if self._limiter is not None and self._tokens and tokens:
            await self._asked(self._limiter.hit(self._tokens, caller, cost=min(tokens, self._tokens.amount)), True)

    async def _asked(self, question: Coroutine[Any, Any, _Answer], otherwise: _Answer) -> _Answer:
        """What the store says, or `otherwise` if it can't be reached."""
        try:
            return await question
        except StorageError as error:
            metrics.UNCOUNTED_RATES.inc()
            now = time.monotonic()
            if now - self._told >= _QUIET_SECONDS:
                self._told = now
                log.warning("the rates of callers can't be counted, requests pass: %s", error)
            return otherwise


def _store(storage: str) -> Storage:
    redis = storage.startswith(("async+redis://", "async+rediss://", "async+redis+unix://"))
    try:
        # Without the library named, `limits` looks for another one than the `redis` extra installs.
        options: dict[str, float | str | bool] = {"implementation": "redispy", **_PATIENCE} if redis else {}
        made = storage_from_string(storage, wrap_exceptions=True, **options)
    except (ConfigurationError, ValueError) as error:
        hint = f" Install it: {install_command('redis')}." if redis else ""
        raise InvalidArgument.field("inference.rate_storage", f"{storage!r} can't be used: {error}.{hint}") from error
    if not isinstance(made, Storage):
        raise InvalidArgument.field("inference.rate_storage", f"{storage!r} must begin with async+")
    return made
