"""Ports for servers that are told their address before they start."""

from __future__ import annotations

import socket


def free_port(host: str) -> int:
    """A port that nothing listens on, and that Linux gives to no one else on this address for a minute.

    A service binds its port seconds after it was chosen, and one that was merely free may be chosen twice until then:
    for two services of one mesh, or by another program. So a connection is made to it and closed from this end: the
    pair of addresses then stays in TIME-WAIT (RFC 9293, section 3.6.1), where the system picks the port for nobody, and
    only a server that names it and sets `SO_REUSEADDR`, as gRPC's, uvicorn and most others do, may bind it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener, socket.socket(family) as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), 0))
        listener.listen()
        address = listener.getsockname()
        client.connect(address)
        caller = None
        while caller != client.getsockname():  # whoever else has just found the port is sent away
            accepted, caller = listener.accept()
            accepted.close()  # whoever closes first is the one that waits
        client.recv(1)
    return int(address[1])
