"""Who may open the pages: with `mesh.security.token_file`, whoever knows one of its tokens; browsers ask for it."""

from __future__ import annotations

import base64

from bridge.guard import App, Receive, Scope, Send
from chatmill.runtime.authentication import Tokens

OPEN = frozenset(("/healthz",))
"""Paths that need no token: a balancer must be able to ask whether the bridge lives."""


class TokenWall:
    """Lets nobody through without a token: `Authorization: Bearer TOKEN`, or Basic with name and token.

    Args:
        tokens: the accepted ones.
    """

    def __init__(self, app: App, tokens: Tokens) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] in ("http", "websocket") and scope["path"] not in OPEN and not self._known(scope):
            await _refuse(scope, send)
            return
        await self._app(scope, receive, send)

    def _known(self, scope: Scope) -> bool:
        header = next((value for name, value in scope["headers"] if name == b"authorization"), b"").decode("latin-1")
        scheme, _, sent = header.partition(" ")
        if scheme.lower() == "bearer":
            return self._tokens.name_of(sent.strip()) is not None
        if scheme.lower() != "basic":
            return False
        try:
            name, _, token = base64.b64decode(sent, validate=True).decode().partition(":")
        except ValueError:  # not base64, not ASCII or not UTF-8
            return False
        return self._tokens.name_of(token) == name


async def _refuse(scope: Scope, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"www-authenticate", b'Basic realm="Chatmill", charset="UTF-8"'), (b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": b"A name and its API token are needed.\n"})
