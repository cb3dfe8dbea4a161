"""Traces found and looked into.

Each function reads the archive, for the whole hours from `start_time` to `end_time` (by default the last 24), or takes
`traces` instead: a list, or what mlflow.search_traces or `query_archived_traces` returns. All of them raise a
MonitoringError where the settings, the times or the traces are wrong.
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
    """The archived traces that pass the MLflow filter, as rows of `agent_traces`, the newest first.

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
    """What mlflow.search_traces returns, from the archive: the same traces in the same order, with the same columns.

    Without times the whole archive is searched, but for the days that conditions on timestamp_ms leave out; the cost
    grows with the days that are read. With `end_time` alone these are the 24 hours before it. What differs from MLflow
    is told in traces/filters.py.

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
    """Errors grouped by their signature and the span that they arose in, those of most traces first.

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
    """One row a trace, the newest first: timestamp (its start), and the columns of the table `trace_performance`."""
    from pyspark.sql import functions as F

    from monitoring_pipeline.analysis.performance import trace_performance

    rows = _rows(traces, start_time, end_time, settings)
    performance = trace_performance(rows, F.col("trace_info.timestamp").alias("timestamp"))
    return performance.orderBy(F.desc("timestamp"), "trace_id")


def analyze_historical_performance(
    start_time: datetime | None = None, end_time: datetime | None = None, settings: Settings | None = None
) -> DataFrame:
    """One row for each hour with traces, the newest first.

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
    """How the traces of an experiment, by default of all, fared in the last `days` days, as far as the archive goes.

    Returns total_traces, success_rate (share with status OK) and success_rate_interval (95 %), error_count,
    avg_latency_ms, p50_latency_ms, p95_latency_ms, p99_latency_ms (exact, over traces that have ended, None without
    any) and sample_errors: the requests of the latest five traces in ERROR. Without any trace it is
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
    """Where the time of one trace went: of the archive by its id, or a given one.

    Returns trace_id, status and duration_ms of the trace; by_type and by_stage, which hold for each span type and each
    span name count, error_count, total_ms, avg_ms, max_ms and self_time_ms (without that of children); and
    critical_path, a list of (span_id, span_name, span_type, self_ms), whose times add up to the duration of the root
    span (see `analysis.critical_path`).

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
            raise MonitoringError("give trace_id, or the trace itself")
        return profile(find_trace(resources["lake"], trace_id))
    if trace_id not in (None, trace.info.trace_id):
        raise MonitoringError(f"the given trace is {trace.info.trace_id}, not {trace_id}; give either")
    return profile(archive_rows(resources["spark"].session, [trace]))


def break_down(
    by: str,
    traces: GivenTraces | None = None,
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    settings: Settings | None = None,
) -> DataFrame:
    """Latency, errors, tokens and cost by a property of traces, the value that most traces have first.

    `by` is tags.<key>, metadata.<key>, trace_name, user_id, session_id, experiment_id, experiment_name, run_id or
    status. Columns: value (null: traces without one), trace_count, error_count, error_rate, avg_duration_ms,
    p50_duration_ms, p95_duration_ms, p99_duration_ms, span_count, input_tokens, output_tokens, total_tokens, cost_usd.

    Raises:
        MonitoringError: there is no such property.
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
    """The traces of which a property is `after` beside those of which it is `before`: two releases, by their tag.

    `by` is the property, as for `break_down`. Returns before_traces and after_traces, how many there are; measures, the
    error rate and the p50 and p95 of durations, each with the 95 % interval of its change; stages, the same of the
    durations of each span type and name, the most slowed down first; new_errors and gone_errors, the groups of errors
    that only one of the two has.

    Raises:
        MonitoringError: there is no such property, or no trace has one of the values, with those that there are.
    """
    from monitoring_pipeline.analysis import releases

    return releases.compare_releases(_rows(traces, start_time, end_time, settings), by, before, after)


def _rows(
    traces: GivenTraces | None, start_time: datetime | None, end_time: datetime | None, settings: Settings | None
) -> DataFrame:
    """`traces` as rows of `agent_traces`, else the archived ones of the hours."""
    from monitoring_pipeline.archive.given import archive_rows
    from monitoring_pipeline.resources.build import build_resources
    from monitoring_pipeline.tables import AGENT_TRACES

    settings = settings or load_settings()
    resources = build_resources(settings)
    if traces is None:
        return resources["lake"].read(AGENT_TRACES, window_of(settings, start_time, end_time))
    if start_time or end_time:
        raise MonitoringError("give either traces, or start_time and end_time of archived ones")
    return archive_rows(resources["spark"].session, traces)
