"""Pages of lists: sizes, and opaque tokens that only fit the call that they came from (AIP-158)."""

from __future__ import annotations

import base64
import binascii
import json

from chatmill.errors import InvalidArgument

DEFAULT_SIZE = 50
LARGEST_SIZE = 1000


def page_size(wanted: int) -> int:
    """The size that holds: 0 means the default, and too much is the largest.

    Raises:
        InvalidArgument: it is negative.
    """
    if wanted < 0:
        raise InvalidArgument.field("page_size", f"must not be negative, not {wanted}")
    return min(wanted or DEFAULT_SIZE, LARGEST_SIZE)


def encode_token(position: int, call: str) -> str:
    """The token that goes on at `position` of the call described by `call` (its other arguments)."""
    return base64.urlsafe_b64encode(json.dumps([position, call]).encode()).decode().rstrip("=")


def decode_token(token: str, call: str) -> int | None:
    """The position of a token, or None for an empty one.

    Raises:
        InvalidArgument: the token is not one of ours, or belongs to other arguments.
    """
    if not token:
        return None
    try:
        position, found = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (ValueError, binascii.Error, TypeError):
        found, position = None, 0
    if found != call or not isinstance(position, int):
        raise InvalidArgument.field("page_token", "is not from a call with the same arguments; begin without one")
    return position
