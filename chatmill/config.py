"""What can be set: one frozen dataclass per section of `chatmill.yaml`.

Precedence: a flag (`--set factory.port=0`) over the environment over the file over the default written here. The file
is the path given, else `CHATMILL_CONFIG`, else `./chatmill.yaml` if it is there. An option `section.name` is overridden
by `CHATMILL_SECTION__NAME` (two underscores for each dot; lists are separated by commas), and `mesh.home` also by
`CHATMILL_HOME`. Relative paths start from the folder of the file that names them, otherwise from the working directory;
`~` is the home folder. Secrets are never values, only paths of files that hold them. Unknown keys are errors that name
the nearest valid one.

The manual of every option is the `Attributes:` section of its class below; `manual()` prints it with environment
variables and defaults, and `chatmill config check` prints what holds here and now.

This module knows no gRPC and no service; how layers are merged is in `chatmill.settings`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from chatmill import settings

FILE_NAME = "chatmill.yaml"
PREFIX = "CHATMILL_"
SHORT_KEYS = {"home": "mesh.home"}
SHORTHANDS = {"CHATMILL_HOME": "mesh.home"}
OTHERS = ("CHATMILL_CONFIG",)
"""Variables that are not options: `CHATMILL_CONFIG` is the path of the file itself."""

SERVICES = ("dataset", "factory", "inference", "eval")
"""The gRPC services of the mesh, by section name."""


def _check_port(port: int) -> None:
    if not 0 <= port <= 65535:
        raise ValueError(f"port must be between 0 (any free one) and 65535, not {port}")


def _check_positive(**values: float) -> None:
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
        _check_positive(ping_seconds=self.ping_seconds, timeout_seconds=self.timeout_seconds)
        if self.min_ping_seconds > self.ping_seconds:
            raise ValueError("min_ping_seconds must not exceed ping_seconds, or our own clients are dropped")


@dataclass(frozen=True, slots=True)
class Peers:
    """Where the services are, when they are not on the host and port of their own section.

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
        metrics_port: port of a Prometheus page at http://host:port/metrics; off without it. 0 takes a free one.
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
        _check_port(self.metrics_port or 0)
        if self.max_message_bytes < 64 * 1024:
            raise ValueError("max_message_bytes must be at least 65536, or ordinary answers no longer fit")
        for name in ("unary_timeout_seconds", "stream_timeout_seconds", "drain_seconds", "grace_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")


@dataclass(frozen=True, slots=True)
class DatasetSettings:
    """The dataset service.

    Attributes:
        host: address to listen on.
        port: port to listen on; 0 takes any free one.
        roots: folders that sources named by path must lie in.
        creators: how many datasets are made at a time; more wait.
    """

    host: str = "127.0.0.1"
    port: int = 50051
    roots: tuple[Path, ...] = (Path(),)
    creators: int = 2

    def __post_init__(self) -> None:
        _check_port(self.port)
        _check_positive(creators=self.creators)


@dataclass(frozen=True, slots=True)
class FactorySettings:
    """The factory: training jobs and the model registry.

    Attributes:
        host: address to listen on.
        port: port to listen on; 0 takes any free one.
        roots: folders that base models named by path must lie in; the shipped ones are always allowed.
        database: SQLAlchemy URL of the job database; `factory.sqlite` in the home without it.
        parallel_jobs: trainings that run at the same time; more wait their turn.
        worker_grace_seconds: how long a training gets to write its checkpoint when it is told to stop.
    """

    host: str = "127.0.0.1"
    port: int = 50052
    roots: tuple[Path, ...] = (Path(),)
    database: str | None = None
    parallel_jobs: int = 1
    worker_grace_seconds: float = 30.0

    def __post_init__(self) -> None:
        _check_port(self.port)
        _check_positive(parallel_jobs=self.parallel_jobs, worker_grace_seconds=self.worker_grace_seconds)


