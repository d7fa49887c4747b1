"""From servicers to a running process: bind, health, readiness, signals, and a stop that loses nothing.

A service's `__main__` is `sys.exit(main("factory", build))`, where `build` makes a `Service` from the configuration.
The process exits 0 after a stop by signal, and 2 after one clear line if it can't start.

Stopping (SIGTERM or SIGINT): health goes off; for `mesh.drain_seconds` calls are still taken, so that balancers notice;
then new calls get UNAVAILABLE and the service's `drain` tells endless streams to end; running calls get
`mesh.grace_seconds`; what is left is cancelled; last comes the service's `close`, which writes checkpoints. A second
signal ends the process at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import grpc.aio
import prometheus_client
from grpc_reflection.v1alpha import reflection

from chatmill import config as configuration
from chatmill import disk
from chatmill.config import Config, Mesh
from chatmill.errors import ChatmillError, FailedPrecondition, InvalidArgument
from chatmill.runtime import authentication, endpoint, identity, inner, middleware, security, telemetry, validation
from chatmill.runtime.direct_server import DirectServer
from chatmill.runtime.health import Health
from chatmill.runtime.interceptor import MeshInterceptor

log = logging.getLogger(__name__)

FAREWELL_SECONDS = 0.1
"""Time for connections to be told to go (GOAWAY) before they are cut."""

YOUNG_OBJECTS = 20_000
"""New objects after which the garbage collector looks at them. What a call makes is mostly gone when the call is; with
Python's own number, of hundreds or some thousands, much of it is looked at before, and again with each further call."""
OLDER = (2, 2)
"""Looks at the young after which those are looked at that outlived one, and looks at those after which all are. With
Python's tens what refused calls leave behind would pile up for a minute."""

UNWIND_SECONDS = 5.0
"""How long cancelled handlers may take for their `finally` before the service is closed all the same."""

Add: TypeAlias = Callable[[Any, Any], None]
Step: TypeAlias = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Service:
    """What one process serves.

    Attributes:
        name: its section in the configuration, for example `factory`.
        servicers: pairs of the generated `add_XServicer_to_server` and the servicer.
        ready: heavy start-up work, such as loading a model; health is off until it returns.
        drain: called when the service stops taking calls: refuse queued work, end endless streams such as watches.
        close: called when no call is under way any more: write checkpoints, end workers, close stores.
    """

    name: str
    servicers: Sequence[tuple[Add, Any]]
    ready: Step | None = None
    drain: Step | None = None
    close: Step | None = None


Build: TypeAlias = Callable[[Config], Awaitable[Service]]


@dataclass(slots=True)
class Running:
    """A started server.

    Attributes:
        service: what it serves.
        host: address it listens on.
        port: port it listens on, never 0.
        services: full names of its gRPC services.
        server: gRPC's own.
        health: its health; off until `become_ready`.
        gate: counts and, when closed, refuses calls.
        mesh: the settings it was started with.
    """

    service: Service
    host: str
    port: int
    services: tuple[str, ...]
    server: grpc.aio.Server
    health: Health
    gate: middleware.Gate
    mesh: Mesh
    _stopped: bool = field(default=False, init=False)

    @property
    def target(self) -> str:
        """What a client on this machine dials."""
        return endpoint.target_of(self.host, self.port)

    async def become_ready(self) -> None:
        """Do the service's start-up work, then say SERVING."""
        if self.service.ready is not None:
            await self.service.ready()
        await self.health.ready()

    async def stop(self, *, drain: float | None = None, grace: float | None = None) -> None:
        """Stop as described in the module's docstring; a second call does nothing."""
        if self._stopped:
            return
        self._stopped = True
        await self.health.stopping()
        await asyncio.sleep(self.mesh.drain_seconds if drain is None else drain)
        self.gate.close()
        if self.service.drain is not None:
            try:
                await self.service.drain()
            except Exception:
                log.exception("the service's drain failed; it is stopped and closed all the same")
        if not await self._idle_within(self.mesh.grace_seconds if grace is None else grace):
            log.warning("calls did not end in time and are cancelled", extra={"fields": {"calls": self.gate.active}})
        # health watches and reflection are all that may be left after the grace, and they have no end of their own
        await self.server.stop(FAREWELL_SECONDS)
        # gRPC returns before the handlers that it cancelled have unwound, and `close` must find nothing under way
        if not await self._idle_within(UNWIND_SECONDS):
            log.error("calls ignore that they were cancelled", extra={"fields": {"calls": self.gate.active}})
        if self.service.close is not None:
            await self.service.close()

    async def _idle_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self.gate.idle(), seconds)
        except TimeoutError:
            return False
        return True


