"""TLS, the token of our own clients, and the rule that only loopback may do without encryption and authentication.

Certificates and tokens are read from files and read again when the files change: a server shows a rotated certificate
from the next handshake on. A file that can't be read while the server runs leaves the old one in force, and says so.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc

from chatmill.config import Security
from chatmill.errors import FailedPrecondition, InvalidArgument

log = logging.getLogger(__name__)

T = TypeVar("T")


class WatchedFiles(Generic[T]):
    """A value made from files, made again when one of them changes.

    Args:
        paths: the files.
        make: builds the value; raises InvalidArgument or OSError if it can't.
    """

    def __init__(self, paths: tuple[Path, ...], make: Callable[[], T]) -> None:
        self._paths = paths
        self._make = make
        self._value = make()  # first, since it tells which option a missing file belongs to
        self._stamp = self._stamps()

    def get(self) -> tuple[T, bool]:
        """The value, and whether it is new since the last call."""
        try:
            stamp = self._stamps()
            if stamp == self._stamp:
                return self._value, False
            self._value = self._make()
        except (OSError, InvalidArgument) as error:
            log.error("a security file changed and can't be used; the old one stays in force: %s", error)
            return self._value, False
        self._stamp = stamp
        log.info("security files were read again", extra={"fields": {"files": ", ".join(map(str, self._paths))}})
        return self._value, True

    def _stamps(self) -> tuple[tuple[int, int, int], ...]:
        stats = [path.stat() for path in self._paths]
        return tuple((s.st_mtime_ns, s.st_size, s.st_ino) for s in stats)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`; a name other than `localhost` counts as reachable from outside."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_bind(section: str, host: str, security: Security) -> None:
    """Refuse to listen beyond loopback without TLS and authentication.

    Raises:
        FailedPrecondition: reason `INSECURE_BIND`; says which options are missing.
    """
    if is_loopback(host):
        return
    missing = []
    if security.cert_file is None:
        missing.append("TLS (mesh.security.cert_file and key_file)")
    if security.token_file is None and not security.mtls:
        missing.append("authentication (mesh.security.token_file, or mtls with ca_file)")
    if missing:
        raise FailedPrecondition(
            f"{section} will not listen on {host}, which other machines can reach, without {' and '.join(missing)}. "
            f"Set that, or {section}.host to 127.0.0.1.",
            reason="INSECURE_BIND",
        )


def server_credentials(security: Security) -> grpc.ServerCredentials | None:
    """TLS credentials that follow changes of their files, or None if TLS is not configured.

    Raises:
        InvalidArgument: reason `INVALID_CONFIG`, if a file can't be read.
    """
    if security.cert_file is None or security.key_file is None:
        return None
    cert, key, roots = security.cert_file, security.key_file, security.ca_file

    def make() -> grpc.ServerCertificateConfiguration:
        pair = (read_file(key, "key_file"), read_file(cert, "cert_file"))
        return grpc.ssl_server_certificate_configuration(
            [pair], root_certificates=read_file(roots, "ca_file") if roots and security.mtls else None
        )

    watched = WatchedFiles((cert, key, *([roots] if roots else [])), make)
    initial, _ = watched.get()

    def fetch() -> Any:
        value, changed = watched.get()
        return value if changed else None  # None: nothing new, which the type stubs do not know

    return grpc.dynamic_ssl_server_credentials(initial, fetch, require_client_authentication=security.mtls)


def channel_credentials(security: Security) -> grpc.ChannelCredentials | None:
    """Credentials of our own clients, or None for plain text, which is right only on loopback.

    Raises:
        InvalidArgument: reason `INVALID_CONFIG`, if a file can't be read.
    """
    if security.ca_file is None and security.cert_file is None:
        return None
    roots = read_file(security.ca_file, "ca_file") if security.ca_file else None
    if not security.mtls:
        return grpc.ssl_channel_credentials(roots)
    cert, key = security.client_cert_file or security.cert_file, security.client_key_file or security.key_file
    assert cert is not None
    assert key is not None
    return grpc.ssl_channel_credentials(roots, read_file(key, "client_key_file"), read_file(cert, "client_cert_file"))


def security_files(security: Security) -> tuple[Path, ...]:
    """The files that `channel_credentials` reads; none if our own clients speak plain text."""
    files = [security.ca_file]
    if security.mtls:
        files += [security.client_cert_file or security.cert_file, security.client_key_file or security.key_file]
    return tuple(path for path in files if path is not None)


def read_file(path: Path, option: str) -> bytes:
    """Bytes of the file that `mesh.security.<option>` names.

    Raises:
        InvalidArgument: reason `INVALID_CONFIG`.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidArgument(
            f"mesh.security.{option}: {path} can't be read: {error.strerror}", reason="INVALID_CONFIG"
        ) from error


def read_client_token(path: Path) -> str:
    """The one token of our own clients: the file's text, or what follows the name in `name:token`.

    Raises:
        InvalidArgument: reason `INVALID_CONFIG`, if the file can't be read or is empty.
    """
    text = read_file(path, "client_token_file").decode("utf-8", "replace").strip()
    token = text.partition(":")[2] or text
    if not token or len(token.split()) != 1:
        raise InvalidArgument(f"mesh.security.client_token_file: {path} must hold one token", reason="INVALID_CONFIG")
    return token
