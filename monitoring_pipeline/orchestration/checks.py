"""Asset checks: conditions that a table must meet before anything is computed from it, and warnings for people.

Checks run within the asset's run, on its window, so each reads only the hours of the run. In a run
over a range, one result names the failing hours. If a blocking check fails, the asset is not materialised (`checked`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeAlias

import dagster as dg
import pyarrow.compute as pc

from monitoring_pipeline.analysis.soundness import (
    BASELINE_DAYS,
    BUSY,
    breaches,
    has_numbers,
    schema_problems,
    silent_hours,
    usual_traces,
)
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.tables import AGENT_TRACES, HOURLY_PERFORMANCE, Table
from monitoring_pipeline.windows import HOUR, Window, floor_hour

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

ARCHIVE_COMPLETE = dg.AssetCheckSpec(
    "archive_complete",
    asset="archived_traces",
    blocking=True,
    description="Archive and quarantine together hold at least the traces that the source counted for each hour before "
    "it was read.",
)


def archive_complete(lacking: Mapping[datetime, int]) -> dg.AssetCheckResult:
    """The result of the check `archive_complete`; `lacking` is the number of missing traces by hour."""
    hours = [f"{hour:%Y-%m-%d %H:%M}: {number} lacking" for hour, number in sorted(lacking.items())]
    return dg.AssetCheckResult(
        asset_key="archived_traces",
        check_name=ARCHIVE_COMPLETE.name,
        passed=not hours,
        metadata={"lacking": sum(lacking.values()), "hours": "\n".join(hours[:10]) or "none"},
    )


SHOWN = 10  # problems that a result lists; it counts all of them
SCHEMA, RANGES = "schema_as_declared", "values_in_range"
SILENCE_LOOK_BACK = timedelta(hours=24)
GRACE = timedelta(minutes=15)  # from the end of an hour until its metrics are expected

LEDGER_ADDS_UP = dg.AssetCheckSpec(
    "ledger_adds_up",
    asset="scorer_coverage",
    blocking=True,
    description="The ledger accounts for every archived trace, and its counts match the archive and the assessments. "
    "Quality is not computed from a ledger that fails this check.",
)


CheckedAsset: TypeAlias = Iterator[dg.AssetCheckResult | dg.MaterializeResult]


def checked(context: dg.AssetExecutionContext, results: Iterable[dg.AssetCheckResult]) -> CheckedAsset:
    """The last events of an asset: its materialisation with the results of its checks.

    In Dagster, a failed blocking check stops only downstream assets of the same run, and the asset itself counts as
    materialised. Here it does not, so that no other run builds on it either.

    Raises:
        Failure: a blocking check has failed with severity ERROR; its results are recorded first.
    """
    # The asset's key in this code location, which may have a prefix.
    found = [result._replace(asset_key=context.asset_key) for result in results]
    blocking = {spec.name for spec in context.assets_def.check_specs if spec.blocking}
    failed = [str(result.check_name) for result in found if result.check_name in blocking and _is_error(result)]
    if not failed:
        yield dg.MaterializeResult(check_results=found)
        return
    yield from found
    raise dg.Failure(
        f"not materialized: {', '.join(failed)} failed, and downstream assets would spread the error",
        allow_retries=False,
    )


def _is_error(result: dg.AssetCheckResult) -> bool:
    return not result.passed and result.severity == dg.AssetCheckSeverity.ERROR


def _summary(problems: Iterable[object]) -> dict[str, int | str]:
    """The metadata of a check: the number of problems, and the first ones."""
    lines = [str(problem) for problem in problems]
    return {"problems": len(lines), "first_problems": "\n".join(lines[:SHOWN]) or "none"}


def table_check_specs(key: dg.AssetKey | str, table: Table) -> list[dg.AssetCheckSpec]:
    """The checks of every table: its schema and, if it has numbers, their ranges; see `table_checks`."""
    schema = dg.AssetCheckSpec(
        SCHEMA,
        asset=key,
        blocking=True,
        description="The table has exactly the declared columns: no other writer has changed it.",
    )
    ranges = dg.AssetCheckSpec(
        RANGES,
        asset=key,
        blocking=True,
        description="Counts, durations and costs are not negative, shares lie between 0 and 1, percentiles and "
        "intervals are in order. Only a warning if a trace itself reports an impossible value.",
    )
    return [schema, ranges] if has_numbers(table) else [schema]


def table_checks(key: dg.AssetKey | str, table: Table, rows: DataFrame) -> list[dg.AssetCheckResult]:
    """The results of the checks of `table_check_specs`; `rows` are the table's rows in the window."""
    problems = schema_problems(table, rows.schema)
    schema = dg.AssetCheckResult(asset_key=key, check_name=SCHEMA, passed=not problems, metadata=_summary(problems))
    if not has_numbers(table):
        return [schema]
    # Columns that are missing or have another type cannot be checked.
    found = [] if problems else breaches(table, rows)
    is_error = problems or any(not breach.is_claim for breach in found)
    return [
        schema,
        dg.AssetCheckResult(
            asset_key=key,
            check_name=RANGES,
            passed=not problems and not found,
            severity=dg.AssetCheckSeverity.ERROR if is_error else dg.AssetCheckSeverity.WARN,
            metadata=_summary(["not checked, because the columns differ"] if problems else found),
        ),
    ]


