"""The engine: a Spark session, embedded (Sail, no JVM) or on a Spark Connect server."""

from __future__ import annotations

import atexit
import functools
import logging
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
# Larger data is sent separately and stays on the server until the session ends: archiving would fill its memory.
SENT_WITH_THE_PLAN_BYTES = 100 * 2**20  # a server accepts messages up to 128 MiB


class SparkResource(dg.ConfigurableResource):
    """A Spark Connect session, created at first use and shared by the process; its time zone is UTC.

    A process has one session, for the first address used: pyspark returns it to later callers.
    """

    remote: str | None = Field(
        default=None, description="sc://host:port of a Spark Connect server; if unset, Sail runs inside the process"
    )

    @property
    def is_embedded(self) -> bool:
        """Whether the engine runs inside this process; it then only reads and has no catalog."""
        return self.remote is None and not _on_databricks()

    @property
    def is_databricks(self) -> bool:
        """Whether the engine is Databricks, which extends SQL."""
        host = urlsplit(self.remote).hostname if self.remote else None
        return _on_databricks() or "databricks" in (host or "")

    @property
    def session(self) -> SparkSession:
        """The session; a new one if the server lost the previous one in a restart.

        Raises:
            EngineError: the server at `remote` does not answer.
        """
        session = _sessions.get(self.remote)
        if session is None or getattr(session, "is_stopped", False):  # an attribute of Spark Connect sessions
            session = _sessions[self.remote] = _new_session(self.remote)
        return session


_sessions: dict[str | None, SparkSession] = {}


def _new_session(remote: str | None) -> SparkSession:
    if remote:
        session = _connected(remote)
        # By default pyspark retries for ten minutes when a server is gone.
        session.client.set_retry_policies([_unavailable()])
        if not SparkResource(remote=remote).is_databricks:  # Databricks may reject settings
            session.conf.set("spark.sql.session.localRelationCacheThreshold", str(SENT_WITH_THE_PLAN_BYTES))
    elif _on_databricks():
        from pyspark.sql import SparkSession

        session = SparkSession.builder.getOrCreate()
    else:
        session = _connected(_embedded_server())
        # Otherwise pyspark looks for IPython in all of sys.path at each column expression, to say where an error arose.
        session.conf.set("spark.python.sql.dataFrameDebugging.enabled", "false")
        session.client.set_retry_policies([*session.client.get_retry_policies(), _garbled_replies()])
        # Otherwise pyspark cleans up the engine at exit, and waits ten minutes for it if Ctrl-C has ended it.
        atexit.register(session.client.close)
    session.conf.set("spark.sql.session.timeZone", "UTC")
    if "SPARK_CONNECT_LOG_LEVEL" not in os.environ:
        # pyspark then disables its log, and whatever configures Python's logging, such as MLflow, enables it again: it
        # would print a stack trace of each error, also of those that we expect.
        logging.getLogger("pyspark.sql.connect.logging").setLevel(logging.CRITICAL)
    return session


def _connected(remote: str) -> SparkSession:
    from dagster_pyspark import LazyPySparkResource

    _check_reachable(remote)
    return LazyPySparkResource(spark_config={"spark.remote": remote}).spark_session


def _on_databricks() -> bool:
    return "DATABRICKS_RUNTIME_VERSION" in os.environ


def _unavailable() -> RetryPolicy:
    """Retry for about a minute."""
    from pyspark.sql.connect.client.retries import DefaultPolicy

    return DefaultPolicy(max_retries=6)


def _garbled_replies() -> RetryPolicy:
    """Retry when a reply cannot be parsed, which rarely happens with Sail on a busy machine.

    This is safe because the embedded engine only reads.
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
    address = f"{parts.hostname}:{parts.port or DEFAULT_PORT}"  # without the token that may follow
    reason = why_unreachable(parts.hostname or "", parts.port or DEFAULT_PORT)
    if reason:
        raise EngineError(
            f"no Spark Connect server answers at {address}: {reason}; check SPARK_REMOTE or [spark] remote"
        )


@functools.cache
def _embedded_server() -> str:
    # Sail reads these when it starts. By default it logs every session to stderr and ends sessions that are idle for
    # minutes, such as in an idle notebook or a run that waits for judges.
    os.environ.setdefault("RUST_LOG", "error")
    os.environ.setdefault("SAIL_SPARK__SESSION_TIMEOUT_SECS", str(YEAR_SECONDS))
    from pysail.spark import SparkConnectServer

    server = SparkConnectServer()
    server.start()
    _servers.append(server)
    host, port = server.listening_address or ("127.0.0.1", 0)
    return f"sc://{host}:{port}"


_servers: list[object] = []  # a server stops when it is garbage-collected
