"""Free ports stay free for who asked: a mesh tells its services their ports seconds before they bind them."""

from __future__ import annotations

import socket

import pytest

from chatmill.cli.supervision import parts
from chatmill.ports import free_port


def test_a_port_is_given_once() -> None:
    chosen = [free_port("127.0.0.1") for _ in range(1500)]
    assert len(set(chosen)) == len(chosen)  # by chance alone some eighty would be double


def test_no_other_program_is_given_it_meanwhile() -> None:
    chosen = {free_port("127.0.0.1") for _ in range(100)}
    for _ in range(5000):  # by chance alone some thirty-five would hit
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            assert other.getsockname()[1] not in chosen


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost", "[::1]"])
def test_a_server_takes_it_at_once(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        port = free_port(host)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    with socket.create_server((host.strip("[]"), port), family=family) as server:
        socket.create_connection(server.getsockname()[:2], 5).close()


def test_the_services_of_a_mesh_have_ports_of_their_own() -> None:
    names = ("dataset", "factory", "inference", "eval")
    for _ in range(500):
        assert len({part.port for part in parts.private(names)}) == len(names)
