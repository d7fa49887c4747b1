"""What every HTTP request passes: a bounded body, and headers that let a browser trust nothing but this page.

The page's own clicks are a few kilobytes; nothing is ever uploaded. The content policy is a second wall behind the
escaping of replies: even a reply that became HTML could load nothing from elsewhere and send nothing there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY = 1_048_576
"""Bytes of a request; a larger one is refused with 413."""

DRAINED = 16 * MAX_BODY
"""Bytes of a refused request that are read and thrown away, so that its sender reads why."""

POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio starts itself from an inline script
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class _TooLarge(Exception):
    """The body went past the limit while it was read."""


class Guard:
    """ASGI middleware.

    Args:
        max_body: bytes of a request's body that are let through.
    """

    def __init__(self, app: App, max_body: int = MAX_BODY) -> None:
        self._app = app
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        taken, begun, more = 0, False, True

        async def counted() -> Message:
            nonlocal taken, more
            message = await receive()
            more = message.get("more_body", False)
            taken += len(message.get("body", b""))
            if taken > self._max_body:
                raise _TooLarge
            return message

        async def headed(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
            await send(message)

        if _announced(scope) > self._max_body:
            await _refuse(receive, send, self._max_body)
            return
        try:
            await self._app(scope, counted, headed)
        except _TooLarge:
            if not begun:
                await _refuse(receive, send, self._max_body, more=more)


def _announced(scope: Scope) -> int:
    """The length that the request says it has; 0 where it says none, or nonsense."""
    sent = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    return int(sent) if sent.isdigit() else 0


async def _refuse(receive: Receive, send: Send, limit: int, *, more: bool = True) -> None:
    left = DRAINED
    while more and left > 0:  # a client that is cut off while it still sends never reads the answer
        message = await receive()
        left -= max(1, len(message.get("body", b"")))
        more = message.get("more_body", False)
    headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": f"A request may have at most {limit} bytes.\n".encode()})
