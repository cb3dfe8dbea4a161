"""Reads a report's data from the lake. The engine aggregates; only sums and a few rows of single traces arrive here."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import reduce
from typing import TYPE_CHECKING

from monitoring_pipeline.analysis.agreement import is_current
from monitoring_pipeline.analysis.errors import error_groups
from monitoring_pipeline.analysis.performance import hourly_performance
from monitoring_pipeline.analysis.quality import quality
from monitoring_pipeline.analysis.summaries import score_moments, stage_sums, totals
from monitoring_pipeline.analysis.verdicts import passes
from monitoring_pipeline.reports.data import AGREEMENT_DAYS, EXPLAINED_INCIDENTS, KNOWN_ERROR_DAYS, ReportData
from monitoring_pipeline.reports.period import Period
from monitoring_pipeline.reports.standouts import Incident, incidents, standouts
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.scoring.registry import ConfiguredScorer, reading_of
from monitoring_pipeline.tables import (
    AGENT_TRACES,
    ASSESSMENTS,
    HOURLY_PERFORMANCE,
    HOURLY_QUALITY,
    QUARANTINED_TRACES,
    SCORER_AGREEMENT,
    SCORER_COVERAGE,
    SPAN_PROFILE,
    TRACE_ERRORS,
    TRACE_PERFORMANCE,
    Table,
)
from monitoring_pipeline.windows import HOUR, Window

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import Column, DataFrame

WORST_TRACES = 5
STAGES_BY_HOUR = 20


def report_data(
    lake: LakeResource, scorers: list[ConfiguredScorer], period: Period, mlflow_ui: str | None = None
) -> ReportData:
    """The data of the report on `period`, only for the scorers' current digests."""
    from pyspark.sql import functions as F

    window = period.window
    days_before = _days_with_traces(lake, period)
    trailing = Window(window.end - timedelta(days=AGREEMENT_DAYS), window.end)
    reading = reading_of(scorers)

    def current(rows: DataFrame) -> DataFrame:
        return rows.where(is_current(scorers))

    def by_slot(rows: DataFrame, column: str) -> DataFrame:
        return rows.withColumn(column, F.date_trunc(period.slot_kind, column))

    assessments, coverage = current(lake.read(ASSESSMENTS, window)), current(lake.read(SCORER_COVERAGE, window))
    hours = _frame(lake.read(HOURLY_PERFORMANCE, window).where(F.col("trace_name").isNull()), "hour")
    if period.slot_kind == "hour":
        trend, quality_trend = hours, _frame(current(lake.read(HOURLY_QUALITY, window)), "hour")
    else:
        by_day = hourly_performance(by_slot(lake.read(TRACE_PERFORMANCE, window), "trace_hour"))
        trend = _frame(by_day.where(F.col("trace_name").isNull()), "hour")
        quality_trend = _with_utc(quality(assessments, coverage, reading, "day"), "hour")
    errors = lake.read(TRACE_ERRORS, window)
    by_hour = score_moments(assessments, reading.pass_if, "trace_hour").withColumnRenamed("trace_hour", "hour")
    found = incidents(standouts(hours, _frame(by_hour, "hour")))
    stages = stage_sums(_of_periods(lake, SPAN_PROFILE, period), "period").toPandas()
    names = lake.read(AGENT_TRACES, window).select("experiment_id", "experiment_name").distinct().toPandas()
    return ReportData(
        period=period,
        hours=hours,
        trend=trend,
        totals=_totals(lake, period),
        quality_trend=quality_trend,
        quality_total=quality(assessments, coverage, reading, "all"),
        scores=score_moments(current(_of_periods(lake, ASSESSMENTS, period)), reading.pass_if, "period").toPandas(),
        coverage=_frame(coverage, "hour"),
        errors=_groups(errors),
        known_errors=_groups(lake.read(TRACE_ERRORS, _known(period))) if days_before else None,
        known_error_days=days_before,
        error_traces=errors.count(),
        incidents=found,
        incident_errors=_of_incidents(errors, found[:EXPLAINED_INCIDENTS]),
        stages=stages,
        stage_hours=_stage_hours(lake, period, stages),
        worst=_worst(lake, window, assessments, scorers),
        agreement=_frame(current(lake.read(SCORER_AGREEMENT, trailing)), "day"),
        experiment_names=dict(zip(names["experiment_id"].fillna(""), names["experiment_name"].fillna(""), strict=True)),
        mlflow_ui=mlflow_ui,
        is_complete=window.end <= datetime.now(UTC),
        unread=lake.read_columns(QUARANTINED_TRACES, window, "trace_id", "reason").to_pylist(),
    )


def _of_periods(lake: LakeResource, table: Table, period: Period) -> DataFrame:
    """The table's rows of the period and the periods to compare with; the column `period` holds the period's name."""
    from pyspark.sql import functions as F

    periods = [period, *(earlier for _, earlier in period.earlier())]
    tagged = [lake.read(table, each.window).withColumn("period", F.lit(each.name)) for each in periods]
    return reduce(lambda rows, more: rows.unionByName(more), tagged)


