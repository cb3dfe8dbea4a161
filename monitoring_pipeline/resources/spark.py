"""The engine: a Spark session, embedded (Sail, no JVM) or of a Spark Connect server."""

from __future__ import annotations

import atexit
import functools
import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import dagster as dg
from pydantic import Field

from monitoring_pipeline.errors import EngineError
from monitoring_pipeline.resources.network import why_unreachable

if TYPE_CHECKING:
    from pyspark.sql import SparkSession
    from pyspark.sql.connect.client.retries import RetryPolicy


DEFAULT_PORT = 15002
YEAR_SECONDS = 365 * 24 * 3600
# Larger rows are sent once, and kept by the server until the session ends: its memory fills while much is archived.
SENT_WITH_THE_PLAN_BYTES = 100 * 2**20  # a server takes 128 MiB at once


class SparkResource(dg.ConfigurableResource):
    """A Spark session through Spark Connect, made at first use and shared by the process; its time zone is UTC.

    A process has one session, of the first address that was asked for: pyspark gives that one to whoever asks next.
    """

    remote: str | None = Field(
        default=None, description="sc://host:port of a Spark Connect server; none starts Sail inside the process"
    )

    @property
    def is_embedded(self) -> bool:
        """Whether the engine is inside this process, and so neither writes nor has a catalog."""
        return self.remote is None and not _on_databricks()

    @property
    def is_databricks(self) -> bool:
        """Whether the engine is Databricks', whose SQL has more."""
        host = urlsplit(self.remote).hostname if self.remote else None
        return _on_databricks() or "databricks" in (host or "")

    @property
    def session(self) -> SparkSession:
        """The session; a new one where the server has restarted and forgotten the one before.

        Raises:
            EngineError: the server at `remote` does not answer.
        """
        session = _sessions.get(self.remote)
        if session is None or getattr(session, "is_stopped", False):  # only sessions of Spark Connect have it
            session = _sessions[self.remote] = _new_session(self.remote)
        return session


_sessions: dict[str | None, SparkSession] = {}


def _new_session(remote: str | None) -> SparkSession:
    if remote:
        session = _connected(remote)
        # By default pyspark asks a server that is gone for ten minutes.
        session.client.set_retry_policies([_unavailable()])
        if not SparkResource(remote=remote).is_databricks:  # which may refuse settings
            session.conf.set("spark.sql.session.localRelationCacheThreshold", str(SENT_WITH_THE_PLAN_BYTES))
    elif _on_databricks():
        from pyspark.sql import SparkSession

        session = SparkSession.builder.getOrCreate()
    else:
        session = _connected(_embedded_server())
        session.client.set_retry_policies([*session.client.get_retry_policies(), _garbled_replies()])
        # Else pyspark has the engine clean up as the process ends, and waits ten minutes for one that Ctrl-C has ended.
        atexit.register(session.client.close)
    session.conf.set("spark.sql.session.timeZone", "UTC")
    return session


def _connected(remote: str) -> SparkSession:
    from dagster_pyspark import LazyPySparkResource

    _check_reachable(remote)
    return LazyPySparkResource(spark_config={"spark.remote": remote}).spark_session


def _on_databricks() -> bool:
    return "DATABRICKS_RUNTIME_VERSION" in os.environ


def _unavailable() -> RetryPolicy:
    """Ask again for about a minute."""
    from pyspark.sql.connect.client.retries import DefaultPolicy

    return DefaultPolicy(max_retries=6)


def _garbled_replies() -> RetryPolicy:
    """Ask again where a reply cannot be parsed: seen, though rarely, of Sail's on a busy machine.

    Safe as the embedded engine only ever reads.
    """
    import grpc
    from pyspark.sql.connect.client.retries import RetryPolicy

    class GarbledReplies(RetryPolicy):
        def can_retry(self, exception: BaseException) -> bool:
            return (
                isinstance(exception, grpc.RpcError)
                and exception.code() == grpc.StatusCode.INTERNAL
                and "Exception deserializing response" in str(exception)
            )

    return GarbledReplies(max_retries=3, initial_backoff=50)


def _check_reachable(remote: str) -> None:
    parts = urlsplit(remote)
    address = f"{parts.hostname}:{parts.port or DEFAULT_PORT}"  # a token may follow the host, and is not shown
    reason = why_unreachable(parts.hostname or "", parts.port or DEFAULT_PORT)
    if reason:
        raise EngineError(
            f"no Spark Connect server answers at {address}: {reason}; check SPARK_REMOTE or [spark] remote"
        )


@functools.cache
def _embedded_server() -> str:
    # Read by Sail as it starts. It reports every session on stderr, and ends one that was idle for minutes: a notebook
    # that is left alone, or a run that waits for its judges.
    os.environ.setdefault("RUST_LOG", "error")
    os.environ.setdefault("SAIL_SPARK__SESSION_TIMEOUT_SECS", str(YEAR_SECONDS))
    from pysail.spark import SparkConnectServer

    server = SparkConnectServer()
    server.start()
    _servers.append(server)
    host, port = server.listening_address or ("127.0.0.1", 0)
    return f"sc://{host}:{port}"


_servers: list[object] = []  # a server stops when it is collected
