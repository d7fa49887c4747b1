"""From the configuration to a running HTTP server: the same options, refusals, run file and stop as the services."""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import ssl
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatmill import config as configuration
from chatmill.config import Config
from chatmill.errors import ChatmillError, FailedPrecondition, InvalidArgument
from chatmill.plugins import install_command
from chatmill.runtime import endpoint, security, telemetry
from chatmill.runtime.authentication import Tokens

if TYPE_CHECKING:
    import uvicorn

NAME = "bridge"
PACKAGES = ("gradio", "fastapi", "uvicorn")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal comes; returns the exit code, 2 after one clear line if it can't start."""
    try:
        config = _parse(argv)
        check_installed()
        security.check_bind(NAME, config.bridge.host, config.mesh.security)
        telemetry.setup_logging(config.mesh, NAME)
        asyncio.run(serve(config))
    except ChatmillError as error:
        print(f"{NAME}: {error.message}", file=sys.stderr)  # noqa: T201 - the one line that says why it did not start
        return 2
    return 0


def _parse(argv: Sequence[str] | None) -> Config:
    parser = argparse.ArgumentParser(prog=NAME, description="Serve the web door; options are those of chatmill.yaml.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the configuration file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one option")
    arguments = parser.parse_args(argv)
    wrong = [text for text in arguments.set if "=" not in text]
    if wrong:
        raise InvalidArgument(f"--set {wrong[0]}: expected KEY=VALUE", reason="INVALID_CONFIG")
    return configuration.load(arguments.config, overrides=dict(text.split("=", 1) for text in arguments.set))


def check_installed() -> None:
    """Raises FailedPrecondition that says what to install, if the web libraries are missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise FailedPrecondition(
            f"the testers' page needs {', '.join(missing)}. Install it with: {install_command('ui')}",
            reason="EXTRA_MISSING",
        )


async def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT. Raises FailedPrecondition if the address can't be had."""
    import uvicorn

    from bridge.access import TokenWall
    from bridge.app import build

    files, host = config.mesh.security, config.bridge.host
    taken = _bind(host, config.bridge.port)
    port = taken.getsockname()[1]
    app: Any = build(config)
    if files.token_file is not None:
        app = TokenWall(app, Tokens(files.token_file))
    tls: dict[str, Any] = {}
    if files.cert_file is not None:
        tls = {"ssl_certfile": str(files.cert_file), "ssl_keyfile": str(files.key_file)}
    if files.mtls:
        tls |= {"ssl_ca_certs": str(files.ca_file), "ssl_cert_reqs": ssl.CERT_REQUIRED}
    settings = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(config.mesh.grace_seconds) or 1,
        **tls,
    )
    server = _announcing(settings, config, port)
    try:
        await server.serve(sockets=[taken])
    finally:
        endpoint.withdraw(config.home, NAME)


def _bind(host: str, port: int) -> socket.socket:
    """The socket that will listen; bound at once, so that a port that is taken is said in one line."""
    bare = host.strip("[]")
    found = socket.socket(socket.AF_INET6 if ":" in bare else socket.AF_INET)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((bare, port))
    except OSError as error:
        found.close()
        raise FailedPrecondition(
            f"{NAME} can't listen on {host}:{port}: {error.strerror or error}. Stop what is there, or choose another "
            f"port with {NAME}.port or {configuration.env_name(f'{NAME}.port')} (0 takes any free one).",
            reason="PORT_IN_USE",
        ) from error
    return found


def _announcing(settings: uvicorn.Config, config: Config, port: int) -> uvicorn.Server:
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                endpoint.announce(config.home, endpoint.Endpoint(NAME, os.getpid(), config.bridge.host, port))

    return Server(settings)
