"""A quick check that a server is reachable: the clients of MLflow and Spark retry a dead server for minutes."""

from __future__ import annotations

import socket

CONNECT_TIMEOUT_S = 5


def why_unreachable(host: str, port: int) -> str | None:
    """Return why no connection to `host`:`port` is possible, or None if a server listens there."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return None
