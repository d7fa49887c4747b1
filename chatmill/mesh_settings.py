"""The `mesh` section of the configuration: what all services share. See `chatmill.config` for how values are found."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


def check_port(port: int) -> None:
    """Raise ValueError unless `port` is one; 0 asks for any free one."""
    if not 0 <= port <= 65535:
        raise ValueError(f"port must be between 0 (any free one) and 65535, not {port}")


def check_hosts(hosts: tuple[str, ...]) -> None:
    """Raise ValueError unless each is a bare name or address, as a browser shows it without scheme, port and path."""
    for host in hosts:
        if not re.fullmatch(r"[A-Za-z0-9._-]+|\[?[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\]?", host):
            raise ValueError(
                f"hosts must be names without scheme, port and path, such as chat.example.com, not {host!r}"
            )


def check_positive(**values: float) -> None:
    """Raise ValueError that names the first value that is not greater than 0."""
    for name, value in values.items():
        if value <= 0:
            raise ValueError(f"{name} must be greater than 0, not {value}")


@dataclass(frozen=True, slots=True)
class Security:
    """Who may talk to the mesh, and how it proves who it is. Needed as soon as a service listens beyond loopback.

    Attributes:
        cert_file: PEM certificate chain of the services; with `key_file` it turns TLS on. Read again when it changes.
        key_file: PEM private key of `cert_file`.
        ca_file: PEM roots that clients trust, and that clients' certificates are checked against under `mtls`.
        mtls: whether a client must show a certificate signed by `ca_file`; its common name is the caller's name.
        token_file: accepted API tokens, one `name:token` per line, `#` for comments. Read again when it changes.
        client_token_file: the one token that our own clients send (services among each other, CLI, bridge).
        client_cert_file: PEM certificate that our own clients show under `mtls`; without it `cert_file` is shown.
        client_key_file: PEM private key of `client_cert_file`.
        server_name: name that clients expect in the services' certificate, if it differs from the host they dial.
    """

    cert_file: Path | None = None
    key_file: Path | None = None
    ca_file: Path | None = None
    mtls: bool = False
    token_file: Path | None = None
    client_token_file: Path | None = None
    client_cert_file: Path | None = None
    client_key_file: Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file belong together; set both or neither")
        if (self.client_cert_file is None) != (self.client_key_file is None):
            raise ValueError("client_cert_file and client_key_file belong together; set both or neither")
        if self.mtls and (self.cert_file is None or self.ca_file is None):
            raise ValueError("mtls needs cert_file, key_file and ca_file")


@dataclass(frozen=True, slots=True)
class Keepalive:
    """How quickly a connection whose other end is gone without a word is noticed.

    Attributes:
        ping_seconds: a side that hears nothing for so long sends a ping.
        timeout_seconds: a ping that is not answered within this closes the connection, and its calls end UNAVAILABLE.
        min_ping_seconds: a server drops clients that ping more often than this (GOAWAY too_many_pings).
    """

    ping_seconds: float = 30.0
    timeout_seconds: float = 10.0
    min_ping_seconds: float = 10.0

    def __post_init__(self) -> None:
        check_positive(ping_seconds=self.ping_seconds, timeout_seconds=self.timeout_seconds)
        if self.min_ping_seconds > self.ping_seconds:
            raise ValueError("min_ping_seconds must not exceed ping_seconds, or our own clients are dropped")


@dataclass(frozen=True, slots=True)
class Peers:
    """Where the services are, when they are not on the host and port of their own section.

    Several replicas are taken in turn: a DNS name with several addresses, or `ipv4:10.0.0.1:50053,10.0.0.2:50053`.

    Attributes:
        dataset: `host:port` of the dataset service; without it `dataset.host` and `dataset.port` hold.
        factory: `host:port` of the factory.
        inference: `host:port` of the inference service.
        eval: `host:port` of the evaluation service.
    """

    dataset: str | None = None
    factory: str | None = None
    inference: str | None = None
    eval: str | None = None


@dataclass(frozen=True, slots=True)
class Mesh:
    """What all services share.

    Attributes:
        home: folder of all state: datasets, artifacts, registry.yaml, SQLite files, logs, run files.
        log_level: lowest level that is logged.
        log_format: `console` for people, `json` for one object per line.
        metrics_port: port of a Prometheus page at http://host:port/metrics; off without it. 0 takes a free one. It asks
            for no token; with TLS it is https, under `mtls` it wants a certificate.
        grpc_server: what answers calls; `direct` is ours, with less work for each call than `aio`, gRPC's own for
            asyncio. Where gRPC is of a release that `direct` does not fit, it is `aio` all the same.
        reflection: whether servers describe themselves; `auto` only on loopback.
        max_message_bytes: largest message that is sent or taken, in bytes, on both sides.
        unary_timeout_seconds: deadline of a unary call for which the caller gives none; 0 for none.
        stream_timeout_seconds: the same for calls that stream; 0 for none.
        drain_seconds: how long a stopping service still takes calls after its health went off.
        grace_seconds: how long running calls may finish after that.
        security: TLS and tokens.
        keepalive: pings.
        peers: targets of services on other hosts.
    """

    home: Path = Path("chatmill-home")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"
    metrics_port: int | None = None
    grpc_server: Literal["direct", "aio"] = "direct"
    reflection: Literal["auto", "on", "off"] = "auto"
    max_message_bytes: int = 4 * 1024 * 1024
    unary_timeout_seconds: float = 60.0
    stream_timeout_seconds: float = 86_400.0
    drain_seconds: float = 0.2
    grace_seconds: float = 10.0
    security: Security = field(default_factory=Security)
    keepalive: Keepalive = field(default_factory=Keepalive)
    peers: Peers = field(default_factory=Peers)

    def __post_init__(self) -> None:
        check_port(self.metrics_port or 0)
        if self.max_message_bytes < 64 * 1024:
            raise ValueError("max_message_bytes must be at least 65536, or ordinary answers no longer fit")
        for name in ("unary_timeout_seconds", "stream_timeout_seconds", "drain_seconds", "grace_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")
