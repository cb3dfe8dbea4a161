"""Find and analyse traces.

Each function reads the archive for the whole hours from `start_time` to `end_time` (default: the last 24), or takes
`traces` instead: a list, or what mlflow.search_traces or `query_archived_traces` returns. All of them raise
MonitoringError if the settings, the times or the traces are wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from monitoring_pipeline.api.common import renamed, window_of
from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.settings import Settings, load_settings

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Trace
    from pyspark.sql import DataFrame

    from monitoring_pipeline.analysis.releases import ReleaseComparison
    from monitoring_pipeline.archive.given import GivenTraces


@renamed(filter="filter_string")
def query_archived_traces(
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    filter_string: str | None = None,
    settings: Settings | None = None,
) -> DataFrame:
    """The archived traces that pass the MLflow filter, as rows of `agent_traces`, newest first.

    Raises:
        MonitoringError: MLflow refuses the filter.
    """
    from monitoring_pipeline.resources.build import build_resources
    from monitoring_pipeline.traces.searching import find_traces

    settings = settings or load_settings()
    return find_traces(build_resources(settings)["lake"], window_of(settings, start_time, end_time), filter_string)


def search(
    filter_string: str | None = None,
    order_by: Sequence[str] | None = None,
    max_results: int | None = None,
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    settings: Settings | None = None,
) -> pd.DataFrame:
    """Search the archive as mlflow.search_traces does: the same traces in the same order, with the same columns.

    Without times it searches the whole archive, except days that conditions on timestamp_ms rule out; the cost grows
    with the days read. With `end_time` alone it searches the 24 hours before. The docstring of
    `monitoring_pipeline.traces.filters` lists the differences from MLflow.

    Raises:
        MonitoringError: MLflow refuses the filter or the order, with its reason.
    """
    from mlflow.tracing.utils.search import traces_to_df

    from monitoring_pipeline.resources.build import build_resources
    from monitoring_pipeline.traces.searching import find_traces, stored_trace

    settings = settings or load_settings()
    window = window_of(settings, start_time, end_time) if start_time or end_time else None
    found = find_traces(build_resources(settings)["lake"], window, filter_string, order_by, max_results)
    texts = found.select("trace_json").toArrow()["trace_json"].to_pylist()
    return traces_to_df([stored_trace(text) for text in texts])


def analyze_trace_errors(
    traces: GivenTraces | None = None,
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    settings: Settings | None = None,
) -> DataFrame:
    """Errors grouped by signature and by the span that raised them; errors of the most traces come first.

    Columns: signature (the message with ids, numbers, quoted values, paths and times masked), span_name, span_type,
    trace_count, span_count, first_seen, last_seen, sample_trace_ids (five at most), sample_message.
    """
    from monitoring_pipeline.analysis.errors import error_groups
    from monitoring_pipeline.analysis.performance import trace_errors

    return error_groups(trace_errors(_rows(traces, start_time, end_time, settings)))


def analyze_trace_performance(
    traces: GivenTraces | None = None,
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    settings: Settings | None = None,
) -> DataFrame:
    """One row per trace, newest first: timestamp (its start) and the columns of the table `trace_performance`."""
    from pyspark.sql import functions as F

    from monitoring_pipeline.analysis.performance import trace_performance

    rows = _rows(traces, start_time, end_time, settings)
    performance = trace_performance(rows, F.col("trace_info.timestamp").alias("timestamp"))
    return performance.orderBy(F.desc("timestamp"), "trace_id")


def analyze_historical_performance(
    start_time: datetime | None = None, end_time: datetime | None = None, settings: Settings | None = None
) -> DataFrame:
    """One row for each hour with traces, newest first.

    Columns: hour, trace_count, error_count, error_rate, avg_duration_ms, p50_duration_ms, p95_duration_ms,
    p99_duration_ms (exact), span_count, input_tokens, output_tokens, total_tokens, cost_usd.
    """
    from pyspark.sql import functions as F

    from monitoring_pipeline.analysis.performance import performance_figures, trace_performance

    performance = trace_performance(_rows(None, start_time, end_time, settings))
    by_hour = performance_figures(performance, "trace_hour").withColumnRenamed("trace_hour", "hour")
    return by_hour.orderBy(F.desc("hour"))


def analyze_trace_quality(
    experiment_id: str | None = None,
    days: int = 7,
    traces: GivenTraces | None = None,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """The quality of the traces of an experiment (default: all) in the last `days` days, as far as the archive goes.

    Returns total_traces, success_rate (share with status OK) and success_rate_interval (95 %), error_count,
    avg_latency_ms, p50_latency_ms, p95_latency_ms, p99_latency_ms (exact, over traces that have ended; None without
    any) and sample_errors, the requests of the latest five traces with status ERROR. Without traces the result is
    {"total_traces": 0}.
    """
    from pyspark.sql import functions as F

    from monitoring_pipeline.analysis.overview import overview
    from monitoring_pipeline.settings.upkeep import oldest_kept

    if days < 1:
        raise MonitoringError(f"days = {days}: must be at least 1")
    settings = settings or load_settings()
    start = None
    if traces is None:
        kept = oldest_kept(settings.upkeep.keep_archive_days) or settings.archive.start
        start = max(datetime.now(UTC) - timedelta(days=days), settings.archive.start, kept)
    rows = _rows(traces, start, None, settings)
    return overview(rows if experiment_id is None else rows.where(F.col("experiment_id") == experiment_id))


def profile_trace_performance(
    trace_id: str | None = None, trace: Trace | None = None, settings: Settings | None = None
) -> dict[str, Any]:
    """Where the time of one trace went; name an archived trace by its id, or pass the trace.

    Returns trace_id, status and duration_ms of the trace; by_type and by_stage, which hold count, error_count,
    total_ms, avg_ms, max_ms and self_time_ms (without children) for each span type and span name; and critical_path, a
    list of (span_id, span_name, span_type, self_ms) whose times add up to the duration of the root span (see
    `analysis.critical_path`).

    Raises:
        MonitoringError: the trace is not in the archive.
    """
    from monitoring_pipeline.analysis.profiling import profile
    from monitoring_pipeline.archive.given import archive_rows
    from monitoring_pipeline.resources.build import build_resources
    from monitoring_pipeline.traces.searching import find_trace

    resources = build_resources(settings or load_settings())
    if trace is None:
        if trace_id is None:
            raise MonitoringError("give trace_id or trace")
        return profile(find_trace(resources["lake"], trace_id))
    if trace_id not in (None, trace.info.trace_id):
        raise MonitoringError(f"trace is {trace.info.trace_id}, but trace_id is {trace_id}; give one of them")
    return profile(archive_rows(resources["spark"].session, [trace]))


def break_down(
    by: str,
    traces: GivenTraces | None = None,
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    settings: Settings | None = None,
) -> DataFrame:
    """Latency, errors, tokens and cost by a property of traces; the most frequent value comes first.

    `by` is tags.<key>, metadata.<key>, trace_name, user_id, session_id, experiment_id, experiment_name, run_id or
    status. Columns: value (null: traces without one), trace_count, error_count, error_rate, avg_duration_ms,
    p50_duration_ms, p95_duration_ms, p99_duration_ms, span_count, input_tokens, output_tokens, total_tokens, cost_usd.

    Raises:
        MonitoringError: the property does not exist.
    """
    from monitoring_pipeline.analysis import breakdown

    return breakdown.break_down(_rows(traces, start_time, end_time, settings), by)


def compare_releases(
    by: str,
    before: str,
    after: str,
    traces: GivenTraces | None = None,
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    settings: Settings | None = None,
) -> ReleaseComparison:
    """Compare traces whose property is `after` with those whose property is `before`, such as two releases by a tag.

    `by` is the property, as for `break_down`. Returns before_traces and after_traces (counts); measures, the error rate
    and the p50 and p95 of durations, each with the 95 % interval of its change; stages, the same for the durations of
    each span type and name, with the largest slowdown first; and new_errors and gone_errors, the groups of errors that
    only one side has.

    Raises:
        MonitoringError: the property does not exist, or no trace has one of the values; the message lists those found.
    """
    from monitoring_pipeline.analysis import releases

    return releases.compare_releases(_rows(traces, start_time, end_time, settings), by, before, after)


def _rows(
    traces: GivenTraces | None, start_time: datetime | None, end_time: datetime | None, settings: Settings | None
) -> DataFrame:
    """`traces` as rows of `agent_traces`, or else the archived rows of the hours."""
    from monitoring_pipeline.archive.given import archive_rows
    from monitoring_pipeline.resources.build import build_resources
    from monitoring_pipeline.tables import AGENT_TRACES

    settings = settings or load_settings()
    resources = build_resources(settings)
    if traces is None:
        return resources["lake"].read(AGENT_TRACES, window_of(settings, start_time, end_time))
    if start_time or end_time:
        raise MonitoringError("give either traces, or start_time and end_time of archived traces")
    return archive_rows(resources["spark"].session, traces)
