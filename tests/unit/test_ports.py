"""Free ports stay free for who asked: a mesh tells its services their ports seconds before they bind them."""

from __future__ import annotations

import socket

import pytest

from chatmill.cli.supervision import parts
from chatmill.ports import free_port


def test_a_port_is_given_once() -> None:
    chosen = [free_port("127.0.0.1") for _ in range(600)]
    assert len(set(chosen)) == len(chosen)  # by chance alone a dozen would be double


@pytest.mark.parametrize("reuse", [0, 1])
def test_no_other_program_is_given_it_meanwhile(reuse: int) -> None:
    chosen = {free_port("127.0.0.1") for _ in range(100)}
    for _ in range(5000):  # by chance alone some thirty-five would hit
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
            other.bind(("127.0.0.1", 0))
            assert other.getsockname()[1] not in chosen


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost", "[::1]"])
def test_a_server_takes_it_at_once(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if family == socket.AF_INET6:
        with socket.socket(family) as probe:
            try:
                probe.bind(("::1", 0))
            except OSError:
                pytest.skip("this machine has no IPv6")
    with socket.create_server((host.strip("[]"), free_port(host)), family=family) as server:
        socket.create_connection(server.getsockname()[:2], 5).close()


def test_the_services_of_a_mesh_have_ports_of_their_own() -> None:
    names = ("dataset", "factory", "inference", "eval")
    for _ in range(150):
        assert len({part.port for part in parts.private(names)}) == len(names)
