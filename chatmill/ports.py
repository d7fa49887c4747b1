"""Ports for servers that are told their address before they start."""

from __future__ import annotations

import socket


def free_port(host: str) -> int:
    """A port that nothing listens on, and that the system gives to no one else for about a minute.

    A service binds its port seconds after it was chosen, and one that was merely free may be chosen twice until then:
    for two services of one mesh, or by another program. So a connection is made to it and closed from this end: the
    pair of addresses then stays in TIME-WAIT (RFC 9293, section 3.6.1), where the system picks the port for nobody, and
    a server that names it may bind it, as servers do with `SO_REUSEADDR`.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener, socket.socket(family) as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), 0))
        listener.listen(1)
        port = int(listener.getsockname()[1])
        client.connect(listener.getsockname())
        listener.accept()[0].close()  # whoever closes first is the one that waits
        client.recv(1)
    return port