TRACE_IDS_UNIQUE = dg.AssetCheckSpec(
    "trace_ids_unique",
    asset="archived_traces",
    blocking=True,
    description="No trace of the window is in the archive twice, in its hour or an adjacent one.",
)


def trace_ids_unique(lake: LakeResource, window: Window) -> dg.AssetCheckResult:
    """The result of the check `trace_ids_unique`; reads the window and an hour on each side, as traces may move."""
    from pyspark.sql import functions as F

    around = Window(window.start - HOUR, window.end + HOUR)
    in_window = (F.col("trace_hour") >= F.lit(window.start)) & (F.col("trace_hour") < F.lit(window.end))
    twice = (
        lake.read(AGENT_TRACES, around)
        .select("trace_id", "trace_hour", in_window.cast("int").alias("inside"))
        .groupBy("trace_id")
        .agg(F.count("*").alias("rows"), F.sort_array(F.collect_set("trace_hour")).alias("hours"), F.max("inside"))
        .where((F.col("rows") > 1) & (F.col("max(inside)") == 1))
        .select("trace_id", "hours")
        .toArrow()
        .sort_by("trace_id")
    )
    problems = [
        f"{row['trace_id'][:100]} under {' and '.join(f'{hour:%Y-%m-%d %H:%M}' for hour in row['hours'])}"
        for row in twice.to_pylist()
    ]
    return dg.AssetCheckResult(
        asset_key=TRACE_IDS_UNIQUE.asset_key,
        check_name=TRACE_IDS_UNIQUE.name,
        passed=not problems,
        metadata=_summary(problems),
    )


VALUES_PLAUSIBLE = dg.AssetCheckSpec(
    "values_plausible",
    asset="archived_traces",
    description="No trace reports a value that cannot be right, such as a negative duration or NaN tokens. A warning: "
    "such a value is null in its column, and trace_json keeps it.",
)


def values_plausible(lake: LakeResource, window: Window) -> dg.AssetCheckResult:
    """The result of the check `values_plausible`, with the ids of the traces and their values."""
    rows = lake.read_columns(AGENT_TRACES, window, "trace_id", "implausible")
    odd = rows.filter(pc.greater(pc.list_value_length(rows["implausible"]), 0)).sort_by("trace_id")
    problems = [f"{row['trace_id'][:100]}: {', '.join(row['implausible'])}" for row in odd.to_pylist()]
    return dg.AssetCheckResult(
        asset_key=VALUES_PLAUSIBLE.asset_key,
        check_name=VALUES_PLAUSIBLE.name,
        passed=not problems,
        severity=dg.AssetCheckSeverity.WARN,
        metadata=_summary(problems),
    )


NO_SILENT_HOUR = dg.AssetCheckSpec(
    "no_silent_hour",
    asset=HOURLY_PERFORMANCE.name,
    description=f"No hour of the window, or of the 24 before it, is empty if {BUSY} or more traces are usual. A "
    "warning: the agent may have been idle, or its tracing or the archive may have stopped.",
)


def no_silent_hour(lake: LakeResource, window: Window) -> dg.AssetCheckResult:
    """The result of the check `no_silent_hour`.

    Hours without traces are never run, so each run also checks the day before its window.
    """
    checked_hours = Window(window.start - SILENCE_LOOK_BACK, min(window.end, floor_hour(datetime.now(UTC) - GRACE)))
    silent = silent_hours(_traces_by_hour(lake, checked_hours), list(checked_hours.hours()))
    return dg.AssetCheckResult(
        asset_key=NO_SILENT_HOUR.asset_key,
        check_name=NO_SILENT_HOUR.name,
        passed=not silent,
        severity=dg.AssetCheckSeverity.WARN,
        metadata=_summary(f"{hour:%Y-%m-%d %H:%M} no trace, against {usual}" for hour, usual in silent.items()),
    )