def _totals(lake: LakeResource, period: Period) -> pd.DataFrame:
    import pandas as pd

    sums = totals(_of_periods(lake, TRACE_PERFORMANCE, period), "period").toPandas()
    kept_since = lake.kept_since
    gone = [each for _, each in period.earlier() if kept_since and each.window.start < kept_since]
    if not gone:
        return sums
    hours = pd.concat(_frame(lake.read(HOURLY_PERFORMANCE, each.window)).assign(period=each.name) for each in gone)
    hours = hours[hours["trace_name"].isna()]
    columns = ["trace_count", "error_count", "input_tokens", "output_tokens", "total_tokens", "cost_usd"]
    of_all = hours.groupby("period", as_index=False)[columns].sum(min_count=1)
    of_each = (
        hours.fillna({"experiment_id": ""})
        .groupby(["period", "experiment_id"], as_index=False)[columns]
        .sum(min_count=1)
    )
    kept = sums[~sums["period"].isin([each.name for each in gone])]
    return pd.concat([kept, of_all, of_each], ignore_index=True)[list(sums.columns)]


def _groups(errors: DataFrame) -> pd.DataFrame:
    """The groups of errors, each with the experiment of its first sample trace."""
    from pyspark.sql import functions as F

    groups = _frame(error_groups(errors), "first_seen", "last_seen")
    first = [ids[0] for ids in groups["sample_trace_ids"]]
    places = errors.where(F.col("trace_id").isin(*first)).select("trace_id", "experiment_id").toPandas()
    return groups.assign(experiment_id=groups["sample_trace_ids"].str[0].map(dict(places.to_numpy())))


def _of_incidents(errors: DataFrame, found: list[Incident]) -> pd.DataFrame:
    import pandas as pd
    from pyspark.sql import functions as F

    parts = []
    for position, incident in enumerate(found):
        within = F.col("trace_hour").between(incident.start, incident.end - HOUR)
        rows = errors.where((F.col("experiment_id") == incident.experiment_id) & within)
        parts.append(_groups(rows).assign(incident=position))
    return pd.concat(parts, ignore_index=True) if parts else _groups(errors.limit(0)).assign(incident=0)


def _known(period: Period) -> Window:
    return Window(period.window.start - timedelta(days=KNOWN_ERROR_DAYS), period.window.start)


def _days_with_traces(lake: LakeResource, period: Period) -> int:
    """The number of days in `_known` with traces that the archive still keeps."""
    hours = lake.read_columns(HOURLY_PERFORMANCE, _known(period), "hour")["hour"].to_pylist()
    return len({hour.date() for hour in hours if lake.kept_since is None or hour >= lake.kept_since})


def _stage_hours(lake: LakeResource, period: Period, stages: pd.DataFrame) -> pd.DataFrame:
    from pyspark.sql import functions as F

    own = stages[stages["period"] == period.name]
    most = own.groupby("span_name")["self_time_ms"].sum().sort_values(ascending=False).index[:STAGES_BY_HOUR]
    return _frame(lake.read(SPAN_PROFILE, period.window).where(F.col("span_name").isin(*most)), "hour")


def _worst(lake: LakeResource, window: Window, assessments: DataFrame, scorers: list[ConfiguredScorer]) -> pd.DataFrame:
    import pandas as pd
    from pyspark.sql import functions as F

    traces = lake.read(TRACE_PERFORMANCE, window)

    def first(kind: str, rows: DataFrame, *order: Column) -> pd.DataFrame:
        return _frame(rows.orderBy(*order, "trace_id").limit(WORST_TRACES), "trace_hour").assign(kind=kind)

    low = low_scores(assessments, scorers).orderBy(F.desc("failing"), "trace_id").limit(WORST_TRACES).toPandas()
    seen = _frame(traces.where(F.col("trace_id").isin(*low["trace_id"])), "trace_hour")
    parts = [
        first(
            "failed",
            traces.where(F.col("status") == "ERROR"),
            F.desc("error_span_count"),
            F.desc_nulls_last("duration_ms"),
        ),
        low[["trace_id", "scores"]].merge(seen, on="trace_id").assign(kind="low_scores"),
        first("slowest", traces.where(F.col("duration_ms").isNotNull()), F.desc("duration_ms")),
        first("most_expensive", traces.where(F.col("cost_usd") > 0), F.desc("cost_usd")),
    ]
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True).reindex(
        columns=[*parts[0].columns, "scores"]
    )


def low_scores(assessments: DataFrame, scorers: list[ConfiguredScorer]) -> DataFrame:
    """Traces that scorers fail: trace_id, failing (number of scorers) and scores (structs of scorer and score).

    A score fails by the scorer's `pass_if`, else below 0.5.
    """
    from pyspark.sql import functions as F

    passed = [F.when(F.col("scorer") == each.name, passes(F.col("score"), each.pass_if)) for each in scorers]
    failing = assessments.where(~F.coalesce(*passed, F.lit(None).cast("boolean")))
    scores = F.sort_array(F.collect_list(F.struct("scorer", "score")))
    return failing.groupBy("trace_id").agg(F.count("*").alias("failing"), scores.alias("scores"))


def _frame(rows: DataFrame, *times: str) -> pd.DataFrame:
    return _with_utc(rows.toPandas(), *times)


def _with_utc(frame: pd.DataFrame, *times: str) -> pd.DataFrame:
    """`frame` with the columns `times` as UTC times (Spark returns them without a time zone)."""
    import pandas as pd

    return frame.assign(**{column: pd.to_datetime(frame[column], utc=True) for column in times})
