"""Searches of the archive against MLflow's: the same traces in the same order, or refused by both."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.tracing.client import TracingClient
from pyspark.sql import functions as F

from monitoring_pipeline.api import search
from monitoring_pipeline.archive.merging import archive
from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.settings import LakeSettings, Settings
from monitoring_pipeline.tables import AGENT_TRACES
from monitoring_pipeline.traces.searching import find_trace, find_traces
from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests.conftest import RECORDED_WINDOW
from monitoring_pipeline_tests.traces.test_filters import INVALID, TRACES, VALID, log_traces

NOON_MS = 1_767_268_800_000  # 2026-01-01T12:00Z
RECORDED_FILTERS = [
    None,
    "attributes.status = 'ERROR'",
    "status != 'ERROR' AND execution_time_ms > 5000",
    f"timestamp_ms >= {NOON_MS} AND timestamp_ms < {NOON_MS + 3_600_000}",
    f"attributes.timestamp_ms > {NOON_MS + 24 * 3_600_000}",
    f"timestamp_ms <= {NOON_MS}.5 AND tags.task_id = '9'",
    "timestamp_ms > 1e300",
    "timestamp_ms < -62135596800001",
    "timestamp_ms < 'noon' AND status = 'ERROR'",
    "tags.environment = 'production' AND tags.task_id LIKE '1%'",
    "metadata.`mlflow.trace.session` = 'airline-3-0'",
    "span.name = 'book_reservation' AND span.status = 'ERROR'",
    "feedback.task_success = 'true'",
    "expectation.expected_tools LIKE '%cancel_reservation%'",
    "name = 'airline_agent' AND tags.missing IS NULL",
]
ORDERS = [
    None,
    ["timestamp_ms ASC"],
    ["attributes.execution_time DESC"],
    ["execution_time_ms"],
    ["status DESC", "tags.task_id"],
    ["metadata.`mlflow.trace.session` DESC", "request_id DESC"],
    ["name", "trace.timestamp"],
    ["run_id DESC"],
    ["experiment_id", "tag.environment desc"],
    ["tags.`a.b c`", "tags.underscore DESC"],
]
REFUSED_ORDERS = [
    ["trace_id"],
    ["end_time_ms"],
    ["client_request_id"],
    ["metadata.`mlflow.trace.cost`"],
    ["span.name"],
    ["feedback.good"],
    ["status sideways"],
    ["timestamp_ms, status"],
    [""],
    ["status", "attributes.status DESC"],
    ["tags.'x"],
    ["request_id; DROP TABLE trace_info"],
]


@dataclass(frozen=True)
class Searches:
    client: MlflowClient
    experiment_id: str
    settings: Settings

    def of_mlflow(self, filter_string: str | None, **options: Any) -> list[str]:
        # with spans, MLflow leaves out a trace without any
        options = {"max_results": 1000, "include_spans": False, **options}
        found = self.client.search_traces(locations=[self.experiment_id], filter_string=filter_string, **options)
        return [trace.info.trace_id for trace in found]

    def of_archive(self, filter_string: str | None, **options: Any) -> list[str]:
        return list(search(filter_string, **options, settings=self.settings)["trace_id"])


def searches(uri: str, experiment: str, lake: str) -> Searches:
    found = MlflowClient(uri).get_experiment_by_name(experiment)
    assert found is not None
    return Searches(MlflowClient(uri), found.experiment_id, Settings(lake=LakeSettings(location=lake)))


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory, spark: SparkResource) -> Searches:
    """The odd traces of the tests of filters."""
    folder = tmp_path_factory.mktemp("searching")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(uri)
    experiment_id = client.create_experiment("odd", artifact_location=(folder / "artifacts").as_uri())
    log_traces(TracingClient(uri), experiment_id)
    traces = {
        trace.info.trace_id: trace
        for include_spans in (False, True)
        for trace in client.search_traces(locations=[experiment_id], max_results=500, include_spans=include_spans)
    }
    lake = LakeResource(location=str(folder / "lake"), spark=spark)
    archive(lake, RECORDED_WINDOW, [[*traces.values()]], {})
    assert lake.read(AGENT_TRACES).count() == len(TRACES)
    return searches(uri, "odd", lake.location)


@pytest.fixture(scope="module")
def recorded(recorded_store: str, archived: Any) -> Searches:
    return searches(recorded_store, "airline", str(archived))


@pytest.mark.parametrize(("filter_string", "order_by"), zip(VALID[::3], itertools.cycle(ORDERS)))
def test_odd_traces_are_found_in_the_order_of_mlflow(
    odd: Searches, filter_string: str, order_by: list[str] | None
) -> None:
    assert odd.of_archive(filter_string, order_by=order_by) == odd.of_mlflow(filter_string, order_by=order_by)


@pytest.mark.parametrize("filter_string", INVALID)
def test_a_filter_that_mlflow_refuses_is_refused_in_one_line(odd: Searches, filter_string: str) -> None:
    with pytest.raises(Exception):  # noqa: B017 - MLflow refuses some filters by crashing
        odd.of_mlflow(filter_string)
    with pytest.raises(MonitoringError, match=r"^trace filter .*$"):
        odd.of_archive(filter_string)


@pytest.mark.parametrize("filter_string", RECORDED_FILTERS)
def test_recorded_traces_are_found_in_the_order_of_mlflow(recorded: Searches, filter_string: str | None) -> None:
    for order_by, max_results in [(None, 1000), (["execution_time_ms DESC"], 7)]:
        expected = recorded.of_mlflow(filter_string, order_by=order_by, max_results=max_results)
        assert recorded.of_archive(filter_string, order_by=order_by, max_results=max_results) == expected


@pytest.mark.parametrize("order_by", ORDERS)
def test_every_order_equals_mlflows(odd: Searches, recorded: Searches, order_by: list[str] | None) -> None:
    for store in (odd, recorded):
        for max_results in (0, 5, 1000):
            options = {"order_by": order_by, "max_results": max_results}
            assert store.of_archive(None, **options) == store.of_mlflow(None, **options)


@pytest.mark.parametrize("order_by", REFUSED_ORDERS)
def test_an_order_that_mlflow_refuses_is_refused_in_one_line(odd: Searches, order_by: list[str]) -> None:
    with pytest.raises(Exception):  # noqa: B017 - MLflow refuses some orders by crashing
        odd.of_mlflow(None, order_by=order_by)
    with pytest.raises(MonitoringError, match=r"^order_by .*: .*$"):
        odd.of_archive(None, order_by=order_by)


def test_a_negative_number_of_results_is_refused_in_one_line(odd: Searches) -> None:
    with pytest.raises(MonitoringError, match=r"^max_results = -1: must be at least 0$"):
        odd.of_archive(None, max_results=-1)


def test_times_limit_the_search_to_their_hours(recorded: Searches) -> None:
    noon = datetime.fromtimestamp(NOON_MS / 1000, UTC)
    of_the_hour = recorded.of_mlflow(f"timestamp_ms >= {NOON_MS} AND timestamp_ms < {NOON_MS + 3_600_000}")
    assert len(of_the_hour) > 0
    end = noon.replace(minute=1)
    assert recorded.of_archive(None, start_time=noon, end_time=end) == of_the_hour
    assert recorded.of_archive("status = 'OK'", start_time=noon, end_time=end) == [
        trace_id for trace_id in of_the_hour if trace_id in recorded.of_mlflow("status = 'OK'")
    ]


def test_only_the_days_of_the_search_are_read(archived_lake: LakeResource) -> None:
    def found(window: Window | None = None, filter_string: str | None = None) -> list[str]:
        rows = find_traces(archived_lake, window, filter_string).select("trace_id")
        return [row["trace_id"] for row in rows.collect()]

    every = found()
    midnight_ms = NOON_MS + 12 * 3_600_000
    second_day = Window(RECORDED_WINDOW.start.replace(day=2), RECORDED_WINDOW.end)
    shutil.rmtree(f"{archived_lake.path(AGENT_TRACES)}/date=2026-01-01")
    with pytest.raises(Exception, match=r"date=2026-01-01"):  # reading these files would fail
        found()
    latest = found(second_day)
    assert latest == every[: len(latest)]
    assert 100 < len(latest) < len(every)
    assert found(None, f"timestamp_ms >= {midnight_ms}") == latest
    assert found(None, f"timestamp_ms > {midnight_ms}.5 AND status != 'x'") == latest[:-1]
    assert found(None, f"timestamp_ms = {midnight_ms}") == latest[-1:]
    assert found(second_day, "status = 'OK'") == found(None, f"status = 'OK' AND timestamp_ms >= {midnight_ms}")


def test_a_trace_is_found_by_its_id(archived_lake: LakeResource) -> None:
    [row] = archived_lake.read(AGENT_TRACES).orderBy(F.rand(7)).limit(1).drop("date").toArrow().to_pylist()
    assert find_trace(archived_lake, row["trace_id"]).drop("date").toArrow().to_pylist() == [row]
    with pytest.raises(MonitoringError, match=r"^no trace tr-none in the archive; archive its hour first, or pass"):
        find_trace(archived_lake, "tr-none")
