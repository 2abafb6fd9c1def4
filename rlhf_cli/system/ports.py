"""Free TCP ports; apart from distributed.py, so that the supervisor needs no torch."""

import socket


def free_port() -> int:
    """Return a TCP port that is free on this machine now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
