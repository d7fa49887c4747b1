"""Who gets a place in the batch, who waits, and who is refused at once.

One `Line` stands before each engine: bounded in requests and in prompt tokens, fair between callers by start-time fair
queuing (Goyal, Vin and Cheng 1996), so that a caller with a hundred requests does not delay one with a single one. A
caller's rate is bounded besides (`rates`). This module knows no engine.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import Counter
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

import prometheus_client

from chatmill.errors import ChatmillError, DeadlineExceeded, ResourceExhausted
from inference_svc import metrics
from inference_svc.rates import Rates

QUEUE_FULL, QUEUE_TIMEOUT = "QUEUE_FULL", "QUEUE_TIMEOUT"

QUEUE_SECONDS = prometheus_client.Histogram(
    "chatmill_queue_seconds",
    "Time that admitted requests waited for a place.",
    buckets=(0.001, 0.01, 0.05, 0.1, 0.3, 1, 3, 10, 30),
)


@dataclass(frozen=True, slots=True)
class AdmissionSettings:
    """Bounds.

    Attributes:
        max_queue: most requests that wait before one engine.
        max_queue_tokens: most prompt tokens that wait before one engine.
        max_queue_seconds: longest wait; a request may ask for less.
        requests_per_minute: of one caller; 0 for any number.
        tokens_per_minute: prompt and output tokens of one caller; 0 for any number.
        storage: where rates are counted: `async+memory://`, or `async+redis://host:6379` for several replicas.
    """

    max_queue: int = 256
    max_queue_tokens: int = 1_000_000
    max_queue_seconds: float = 30.0
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    storage: str = "async+memory://"


class Rows(Protocol):
    """What a line waits for."""

    @property
    def max_rows(self) -> int:
        """Places at once, as long as it lives."""
        ...


class Place:
    """A place in the batch, or in the line for one. Release it however the request ends."""

    def __init__(self, line: Line, caller: str, tokens: int, tag: float) -> None:
        self.caller = caller
        self.tokens = tokens
        self.tag = tag
        self.since = time.monotonic()
        self.granted = False
        self.left = False
        self._line = line
        self._turn: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __lt__(self, other: Place) -> bool:
        return (self.tag, self.since) < (other.tag, other.since)

    @property
    def position(self) -> int:
        """Place in the line, from 1; 0 once it is granted."""
        return 0 if self.granted else self._line.before(self) + 1

    async def wait(self, patience: float | None = None) -> bool:
        """Wait for the turn, at most `patience` seconds; whether the place is granted.

        Raises:
            ResourceExhausted: reason `QUEUE_TIMEOUT`, it took longer than the request allowed; or `QUEUE_FULL`, the
                place was given to a caller with fewer requests.
            DeadlineExceeded: the request's own time ran out.
        """
        if self.granted:
            return True
        assert self._turn is not None
        await asyncio.wait((self._turn,), timeout=patience)
        if self._turn.done():
            self._turn.result()
        return self.granted

    def abandon(self) -> None:
        """Leave the line and have `wait` return False, because somebody else ended the request."""
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)
        self.release()

    def release(self) -> None:
        """Give the place up, or leave the line; a second call does nothing."""
        self._line.leave(self)

    def _queue(self, wait: float, deadline: float | None) -> None:
        loop = asyncio.get_running_loop()
        self._turn = loop.create_future()
        # Whoever stops waiting never reads it.
        self._turn.add_done_callback(lambda f: f.cancelled() or f.exception())
        remaining = float("inf") if deadline is None else max(0.0, deadline - time.monotonic())
        if remaining <= wait:
            error: ChatmillError = DeadlineExceeded("The request's time ran out while it waited for a place.")
        else:
            error = ResourceExhausted(
                f"No place became free within {wait:g} s. Try again later, or allow more with limits.max_queue.",
                reason=QUEUE_TIMEOUT,
                retry_after=self._line.expected_wait(self._line.waiting),
                quota="inference.max_queue_seconds",
            )
        self._timer = loop.call_later(min(remaining, wait), self.refuse, error)

    def grant(self) -> None:
        """Called by the line: the turn has come."""
        self.granted = True
        if self._timer is not None:
            self._timer.cancel()
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)
        QUEUE_SECONDS.observe(time.monotonic() - self.since)

    def refuse(self, error: ChatmillError) -> None:
        """Called by the line or the timer: the wait ends with an error."""
        metrics.REFUSED.labels(error.reason).inc()
        self._line.refused += 1
        if self._turn is not None and not self._turn.done():
            self._turn.set_exception(error)
        self.release()


class Line:
    """The places of one engine and those who wait for them.

    Args:
        settings: bounds.
        capacity: places at once.

    Attributes:
        running: places that are taken.
        waiting: requests in the line.
        waiting_tokens: their prompt tokens, as estimated.
        refused: requests refused since start.
    """

    def __init__(self, settings: AdmissionSettings, capacity: int) -> None:
        self.running = 0
        self.waiting = 0
        self.waiting_tokens = 0
        self.refused = 0
        self._settings = settings
        self._capacity = capacity
        self._heap: list[Place] = []
        self._virtual = 0.0
        self._last_tag: dict[str, float] = {}
        self._by_caller: Counter[str] = Counter()
        self._pace = 0.0
        self._last_release = 0.0

    def enter(self, caller: str, tokens: int, *, max_wait: float | None = None, deadline: float | None = None) -> Place:
        """A place, granted at once if one is free, otherwise in the line.

        Args:
            caller: whose request it is.
            tokens: prompt tokens, as estimated.
            max_wait: seconds that the request is willing to wait, or None for the configured time.
            deadline: `time.monotonic()` second of its end, or None.

        Raises:
            ResourceExhausted: reason `QUEUE_FULL`, with the time after which a retry has a chance.
        """
        start = max(self._virtual, self._last_tag.get(caller, 0.0))
        place = Place(self, caller, tokens, start)
        if not self.waiting and self.running < self._capacity:
            self._grant(place)
            return place
        displaced = self._room(caller, tokens, max_wait)
        if displaced is not None:
            displaced.refuse(self._full_error("a caller with fewer requests came", self.expected_wait(self.waiting)))
        self._last_tag[caller] = start + max(tokens, 1)
        self.waiting += 1
        self.waiting_tokens += tokens
        self._by_caller[caller] += 1
        heapq.heappush(self._heap, place)
        place._queue(self._longest(max_wait), deadline)
        return place

    def check(self, caller: str, *, max_wait: float | None = None) -> None:
        """Raise what `enter` would raise for the shortest prompt, before work is done that a refusal would waste."""
        if self.waiting or self.running >= self._capacity:
            self._room(caller, 0, max_wait)

    def leave(self, place: Place) -> None:
        """Take a place back; whose turn it is gets it."""
        if place.left:
            return
        place.left = True
        if place.granted:
            self.running -= 1
            self._measure()
        else:
            if place._timer is not None:
                place._timer.cancel()
            self._forget(place)
        self._next()
        if len(self._heap) > 2 * self.waiting + 64:
            # Those who left stay in the heap until their turn; behind an engine that hangs they must not pile up.
            self._heap = [p for p in self._heap if not p.left]
            heapq.heapify(self._heap)

    def before(self, place: Place) -> int:
        """Requests that wait and come before `place`."""
        return sum(1 for other in self._heap if not other.left and other < place)

    def expected_wait(self, ahead: int) -> float:
        """Seconds until a request with so many before it gets a place, by the pace of late."""
        return (ahead + 1) * self._pace

    def _longest(self, max_wait: float | None) -> float:
        longest = self._settings.max_queue_seconds
        return longest if max_wait is None else min(max_wait, longest)

    def _room(self, caller: str, tokens: int, max_wait: float | None) -> Place | None:
        """Raise if there is no room in the line; who has to make room, if it is full of another caller's requests."""
        expected = self.expected_wait(self.waiting)
        if expected > self._longest(max_wait):
            raise self._full(f"{self.waiting} requests wait already, about {expected:.1f} s", expected)
        displaced, tokens_left = None, self._settings.max_queue_tokens - self.waiting_tokens
        if self.waiting >= self._settings.max_queue:
            greedy, most = self._by_caller.most_common(1)[0]
            if greedy == caller or most <= self._by_caller[caller] + 1:
                raise self._full(f"{self.waiting} requests wait already", expected)
            displaced = max(p for p in self._heap if p.caller == greedy and not p.left)
            tokens_left += displaced.tokens
        if tokens > tokens_left:
            raise self._full(f"{self.waiting_tokens} prompt tokens wait already", expected)
        return displaced

    def _full(self, why: str, retry_after: float) -> ResourceExhausted:
        metrics.REFUSED.labels(QUEUE_FULL).inc()
        self.refused += 1
        return self._full_error(why, retry_after)

    @staticmethod
    def _full_error(why: str, retry_after: float) -> ResourceExhausted:
        return ResourceExhausted(
            f"The line for a place is full: {why}. Try again later, or on another replica.",
            reason=QUEUE_FULL,
            retry_after=max(0.1, retry_after),
            quota="inference.max_queue",
        )

    def _next(self) -> None:
        while self._heap and (self._heap[0].left or self.running < self._capacity):
            place = heapq.heappop(self._heap)
            if not place.left:
                self._forget(place)
                self._virtual = max(self._virtual, place.tag)
                self._grant(place)
        if not self._heap:
            self._last_tag.clear()

    def _grant(self, place: Place) -> None:
        self.running += 1
        place.grant()

    def _forget(self, place: Place) -> None:
        self.waiting -= 1
        self.waiting_tokens -= place.tokens
        self._by_caller[place.caller] -= 1
        if not self._by_caller[place.caller]:
            del self._by_caller[place.caller]

    def _measure(self) -> None:
        """Smoothed seconds between two places becoming free; only while some wait, or idle time would count."""
        now = time.monotonic()
        if self.waiting and self._last_release:
            gap = now - self._last_release
            self._pace = gap if not self._pace else 0.9 * self._pace + 0.1 * gap
        elif not self.waiting:
            self._pace = 0.0
        self._last_release = now


class Admission:
    """All lines and rates.

    Args:
        settings: bounds.
    """

    def __init__(self, settings: AdmissionSettings) -> None:
        self.settings = settings
        self.rates = Rates(settings.requests_per_minute, settings.tokens_per_minute, settings.storage)
        self._lines: WeakKeyDictionary[Rows, Line] = WeakKeyDictionary()

    def line(self, rows: Rows) -> Line:
        """The line before an engine's rows, made when first asked for and gone with them."""
        line = self._lines.get(rows)
        if line is None:
            line = self._lines[rows] = Line(self.settings, rows.max_rows)
        return line

    @property
    def lines(self) -> tuple[Line, ...]:
        """All lines."""
        return tuple(self._lines.values())


def estimate_tokens(characters: int) -> int:
    """Prompt tokens before the text is tokenized, for bounds only: about four UTF-8 bytes each."""
    return characters // 4 + 8
