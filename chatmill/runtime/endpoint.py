"""Where services are: run files of this machine's processes, and the targets that clients dial.

A service that is ready writes `<home>/run/<service>.json` and removes it when it stops, so that a parent process or a
client on the same machine finds it even on a port that the system chose.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from chatmill.config import SERVICES, Config
from chatmill.errors import FailedPrecondition, Unavailable


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running service on this machine.

    Attributes:
        service: section name, for example `factory`.
        pid: its process.
        host: address it listens on.
        port: port it listens on.
    """

    service: str
    pid: int
    host: str
    port: int

    @property
    def target(self) -> str:
        """What a client on this machine dials."""
        return target_of(self.host, self.port)


def target_of(host: str, port: int) -> str:
    """`host:port` to dial for a listening address; an address that means every interface is dialled on loopback."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "[::]": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def run_file(home: Path, service: str) -> Path:
    """Path of the run file."""
    return home / "run" / f"{service}.json"


def announce(home: Path, endpoint: Endpoint) -> None:
    """Write the run file, all at once.

    Raises:
        FailedPrecondition: reason `HOME_NOT_WRITABLE`.
    """
    path = run_file(home, endpoint.service)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(asdict(endpoint)) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise FailedPrecondition(
            f"{path} can't be written: {error.strerror}. Make room or choose another folder with mesh.home or "
            "CHATMILL_HOME.",
            reason="HOME_NOT_WRITABLE",
        ) from error


def withdraw(home: Path, service: str) -> None:
    """Remove the run file if it is this process's own; another one may have taken over."""
    endpoint = read(home, service)
    if endpoint is not None and endpoint.pid == os.getpid():
        run_file(home, service).unlink(missing_ok=True)


def read(home: Path, service: str) -> Endpoint | None:
    """The service that announced itself, or None if there is no file or its process has gone."""
    try:
        endpoint = Endpoint(**json.loads(run_file(home, service).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    try:
        os.kill(endpoint.pid, 0)
    except PermissionError:
        pass  # alive, under another user
    except OSError:
        return None
    return endpoint


def resolve(config: Config, service: str) -> str:
    """The target of `service`: `mesh.peers`, else its own section, else (port 0) its run file.

    Raises:
        Unavailable: reason `SERVICE_NOT_FOUND`, if its port is chosen by the system and it is not running here.
    """
    peer: str | None = getattr(config.mesh.peers, service) if service in SERVICES else None
    if peer:
        return peer
    host, port = config.address(service)
    if port:
        return target_of(host, port)
    endpoint = read(config.home, service)
    if endpoint is None:
        raise Unavailable(
            f"{service} is not running here (no {run_file(config.home, service)}). Start it with `chatmill up`, or say "
            f"where it is in mesh.peers.{service}.",
            reason="SERVICE_NOT_FOUND",
        )
    return endpoint.target
