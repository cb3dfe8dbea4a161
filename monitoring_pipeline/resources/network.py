"""Whether a server is there, told at once: the clients of MLflow and Spark retry a dead one for minutes."""

from __future__ import annotations

import socket

CONNECT_TIMEOUT_S = 5


def why_unreachable(host: str, port: int) -> str | None:
    """Why nothing can be said to `host` at `port`; None when something listens there."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return None
