"""Who is being served and under which id: what servers set and clients pass on, known to both sides."""

from __future__ import annotations

from contextvars import ContextVar

from chatmill.randomness import random_bytes

REQUEST_ID_KEY = "x-request-id"
REQUEST_ID: ContextVar[str] = ContextVar("chatmill_request_id", default="")
"""Id of the call that is being served; our own clients pass it on, so one id follows a request through the mesh."""

PRINCIPAL: ContextVar[str] = ContextVar("chatmill_principal", default="")
"""Name of the caller that is being served, as its token or certificate says; empty without authentication."""

HEALTH = "grpc.health.v1.Health"
"""Health checks pass every middleware: they must work while starting, stopping, and without a token."""


def new_request_id() -> str:
    """A fresh id, 32 hexadecimal characters."""
    return random_bytes().hex()