LATEST_HOUR_IS_THERE = dg.AssetCheckSpec(
    "latest_hour_is_there",
    asset=HOURLY_PERFORMANCE.name,
    description="The latest full hour has the figures of all its archived traces, and some if traffic is usual then. "
    "Evaluated in each run and hourly by a schedule, so that it also fires when nothing runs.",
)


def latest_hour_is_there(lake: LakeResource, now: datetime) -> dg.AssetCheckResult:
    """The result of the check `latest_hour_is_there` at `now`."""
    hour = floor_hour(now - GRACE) - HOUR
    window = Window(hour, hour + HOUR)
    counts = _traces_by_hour(lake, window)
    usual, words = usual_traces(counts, hour, (hour - HOUR,))
    archived = lake.read_columns(AGENT_TRACES, window, "trace_hour").num_rows
    computed = counts.get(hour, 0)
    return dg.AssetCheckResult(
        asset_key=LATEST_HOUR_IS_THERE.asset_key,
        check_name=LATEST_HOUR_IS_THERE.name,
        passed=computed >= archived and (computed > 0 or usual < BUSY),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"hour": f"{hour:%Y-%m-%d %H:%M}", "archived": archived, "computed": computed, "usual": words},
    )


def _traces_by_hour(lake: LakeResource, window: Window) -> dict[datetime, int]:
    """The traces of each hour of `window` and of the hours its baseline needs; hours without traces are left out."""
    around = Window(window.start - timedelta(days=BASELINE_DAYS) - HOUR, window.end + HOUR)
    rows = lake.read_columns(HOURLY_PERFORMANCE, around, "hour", "trace_name", "trace_count")
    of_all_names = rows.filter(rows["trace_name"].is_null()).group_by("hour").aggregate([("trace_count", "sum")])
    return dict(zip(of_all_names["hour"].to_pylist(), of_all_names["trace_count_sum"].to_pylist(), strict=True))


def ledger_adds_up(problems: list[str]) -> dg.AssetCheckResult:
    """The result of the check `ledger_adds_up`; `problems` are the problems of the window's ledger."""
    return dg.AssetCheckResult(
        asset_key="scorer_coverage",
        check_name=LEDGER_ADDS_UP.name,
        passed=not problems,
        metadata=_summary(problems),
    )


def scorer_works_spec(key: dg.AssetKey) -> dg.AssetCheckSpec:
    """The check that a scorer does not fail: a warning if some results are errors, an error if all are."""
    return dg.AssetCheckSpec(
        "scorer_works",
        asset=key,
        description="No result is an error. A warning if some are; a failure if all are, or if the run stopped because "
        "the scorer kept hanging or crashing.",
    )


def scorer_works(
    key: dg.AssetKey, results: DataFrame, scored: int | float, failed: int | float, crashed: bool
) -> dg.AssetCheckResult:
    """The result of the check `scorer_works`; `results` are the scorer's rows of `assessments` in the window.

    `crashed` tells that the run stopped because the scorer kept hanging or crashing.
    """
    from pyspark.sql import functions as F

    metadata: dict[str, int | float | str] = {"scored": scored, "failed": failed}
    if crashed:
        metadata["stopped"] = "the scorer kept hanging or crashing; the other traces stay pending"
    if failed:
        errors = results.where(F.col("error_code").isNotNull()).groupBy("error_code", "error_message").count()
        first = errors.orderBy(F.desc("count"), "error_message").first()
        metadata["most_frequent_error"] = f"{first['error_code']}: {first['error_message']}" if first else ""
    return dg.AssetCheckResult(
        asset_key=key,
        check_name="scorer_works",
        passed=not failed,
        severity=dg.AssetCheckSeverity.ERROR if crashed or (failed and not scored) else dg.AssetCheckSeverity.WARN,
        metadata=metadata,
    )


def within_budget_spec(key: dg.AssetKey) -> dg.AssetCheckSpec:
    """The check that a scorer's budget sufficed for the window; a warning if it did not."""
    return dg.AssetCheckSpec(
        "within_budget", asset=key, description="The budget was enough. A warning if a later run has to score the rest."
    )


def within_budget(key: dg.AssetKey, over_budget: str) -> dg.AssetCheckResult:
    """The result of the check `within_budget`; `over_budget` names the limit that was reached, or is empty."""
    return dg.AssetCheckResult(
        asset_key=key,
        check_name="within_budget",
        passed=not over_budget,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"used": over_budget or "not used up"},
    )