class _Recorder:
    """Stands in for the server while servicers are added, and notes the names of their services."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server
        self.names: list[str] = []

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        self.names.extend(handler.service_name() for handler in handlers)
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self._server.add_registered_method_handlers(service, handlers)


async def start(service: Service, config: Config) -> Running:
    """Start the server of `service`; its health is off until `become_ready`.

    Raises:
        FailedPrecondition: reason `PORT_IN_USE`, `CANNOT_BIND` or `INSECURE_BIND`.
        InvalidArgument: reason `INVALID_CONFIG`, for certificate or token files that can't be used.
    """
    mesh = config.mesh
    host, port = config.address(service.name)
    security.check_bind(service.name, host, mesh.security)
    check_free(service.name, host, port)
    gate = middleware.Gate(service.name)
    interceptor = MeshInterceptor(
        [
            middleware.request_id,
            telemetry.observe,
            middleware.errors,
            gate,
            authentication.authenticate(mesh.security),
            validation.required_fields,
        ],
        mesh.max_message_bytes,
    )
    server = _bare(interceptor, mesh)
    recorder = _Recorder(server)
    for add, servicer in service.servicers:
        add(servicer, recorder)
    health = Health(server, recorder.names)
    await health.starting()
    if mesh.reflection == "on" or (mesh.reflection == "auto" and security.is_loopback(host)):
        reflection.enable_server_reflection([*recorder.names, identity.HEALTH, reflection.SERVICE_NAME], server)
    address = f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
    credentials = security.server_credentials(mesh.security)
    try:
        bound = (
            server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
        )
    except RuntimeError as error:
        raise FailedPrecondition(f"{service.name} can't listen on {address}: {error}", reason="CANNOT_BIND") from error
    await server.start()
    return Running(service, host, bound, tuple(recorder.names), server, health, gate, mesh)


def _bare(interceptor: MeshInterceptor, mesh: Mesh) -> grpc.aio.Server:
    """The server that `mesh.grpc_server` asks for, without servicers."""
    options = server_options(mesh)
    missing = inner.missing()
    if mesh.grpc_server == "direct" and not missing:
        return DirectServer(interceptor.wrapped, options)
    if mesh.grpc_server == "direct":
        log.warning("this gRPC does not fit; calls are answered by grpc.aio", extra={"fields": {"missing": missing}})
    return grpc.aio.server(interceptors=[interceptor], options=options)


def server_options(mesh: Mesh) -> list[tuple[str, Any]]:
    """gRPC's arguments for limits, keepalive and the port."""
    return [
        # with port sharing a second process on the same port starts without a word and takes half of the calls
        ("grpc.so_reuseport", 0),
        ("grpc.max_send_message_length", mesh.max_message_bytes),
        ("grpc.max_receive_message_length", mesh.max_message_bytes),
        ("grpc.keepalive_time_ms", int(mesh.keepalive.ping_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", int(mesh.keepalive.timeout_seconds * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", int(mesh.keepalive.min_ping_seconds * 1000)),
    ]


def check_free(section: str, host: str, port: int, *, option: str = "") -> None:
    """Try the address with a plain socket first, since gRPC's own refusal is several lines that name no way out.

    Args:
        section: who wants it, for the message.
        host: address.
        port: port; 0 is always free.
        option: key of the port's option; that of the section without it.

    Raises:
        FailedPrecondition: reason `PORT_IN_USE` or `CANNOT_BIND`.
    """
    option = option or f"{section}.port"
    bare = host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            bare, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise FailedPrecondition(
                f"{section} can't start: {host}:{port} is in use by another process. Stop that one, or choose another "
                f"port with {option} or {configuration.env_name(option)} (0 takes any free one).",
                reason="PORT_IN_USE",
                metadata={"address": f"{host}:{port}"},
            ) from error
        raise FailedPrecondition(
            f"{section} can't listen on {host}:{port}: {error.strerror or error}. Check {section}.host and {option}.",
            reason="CANNOT_BIND",
            metadata={"address": f"{host}:{port}"},
        ) from error


async def serve(service: Service, config: Config) -> None:
    """Serve until a signal comes, then stop gracefully.

    Raises:
        ChatmillError: if it can't start, or if its start-up work fails; everything begun has been closed then.
    """
    gc.set_threshold(YOUNG_OBJECTS, *OLDER)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, number, stop, config, service.name)
    try:
        running = await start(service, config)
    except BaseException:
        if service.close is not None:
            await service.close()
        raise
    try:
        page = _metrics_page(running)
        await _until_ready_or(stop, running)
        if not stop.is_set():
            endpoint.announce(config.home, endpoint.Endpoint(service.name, os.getpid(), running.host, running.port))
            log.info(
                "ready",
                extra={"fields": {"host": running.host, "port": running.port, "pid": os.getpid(), "metrics": page}},
            )
            await stop.wait()
            log.info("stopping")
    finally:
        endpoint.withdraw(config.home, service.name)
        await running.stop()
    log.info("stopped")


