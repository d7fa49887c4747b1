"""Who calls: bearer tokens, or certificates under mTLS. What a caller may do is decided in front, by method path."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Callable
from pathlib import Path

from chatmill.config import Security
from chatmill.errors import InvalidArgument, Unauthenticated
from chatmill.runtime.identity import HEALTH, PRINCIPAL
from chatmill.runtime.interceptor import Call
from chatmill.runtime.security import WatchedFiles, read_file

log = logging.getLogger(__name__)


class Tokens:
    """The accepted API tokens.

    Args:
        path: file with one `name:token` per line.

    Raises:
        InvalidArgument: reason `INVALID_CONFIG`, if the file can't be read, holds no token or a line without a name.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._watched = WatchedFiles((path,), self._load)
        if path.stat().st_mode & 0o077:
            log.warning("%s can be read by other users of this machine; chmod 600 it", path)

    def _load(self) -> list[tuple[str, bytes]]:
        found = []
        for number, line in enumerate(read_file(self._path, "token_file").decode("utf-8", "replace").splitlines(), 1):
            entry = line.strip()
            if not entry or entry.startswith("#"):
                continue
            name, separator, token = entry.partition(":")
            if not separator or not name.strip() or not token.strip():
                raise InvalidArgument(f"{self._path}:{number}: expected `name:token`", reason="INVALID_CONFIG")
            found.append((name.strip(), hashlib.sha256(token.strip().encode()).digest()))
        if not found:
            raise InvalidArgument(f"{self._path}: holds no token, so nobody could call", reason="INVALID_CONFIG")
        return found

    def name_of(self, token: str) -> str | None:
        """Name of the caller with this token, or None; takes the same time wherever a difference is."""
        entries, _ = self._watched.get()
        digest = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        matched = None
        for name, accepted in entries:
            if hmac.compare_digest(digest, accepted):
                matched = name
        return matched


def authenticate(security: Security) -> Callable[[Call], None]:
    """Middleware: know the caller by bearer token, or by certificate under mTLS; health checks need neither."""
    tokens = Tokens(security.token_file) if security.token_file else None

    def middleware(call: Call) -> None:
        if security.mtls:
            names = list(call.context.auth_context().get("x509_common_name", ()))
            call.principal = names[0].decode("utf-8", "replace") if names else ""
        if tokens is not None and call.service != HEALTH:
            scheme, _, token = call.metadata.get("authorization", "").partition(" ")
            name = tokens.name_of(token.strip()) if scheme.lower() == "bearer" else None
            if name is None:
                raise Unauthenticated(
                    "No valid API token. Send `authorization: Bearer TOKEN`; our own clients read it from "
                    "mesh.security.client_token_file.",
                    reason="INVALID_TOKEN" if token else "TOKEN_MISSING",
                )
            call.principal = name
        PRINCIPAL.set(call.principal)

    return middleware
