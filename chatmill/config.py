"""What can be set: one frozen dataclass per section of `chatmill.yaml`.

Precedence: a flag (`--set factory.port=0`) over the environment over the file over the default written here. The file
is the path given, else `CHATMILL_CONFIG`, else `./chatmill.yaml` if it is there. An option `section.name` is overridden
by `CHATMILL_SECTION__NAME` (two underscores for each dot; lists are separated by commas), and `mesh.home` also by
`CHATMILL_HOME`. Relative paths start from the folder of the file that names them, otherwise from the working directory;
`~` is the home folder. Secrets are never values, only paths of files that hold them. Unknown keys are errors that name
the nearest valid one.

The manual of every option is the `Attributes:` section of its class, here and in `chatmill.mesh_settings`; `manual()`
prints it with environment variables and defaults, and `chatmill config check` prints what holds here and now.

This module knows no gRPC and no service; how layers are merged is in `chatmill.settings`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from chatmill import settings
from chatmill.mesh_settings import Keepalive, Mesh, Peers, Security, check_hosts, check_port, check_positive

__all__ = [
    "SERVICES",
    "BridgeSettings",
    "Config",
    "DatasetSettings",
    "EvalSettings",
    "FactorySettings",
    "InferenceSettings",
    "Keepalive",
    "Mesh",
    "Peers",
    "Security",
    "describe",
    "env_name",
    "load",
    "manual",
]

FILE_NAME = "chatmill.yaml"
AGENT_CARD = "agent.yaml"
PREFIX = "CHATMILL_"
SHORT_KEYS = {"home": "mesh.home"}
SHORTHANDS = {"CHATMILL_HOME": "mesh.home"}
OTHERS = ("CHATMILL_CONFIG",)
"""Variables that are not options: `CHATMILL_CONFIG` is the path of the file itself."""

SERVICES = ("dataset", "factory", "inference", "eval")
"""The gRPC services of the mesh, by section name."""


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
        check_port(self.port)
        check_positive(creators=self.creators)


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
        check_port(self.port)
        check_positive(parallel_jobs=self.parallel_jobs, worker_grace_seconds=self.worker_grace_seconds)


@dataclass(frozen=True, slots=True)
class InferenceSettings:
    """The inference service.

    Attributes:
        host: address to listen on.
        port: port to listen on; 0 takes any free one.
        engine: name of the engine plug-in that generates.
        quantization: how the base model's weights are held: `nf4` (4 bit), `int8`, or `none`. On a CPU without bfloat16
            in AVX-512 `nf4` needs a C compiler to be fast (`CC`, else `cc`); the log says if there is none.
        memory_budget_mib: most memory that loaded models may take, in MiB; least recently used ones go first. No limit
            without it.
        max_queue: most requests that wait for a place; more are refused with RESOURCE_EXHAUSTED.
        max_queue_seconds: longest that a request waits for a place.
        max_queue_tokens: most prompt tokens, as estimated, that wait for a place.
        requests_per_minute: of one caller; 0 for any number.
        tokens_per_minute: prompt and output tokens of one caller; 0 for any number.
        rate_storage: where rates are counted: `async+memory://`, or `async+redis://host:6379` for several replicas.
        max_rows: requests that one engine runs at once.
        max_adapters: adapters that one engine holds at once; the least recently used idle one goes first.
        context_length: most tokens of prompt and output together; 0 takes the model's own.
        prefix_cache_tokens: prompt positions that an engine keeps for prompts with the same beginning; 0 for none.
        device: `cpu`, `cuda`, or `auto`.
        threads: CPU threads for arithmetic; 0 takes one per core.
        flush_interval_ms: longest that generated text gathers before it is sent, where a request does not say; without
            it the engine decides by how many replies it streams.
        roots: folders besides the home folder that model files may lie in; the shipped ones are always allowed.
        preload: models that are loaded at the start, before the service says that it is ready.
        moderators: what looks at input and output, a list of mappings: name, response (`report`, `redact`, `block`),
            stages (`input`, `output`), fail_closed, parameters.
        client_may_relax_moderation: whether a request may ask for reports only, or for no moderation.
        blocked_reply: text that is sent where moderation blocked; empty for none.
        fallbacks: who answers when a model can't, a list of mappings: model (`*` for all), models, canned,
            first_word_seconds, by_default.
        breaker_failures: failures in a row after which a model is left alone for `breaker_seconds`.
        breaker_seconds: see `breaker_failures`.
        remote_key_file: file with the API key for remote models, if their access points want one.
        remote_trusted_hosts: who gets that key: hosts of access points, each a name or an address, with `:port` for
            that port only. A model may be registered with any URL, so no other host is sent the key.
    """

    host: str = "127.0.0.1"
    port: int = 50053
    engine: str = "rows"
    quantization: Literal["nf4", "int8", "none"] = "nf4"
    memory_budget_mib: int | None = None
    max_queue: int = 256
    max_queue_seconds: float = 30.0
    max_queue_tokens: int = 1_000_000
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    rate_storage: str = "async+memory://"
    max_rows: int = 64
    max_adapters: int = 64
    context_length: int = 0
    prefix_cache_tokens: int = 65_536
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    flush_interval_ms: float | None = None
    roots: tuple[Path, ...] = ()
    preload: tuple[str, ...] = ()
    moderators: tuple[dict[str, Any], ...] = (
        {"name": "words", "response": "block"},
        {"name": "personal", "response": "report"},
        {"name": "leak", "response": "report"},
    )
    client_may_relax_moderation: bool = True
    blocked_reply: str = ""
    fallbacks: tuple[dict[str, Any], ...] = ()
    breaker_failures: int = 5
    breaker_seconds: float = 10.0
    remote_key_file: Path | None = None
    remote_trusted_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_port(self.port)
        check_positive(
            max_queue=self.max_queue,
            max_queue_seconds=self.max_queue_seconds,
            max_queue_tokens=self.max_queue_tokens,
            max_rows=self.max_rows,
            max_adapters=self.max_adapters,
            breaker_failures=self.breaker_failures,
            breaker_seconds=self.breaker_seconds,
        )
        for name in ("requests_per_minute", "tokens_per_minute", "flush_interval_ms", "threads", "context_length"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} must not be negative")
        if self.remote_key_file is not None and not self.remote_trusted_hosts:
            raise ValueError("remote_trusted_hosts must name the hosts that get the key in remote_key_file")
        if not self.rate_storage.startswith("async+"):
            raise ValueError("rate_storage must begin with async+, for example async+redis://127.0.0.1:6379")


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """The evaluation service.

    Attributes:
        host: address to listen on.
        port: port to listen on; 0 takes any free one.
        concurrency: most conversations that one run holds at the same time.
        max_runs: most evaluations that run at the same time; more wait in the queue.
        suite_roots: folders that suites named by path must lie in; the shipped suites are always allowed.
        key_root: folder that key files of access points must lie in, and nothing else: callers choose which is read.
            `keys` in the home folder without it.
        trusted_hosts: hosts of access points that keys may be sent to, each a name or an address, with `:port` for that
            port only: callers choose the URL.
        database: SQLAlchemy URL of the store; a file `eval.sqlite` under the home folder without it.
        agent_card: the agent that people test; testers see its policies, and each of its handover rules becomes a task.
            Without it, `agent.yaml` in the home folder, where `chatmill run` leaves the card of the newest recipe.
        tasks: file with what testers are asked to do, in place of the one that comes with Chatmill
            (`eval_svc/people/guide.yaml`).
    """

    host: str = "127.0.0.1"
    port: int = 50054
    concurrency: int = 8
    max_runs: int = 2
    suite_roots: tuple[Path, ...] = (Path(),)
    key_root: Path | None = None
    trusted_hosts: tuple[str, ...] = ()
    database: str | None = None
    agent_card: Path | None = None
    tasks: Path | None = None

    def __post_init__(self) -> None:
        check_port(self.port)
        check_positive(concurrency=self.concurrency, max_runs=self.max_runs)


@dataclass(frozen=True, slots=True)
class BridgeSettings:
    """The bridge: HTTP, the testers' page.

    Attributes:
        host: address to listen on. Beyond loopback it takes TLS and tokens, as the services do; browsers then ask for a
            name and its token from `mesh.security.token_file`.
        port: port to listen on; 0 takes any free one.
        hosts: names without a port under which people reach the page, such as that of a proxy before it; loopback names
            and `host` always work. Where a token or a certificate is asked for and none is named, every name works.
        models: what testers talk to: `models/{id}`, versions or aliases; the newest version of each served model
            without it.
        testers: most replies that the testers' page fetches at once; more wait.
        patience_seconds: a reply that shows no sign of life for so long is given up, and the tester can ask again.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    hosts: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    testers: int = 16
    patience_seconds: float = 60.0

    def __post_init__(self) -> None:
        check_port(self.port)
        check_hosts(self.hosts)
        check_positive(testers=self.testers, patience_seconds=self.patience_seconds)


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

    @property
    def left_card(self) -> Path:
        """Where `chatmill run` leaves the agent card of the newest recipe; it may not exist yet."""
        return self.home / AGENT_CARD

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
        layers.append(settings.file_layer(Config, chosen))
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