async def _until_ready_or(stop: asyncio.Event, running: Running) -> None:
    """Do the start-up work, but give it up when a signal comes."""
    ready = asyncio.create_task(running.become_ready())
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((ready, stopped), return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            await ready
    finally:
        for task in (ready, stopped):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


def _on_signal(number: int, stop: asyncio.Event, config: Config, name: str) -> None:
    if not stop.is_set():
        stop.set()
        return
    endpoint.withdraw(config.home, name)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _metrics_page(running: Running) -> str | None:
    """Start the Prometheus page if it is configured; its address."""
    mesh, files = running.mesh, running.mesh.security
    if mesh.metrics_port is None:
        return None
    check_free(running.service.name, running.host, mesh.metrics_port, option="mesh.metrics_port")
    tls = {"certfile": str(files.cert_file), "keyfile": str(files.key_file)} if files.cert_file else {}
    if files.mtls:
        tls |= {"client_cafile": str(files.ca_file), "client_auth_required": True}  # type: ignore[dict-item]
    page, _ = prometheus_client.start_http_server(mesh.metrics_port, addr=running.host, **tls)  # type: ignore[arg-type]
    return f"{'https' if tls else 'http'}://{endpoint.target_of(running.host, page.server_port)}/metrics"


def parse(name: str, argv: Sequence[str] | None = None) -> Config:
    """The configuration from a service's command line: `--config FILE` and `--set KEY=VALUE`, any number of times.

    Raises:
        InvalidArgument: reason `INVALID_CONFIG`.
    """
    parser = argparse.ArgumentParser(prog=name, description=f"Serve {name}; options are those of chatmill.yaml.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the configuration file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one option")
    arguments = parser.parse_args(argv)
    overrides = {}
    for text in arguments.set:
        key, separator, value = text.partition("=")
        if not separator:
            raise InvalidArgument(f"--set {text}: expected KEY=VALUE", reason="INVALID_CONFIG")
        overrides[key.strip()] = value
    return configuration.load(arguments.config, overrides=overrides)


def main(name: str, build: Build, argv: Sequence[str] | None = None) -> int:
    """The whole of a service's `__main__`; returns the exit code."""

    async def run(config: Config) -> None:
        host, port = config.address(name)
        security.check_bind(name, host, config.mesh.security)
        check_free(name, host, port)  # before `build`, which may open stores that the other process holds
        disk.check_writable(config.home)
        await serve(await build(config), config)

    try:
        config = parse(name, argv)
        telemetry.setup_logging(config.mesh, name)
        with disk.clear_errors(str(config.home), config.home):
            asyncio.run(run(config))
    except ChatmillError as error:
        with contextlib.suppress(OSError):  # our output may be a file on the very disk that is full
            print(f"{name}: {error.message}", file=sys.stderr)  # noqa: T201 - the one line that says why it ended
        return 2
    finally:
        gc.freeze()  # else the interpreter's end looks through all that torch and transformers loaded, for seconds
    return 0
