"""Pages of lists, one form for all services (AIP-158): sizes that hold, and opaque tokens that fit one query alone.

A token names the last item of its page by that item's key, not by a position, so that a list that grows or shrinks
between two calls shows nothing twice and leaves nothing out. It knows neither stores nor the wire.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from chatmill.errors import InvalidArgument

DEFAULT_SIZE = 50
LARGEST_SIZE = 1000

K = TypeVar("K", int, str)
"""What an item is known by within its list: a number or an id."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[K]):
    """Which part of a list is wanted.

    Attributes:
        size: most items of the page, from 1.
        after: key of the last item of the page before; None for the first page.
        query: the call and its other arguments, in words.
    """

    size: int
    after: K | None
    query: str

    def cut(self, found: Sequence[T], key: Callable[[T], K]) -> tuple[Sequence[T], str]:
        """The page, and the token of the next one (empty at the end).

        Args:
            found: the items behind `after`, at least one more than `size` if there are so many.
            key: an item's key.
        """
        if len(found) <= self.size:
            return found, ""
        return found[: self.size], _token(self.query, key(found[self.size - 1]))


def size_of(wanted: int, default: int = DEFAULT_SIZE, largest: int = LARGEST_SIZE) -> int:
    """The size that holds: 0 means the default, and too much is the largest.

    Raises:
        InvalidArgument: it is negative.
    """
    if wanted < 0:
        raise InvalidArgument.field("page_size", f"must be 0 or more, not {wanted}")
    return min(wanted or default, largest)


def page(size: int, token: str, query: str, key: type[K]) -> Page[K]:
    """Read a request's page.

    Args:
        size: the request's `page_size`.
        token: its `page_token`.
        query: the call and its other arguments, in words; a token of one query is refused by every other.
        key: type of the keys.

    Raises:
        InvalidArgument: the size is negative, or the token is not from a call with the same arguments.
    """
    return Page(size_of(size), _after(token, query, key) if token else None, query)


def _token(query: str, key: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps([_mark(query), key]).encode()).decode().rstrip("=")


def _after(token: str, query: str, key: type[K]) -> K:
    try:
        mark, found = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (ValueError, TypeError):
        mark, found = None, None
    if mark != _mark(query) or not isinstance(found, key):
        raise InvalidArgument.field("page_token", "is not from a call with the same arguments; begin without one")
    return found


def _mark(query: str) -> str:
    """Short, and it does not show what was asked for: tokens end up in logs."""
    return hashlib.sha256(query.encode()).hexdigest()[:12]


class PagedRequest(Protocol):
    """A request for a page."""

    page_token: str


class PagedResponse(Protocol):
    """An answer with a page."""

    @property
    def next_page_token(self) -> str:
        """Empty at the end."""


Q = TypeVar("Q", bound=PagedRequest)
R = TypeVar("R", bound=PagedResponse)


async def every(call: Callable[[Q], Awaitable[R]], request: Q) -> AsyncIterator[R]:
    """All pages of a list, one after the other; `request` is changed on the way. Raises what `call` does."""
    while True:
        answer = await call(request)
        yield answer
        if not answer.next_page_token:
            return
        request.page_token = answer.next_page_token
