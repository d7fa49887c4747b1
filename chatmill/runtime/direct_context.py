"""What a handler may ask of its call, and set for its end, without waiting for anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc.aio

from chatmill.runtime.inner import layer

NO_FLAGS = 0
_FOREVER = 1e12
"""Deadlines, in seconds since 1970, from which on a call has none."""
_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}
_COMPRESSION_KEY = "grpc-internal-encoding-request"
_COMPRESSIONS = {
    grpc.Compression.NoCompression: "identity",
    grpc.Compression.Deflate: "deflate",
    grpc.Compression.Gzip: "gzip",
}


class DirectContext(grpc.aio.ServicerContext[Any, Any]):
    """The part of a `grpc.aio.ServicerContext` that neither reads nor writes.

    Args:
        event: gRPC's, with the call, its details and what the client sent along.
    """

    def __init__(self, event: Any) -> None:
        self._core = event.call
        self._deadline: float = event.call_details.deadline
        self._metadata = event.invocation_metadata
        self._initial: Any = ()
        self._trailing: Any = ()
        self._code: grpc.StatusCode | None = None
        self._details = ""
        self._callbacks: list[Callable[[Any], None]] = []
        self._flags = NO_FLAGS
        self._begun = False  # the initial metadata is on its way
        self._ended = False  # the status is on its way
        self._closed = False  # gRPC's core has done with the call
        self._cancelled = False

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """What is sent along with the status."""
        self._trailing = tuple(trailing_metadata)

    def trailing_metadata(self) -> Any:
        """What was set."""
        return self._trailing

    def invocation_metadata(self) -> Any:
        """What the client sent along."""
        return self._metadata

    def set_code(self, code: grpc.StatusCode | int) -> None:
        """The code that the call will end with."""
        self._code = _STATUS_CODES[code] if isinstance(code, int) else code

    def code(self) -> Any:
        """The code that was set; None if there was none."""
        return self._code

    def set_details(self, details: str) -> None:
        """The message that the call will end with."""
        self._details = details

    def details(self) -> str:
        """What was set."""
        return self._details

    def set_compression(self, compression: grpc.Compression) -> None:
        """How the answers are compressed; before the first of them."""
        if self._begun:
            raise RuntimeError("compression is set before the initial metadata are sent")
        self._initial = (*self._initial, (_COMPRESSION_KEY, _COMPRESSIONS[compression]))

    def disable_next_message_compression(self) -> None:
        """Send the next message as it is."""
        self._flags = layer.WriteFlag.no_compress

    def peer(self) -> str:
        """Address of the client."""
        return str(self._core.peer().decode())

    def peer_identities(self) -> Any:
        """Names of an authenticated client."""
        return layer.peer_identities(self._core)

    def peer_identity_key(self) -> str | None:
        """Which property of `auth_context` has them."""
        key = layer.peer_identity_key(self._core)
        return None if key is None else key.decode()

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """What is known of the client's certificate."""
        return {key.decode(): values for key, values in layer.auth_context(self._core).items()}

    def time_remaining(self) -> Any:
        """Seconds until the deadline, at least 0; None if there is none."""
        return None if self._deadline > _FOREVER else max(self._deadline - time.time(), 0.0)

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call `callback` with this when the call is over."""
        self._callbacks.append(callback)

    def cancelled(self) -> bool:
        """Whether the client has gone or the deadline has passed."""
        return self._cancelled

    def done(self) -> bool:
        """Whether nothing more can be sent."""
        return self._ended or self._closed
