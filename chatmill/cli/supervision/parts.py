"""Which services there are, and what each is told on its command line."""

from __future__ import annotations

import argparse
import importlib.util
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

from chatmill.cli.supervision.process import Part
from chatmill.config import SERVICES, Config
from chatmill.errors import FailedPrecondition, NotFound
from chatmill.plugins import install_command, nearest
from chatmill.ports import free_port

MODULES = {"dataset": "dataset_svc", "factory": "factory_svc", "inference": "inference_svc", "eval": "eval_svc"}
BRIDGE = "bridge"
BRIDGE_PACKAGES = ("gradio", "fastapi", "uvicorn")
BRIDGE_MISSING = f"the testers' page is not installed; to have it: {install_command('ui')} and start again"
LOOPBACK = "127.0.0.1"


def installed() -> tuple[str, ...]:
    """The names of the services that can be started, the bridge last if its libraries are there."""
    with_bridge = all(importlib.util.find_spec(name) is not None for name in (BRIDGE, *BRIDGE_PACKAGES))
    return (*SERVICES, BRIDGE) if with_bridge else SERVICES


def chosen(text: str | None) -> tuple[str, ...]:
    """The services of `--services a,b`; all that are installed without it.

    Raises:
        NotFound: one of them isn't there; names the nearest.
        FailedPrecondition: reason `EXTRA_MISSING`; the bridge is asked for without its libraries.
    """
    known = installed()
    if not text:
        return known
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name == BRIDGE and name not in known:
            raise FailedPrecondition(f"--services: {BRIDGE_MISSING}", reason="EXTRA_MISSING")
        if name not in known:
            raise NotFound(
                f"--services: unknown service {name!r}{nearest(name, known) or '.'} Known: {', '.join(known)}."
            )
    return tuple(name for name in known if name in names)


def configured(config: Config, names: Iterable[str]) -> list[Part]:
    """The services where the configuration puts them; port 0 becomes a free one now, so that the others can be told."""
    parts = []
    for name in names:
        host, port = config.address(name)
        parts.append(Part(name, MODULES.get(name, name), host, port or free_port(host), grpc=name != BRIDGE))
    return parts


def private(names: Iterable[str]) -> list[Part]:
    """The services on loopback and free ports, for one command alone."""
    return [Part(name, MODULES.get(name, name), LOOPBACK, free_port(LOOPBACK), grpc=name != BRIDGE) for name in names]


def check_ports(parts: Iterable[Part]) -> None:
    """Say at once which ports are taken, rather than after the others have started.

    Raises:
        FailedPrecondition: reason `PORT_IN_USE`; names all of them.
    """
    taken: list[str] = []
    options: list[str] = []
    for part in parts:
        with socket.socket(socket.AF_INET6 if ":" in part.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((part.host.strip("[]"), part.port))
                probe.listen(1)
            except OSError as error:
                taken.append(f"{part.name} can't listen on {part.host}:{part.port}: {error.strerror}.")
                options.append(f"--option {part.name}.port=")
    if not taken:
        return
    if len(taken) == 1:
        way = f"Stop what is there, or choose another port with {options[0]}PORT (0 takes any free one)."
    else:
        way = f"Stop what is there (another mesh?), or take free ports: {' '.join(f'{option}0' for option in options)}."
    raise FailedPrecondition(f"{' '.join(taken)} {way}", reason="PORT_IN_USE")


def arguments_of(
    config: Config, arguments: argparse.Namespace, parts: Sequence[Part], roots: Iterable[Path]
) -> dict[str, list[str]]:
    """Service name to what it is told: the same file and options as this command, and where all the others are.

    Args:
        config: the configuration of this command.
        arguments: this command's.
        parts: all services that are started.
        roots: folders that the services may read, besides those of the configuration.
    """
    told = ["--config", str(arguments.config)] if arguments.config else []
    options = dict(option.partition("=")[::2] for option in arguments.option)
    options["mesh.home"] = str(config.home)
    for part in parts:
        options[f"{part.name}.host"] = part.host
        options[f"{part.name}.port"] = str(part.port)
    more = tuple(roots)
    for key, allowed in (
        ("dataset.roots", config.dataset.roots),
        ("factory.roots", config.factory.roots),
        ("inference.roots", config.inference.roots),
        ("eval.suite_roots", config.eval.suite_roots),
    ):
        options[key] = ",".join(dict.fromkeys(str(path) for path in (*allowed, *more)))
    result = {}
    for position, part in enumerate(parts):
        if config.mesh.metrics_port:  # one page for each process, on consecutive ports
            options["mesh.metrics_port"] = str(config.mesh.metrics_port + position)
        result[part.name] = [*told, *(word for key, value in options.items() for word in ("--set", f"{key}={value}"))]
    return result


def samples_folder() -> Path | None:
    """Where the made-up client lies, if it is installed."""
    spec = importlib.util.find_spec("samples")
    return Path(spec.origin).parent if spec is not None and spec.origin else None
