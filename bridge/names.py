"""Under which names the bridge answers, and to whose pages: another site must not use a visitor's browser to reach it.

A site can point a name of its own at this machine and so read the bridge with the browser of somebody who sits at it;
the request then has that name as its Host. Or its pages send requests here; those have its name as their Origin.
Starlette's TrustedHostMiddleware would judge the Host alone, and not say which option helps.
"""

from __future__ import annotations

import logging
import re

from bridge.access import OPEN
from bridge.guard import App, Receive, Scope, Send
from chatmill.config import Config
from chatmill.runtime.security import is_loopback

log = logging.getLogger(__name__)

AUTHORITY = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>\d+))?")
DEFAULT_PORTS = {"http": "80", "https": "443"}


class Names:
    """ASGI middleware: 403 for a Host that is not the bridge's, and for pages of other origins.

    Loopback names, `bridge.host` and `bridge.hosts` are the bridge's. Where a token or a certificate is asked for and
    `bridge.hosts` is empty, every Host is: under a name of its own, a site's page has neither.
    """

    def __init__(self, app: App, config: Config) -> None:
        self._app = app
        named = config.bridge.hosts
        self._own = frozenset(name.lower().strip("[]") for name in (config.bridge.host, *named))
        self._named = frozenset(name.lower().strip("[]") for name in named)
        security = config.mesh.security
        self._any = not named and (security.token_file is not None or security.mtls)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        host, origin = _header(scope, b"host"), _header(scope, b"origin")
        if not self._any and not self._answers_to(host):
            await _refuse(send, f"the bridge is not called {host[:200]!r}")
        elif origin and not self._is_own(origin, host):
            await _refuse(send, f"a page of {origin[:200]!r} may not use the bridge that is called {host[:200]!r}")
        else:
            await self._app(scope, receive, send)

    def _answers_to(self, host: str) -> bool:
        name, _ = _parts(host)
        return name in self._own or is_loopback(name)

    def _is_own(self, origin: str, host: str) -> bool:
        scheme, _, rest = origin.partition("://")
        name, port = _parts(rest)
        if name in self._named:  # a proxy may have changed the Host on its way, or its port
            return True
        own, at = _parts(host)
        default = DEFAULT_PORTS.get(scheme)
        return bool(name) and (name, port or default) == (own, at or default)


def _header(scope: Scope, name: bytes) -> str:
    return next((value for key, value in scope["headers"] if key == name), b"").decode("latin-1")


def _parts(authority: str) -> tuple[str, str | None]:
    """Name and port of `name:port`; an empty name where it is something else."""
    found = AUTHORITY.fullmatch(authority.lower())
    return (found["name"].strip("[]"), found["port"]) if found else ("", None)


async def _refuse(send: Send, problem: str) -> None:
    log.warning("a request was refused: %s", problem)
    told = f"Refused: {problem}. If it should be, add the name that is in the browser's address line to bridge.hosts.\n"
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": told.encode()})
