"""Pages of a list that grows at its head: the token names the last item seen, so that nothing is shown twice."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass

from chatmill.errors import InvalidArgument

DEFAULT = 50
LARGEST = 1000
Key = tuple[float, str]
"""Creation time and id of an item."""


@dataclass(frozen=True, slots=True)
class Page:
    """Which page is wanted: its size, and the item before it (None: the first page)."""

    size: int
    before: Key | None

    def next_token(self, keys: Sequence[Key]) -> str:
        """The token of the page after, given the keys of one item more than the page holds; empty at the end."""
        if len(keys) <= self.size:
            return ""
        return base64.urlsafe_b64encode(json.dumps(keys[self.size - 1]).encode()).decode()


def page(size: int, token: str) -> Page:
    """Read a request's page. Raises InvalidArgument for a negative size or a token that is none of ours."""
    if size < 0:
        raise InvalidArgument.field("page_size", f"must be 0 or more, not {size}")
    before: Key | None = None
    if token:
        try:
            created, name = json.loads(base64.urlsafe_b64decode(token.encode()))
            before = float(created), str(name)
        except (ValueError, TypeError, binascii.Error):
            raise InvalidArgument.field(
                "page_token", "is not a token of this call; take it from the page before"
            ) from None
    return Page(min(size or DEFAULT, LARGEST), before)
