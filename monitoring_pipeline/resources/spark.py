"""The engine: a Spark session, embedded (Sail, no JVM) or of a Spark Connect server."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from monitoring_pipeline.errors import EngineError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


class SparkResource(dg.ConfigurableResource):
    """A Spark session through Spark Connect, made at first use and shared by the process; its time zone is UTC."""

    remote: str | None = Field(
        default=None, description="sc://host:port of a Spark Connect server; none starts Sail inside the process"
    )

    @property
    def session(self) -> SparkSession:
        """The session.

        Raises:
            EngineError: the server at `remote` does not answer.
        """
        return _session(self.remote)


@functools.cache
def _session(remote: str | None) -> SparkSession:
    from dagster_pyspark import LazyPySparkResource
    from pyspark.errors import PySparkException

    address = remote or _embedded_server()
    try:
        session = LazyPySparkResource(spark_config={"spark.remote": address}).spark_session
        session.conf.set("spark.sql.session.timeZone", "UTC")
    except PySparkException as error:
        raise EngineError(
            f"no Spark engine at {address}: {str(error).splitlines()[0]}; check SPARK_REMOTE or [spark] remote"
        ) from error
    return session


@functools.cache
def _embedded_server() -> str:
    os.environ.setdefault("RUST_LOG", "error")  # read by Sail as it starts; it reports every session on stderr
    from pysail.spark import SparkConnectServer

    server = SparkConnectServer()
    server.start()
    _servers.append(server)
    host, port = server.listening_address or ("127.0.0.1", 0)
    return f"sc://{host}:{port}"


_servers: list[object] = []  # a server stops when it is collected
