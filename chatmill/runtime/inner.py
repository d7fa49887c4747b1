"""What we use of gRPC's inner layer for Python, the one that its own servers stand on.

It is not public, so it may change with any release. This is the only module that names it; where something is not there
any more, `missing` says so and `server.py` takes gRPC's own server instead.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

import grpc

layer: Any = None
with contextlib.suppress(ImportError):
    layer = importlib.import_module("grpc._cython.cygrpc")

_NEEDED = (
    "CompletionQueue.poll",
    "CompletionQueue.shutdown",
    "Server.add_http2_port",
    "Server.cancel_all_calls",
    "Server.destroy",
    "Server.register_completion_queue",
    "Server.request_call",
    "Server.shutdown",
    "Server.start",
    "Call.cancel",
    "Call.peer",
    "Call.start_server_batch",
    "CompletionType.queue_shutdown",
    "CompletionType.queue_timeout",
    "ReceiveCloseOnServerOperation.cancelled",
    "ReceiveMessageOperation.message",
    "SendInitialMetadataOperation",
    "SendMessageOperation",
    "SendStatusFromServerOperation",
    "WriteFlag.no_compress",
    "auth_context",
    "peer_identities",
    "peer_identity_key",
)


def missing() -> list[str]:
    """Names that we use and that the installed gRPC does not have; empty if all is well."""
    return [name for name in _NEEDED if not _has(name)]


def credentials(public: grpc.ServerCredentials) -> Any:
    """The inner layer's of what `grpc.ssl_server_credentials` and its like make."""
    return public._credentials  # type: ignore[attr-defined]


def _has(name: str) -> bool:
    found: Any = layer
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is not None