@dataclass(frozen=True, slots=True)
class InferenceSettings:
    """The inference service.

    Attributes:
        host: address to listen on.
        port: port to listen on; 0 takes any free one.
        engine: name of the engine plug-in that generates.
        quantization: how the base model's weights are held: `nf4` (4 bit), `int8`, or `none`.
        memory_budget_mib: most memory that loaded models may take, in MiB; least recently used ones go first. No limit
            without it.
        max_queue: most requests that wait for a place; more are refused with RESOURCE_EXHAUSTED.
        max_queue_seconds: longest that a request waits for a place.
    """

    host: str = "127.0.0.1"
    port: int = 50053
    engine: str = "rows"
    quantization: Literal["nf4", "int8", "none"] = "nf4"
    memory_budget_mib: int | None = None
    max_queue: int = 256
    max_queue_seconds: float = 30.0

    def __post_init__(self) -> None:
        _check_port(self.port)
        _check_positive(max_queue=self.max_queue, max_queue_seconds=self.max_queue_seconds)


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """The evaluation service.

    Attributes:
        host: address to listen on.
        port: port to listen on; 0 takes any free one.
        concurrency: most conversations that one run holds at the same time.
        suite_roots: folders that suites named by path must lie in; the shipped ones are always allowed.
    """

    host: str = "127.0.0.1"
    port: int = 50054
    concurrency: int = 8
    suite_roots: tuple[Path, ...] = (Path(),)

    def __post_init__(self) -> None:
        _check_port(self.port)
        _check_positive(concurrency=self.concurrency)


@dataclass(frozen=True, slots=True)
class BridgeSettings:
    """The bridge: HTTP, the testers' page.

    Attributes:
        host: address to listen on.
        port: port to listen on; 0 takes any free one.
    """

    host: str = "127.0.0.1"
    port: int = 8080

    def __post_init__(self) -> None:
        _check_port(self.port)


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration; made by `load`, never changed afterwards."""

    mesh: Mesh = field(default_factory=Mesh)
    dataset: DatasetSettings = field(default_factory=DatasetSettings)
    factory: FactorySettings = field(default_factory=FactorySettings)
    inference: InferenceSettings = field(default_factory=InferenceSettings)
    eval: EvalSettings = field(default_factory=EvalSettings)
    bridge: BridgeSettings = field(default_factory=BridgeSettings)
    provenance: settings.Provenance = field(
        default_factory=settings.Provenance, compare=False, repr=False, metadata={"option": False}
    )

    @property
    def home(self) -> Path:
        """The folder of all state; it may not exist yet."""
        return self.mesh.home

    def address(self, service: str) -> tuple[str, int]:
        """Host and port that `service` (a section name) listens on."""
        section = getattr(self, service)
        return section.host, section.port


def load(
    path: Path | None = None,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
    *,
    look: bool = True,
) -> Config:
    """Read the configuration.

    Args:
        path: the file; without it `CHATMILL_CONFIG`, else `./chatmill.yaml` if there is one.
        env: environment; `os.environ` without it.
        overrides: flags, by dotted key, as texts.
        look: whether `./chatmill.yaml` is taken if no file is named.

    Raises:
        InvalidArgument: reason `INVALID_CONFIG`; one violation per wrong key, with file and line or variable.
    """
    env = os.environ if env is None else env
    chosen = path or (Path(env["CHATMILL_CONFIG"]) if env.get("CHATMILL_CONFIG") else None)
    if chosen is None and look and Path(FILE_NAME).is_file():
        chosen = Path(FILE_NAME)
    environment, ignored = settings.environment_layer(Config, env, PREFIX, shorthands=SHORTHANDS, others=OTHERS)
    flags = {SHORT_KEYS.get(key, key): value for key, value in (overrides or {}).items()}
    layers = [settings.Layer(flags, dict.fromkeys(flags, "flag"), Path.cwd(), textual=True), environment]
    if chosen is not None:
        layers.append(settings.file_layer(chosen))
    origins: dict[str, str] = {}
    provenance = settings.Provenance(chosen, origins, ignored)
    config, found = settings.resolve(Config, layers, extra={"provenance": provenance})
    origins.update(found)
    return config


def env_name(key: str) -> str:
    """The variable that overrides the option `key`, for example `CHATMILL_FACTORY__PORT`."""
    return settings.env_name(PREFIX, key)


def describe(config: Config) -> str:
    """Every resolved value and where it came from, one per line, for `chatmill config check`."""
    return settings.describe(config, config.provenance)


def manual() -> str:
    """The manual of all options as a Markdown table: key, variable, default, meaning."""
    return settings.manual(Config, PREFIX)
