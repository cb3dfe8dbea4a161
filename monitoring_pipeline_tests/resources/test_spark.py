"""The engine: embedded or remote, in UTC, and a clear error if nothing answers."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import grpc
import pytest
from pysail.spark import SparkConnectServer
from pyspark.errors import PySparkException

from monitoring_pipeline.errors import EngineError
from monitoring_pipeline.resources.spark import SparkResource


def test_the_embedded_session_is_shared_and_in_utc(spark: SparkResource) -> None:
    assert SparkResource().session is spark.session
    assert spark.session.sql("SELECT CAST(TIMESTAMP '1970-01-01 00:00:01' AS LONG) AS s").first()["s"] == 1  # type: ignore[index]


def test_a_remote_address_is_used() -> None:
    server = SparkConnectServer()
    server.start()
    assert server.listening_address
    host, port = server.listening_address
    # In a separate process: a process has one session.
    code = (
        "from monitoring_pipeline.resources.spark import SparkResource; "
        f"s = SparkResource(remote='sc://{host}:{port}').session; "
        "print(s.range(3).count(), s.client._builder.endpoint)"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], text=True)
    server.stop()
    assert printed.split() == ["3", f"{host}:{port}"]


class Garbled(grpc.RpcError):
    """The error that grpc raises when it cannot parse a reply."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.INTERNAL

    def trailing_metadata(self) -> tuple[Any, ...]:
        return ()

    def __str__(self) -> str:
        return 'status = StatusCode.INTERNAL, details = "Exception deserializing response!"'


@pytest.mark.parametrize(("garbled", "answered"), [(3, True), (4, False)])
def test_an_unparsable_reply_is_requested_again(
    spark: SparkResource, monkeypatch: pytest.MonkeyPatch, garbled: int, answered: bool
) -> None:
    stub = spark.session.client._stub
    replies = [Garbled()] * garbled
    ask = stub.Config

    def config(*arguments: Any, **named: Any) -> Any:
        if replies:
            raise replies.pop()
        return ask(*arguments, **named)

    monkeypatch.setattr(stub, "Config", config)

    if answered:
        assert spark.session.conf.get("spark.sql.session.timeZone") == "UTC"
    else:
        with pytest.raises(PySparkException), pytest.warns(UserWarning, match="RETRIES_EXCEEDED"):
            spark.session.conf.get("spark.sql.session.timeZone")


def test_an_address_where_nothing_answers_is_named_without_its_token() -> None:
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:9: Connection refused") as error:
        _ = SparkResource(remote="sc://127.0.0.1:9/;token=secret").session
    assert "secret" not in str(error.value)
