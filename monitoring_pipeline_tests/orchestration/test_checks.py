"""Each check fails on a real table with one planted defect, and passes without it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
from deltalake import DeltaTable, Field, write_deltalake
from hypothesis import given
from hypothesis import strategies as st

from monitoring_pipeline.analysis.soundness import silent_hours
from monitoring_pipeline.keys import ASSETS
from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.orchestration.checks import (
    latest_hour_is_there,
    no_silent_hour,
    table_checks,
    trace_ids_unique,
    values_plausible,
)
from monitoring_pipeline.orchestration.runs import QUIET
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.rows import from_dicts
from monitoring_pipeline.tables import (
    AGENT_TRACES,
    HOURLY_PERFORMANCE,
    HOURLY_QUALITY,
    SCORER_AGREEMENT,
    SPAN_PROFILE,
    TABLES,
    TRACE_PERFORMANCE,
    Table,
)
from monitoring_pipeline.windows import HOUR, Window
from monitoring_pipeline_tests.made_project import FIRST, LAST, WINDOW, MadeProject

DAY = timedelta(days=1)
NOON = datetime(2026, 1, 10, 12, tzinfo=UTC)
ANY = Window(NOON, NOON + HOUR)
PROBLEMS = "first_problems"


def value(result: dg.AssetCheckResult, name: str) -> Any:
    return result.metadata[name].value


def checks(lake: LakeResource, table: Table, *rows: dict[str, Any]) -> dict[str, dg.AssetCheckResult]:
    """The results of the checks of a table that has these rows at noon."""
    lake.replace(table, ANY, from_dicts(table, [{table.hour: NOON, **row} for row in rows]))
    results = table_checks("an_asset", table, lake.read(table, ANY))
    return {str(result.check_name): result for result in results}


def test_every_table_has_its_declared_schema(lake: LakeResource) -> None:
    for table in TABLES:
        assert all(result.passed for result in table_checks("an_asset", table, lake.read(table, ANY))), table.name


@pytest.mark.parametrize("defect", ["column", "type"])
def test_a_table_changed_by_another_writer_fails_the_schema_check(lake: LakeResource, defect: str) -> None:
    lake.version(HOURLY_QUALITY)
    path = lake.path(HOURLY_QUALITY)
    if defect == "column":
        DeltaTable(path).alter.add_columns([Field("note", "string")])  # type: ignore[arg-type]
    else:
        other = HOURLY_QUALITY.schema.set(
            HOURLY_QUALITY.schema.get_field_index("scored"), pa.field("scored", pa.string())
        )
        write_deltalake(path, other.empty_table(), mode="overwrite", schema_mode="overwrite")
    results = {result.check_name: result for result in table_checks("x", HOURLY_QUALITY, lake.read(HOURLY_QUALITY))}
    expected = {
        "column": "hourly_quality: note is not declared",
        "type": "hourly_quality: scored is string, not bigint",
    }
    assert value(results["schema_as_declared"], PROBLEMS) == expected[defect]
    for result in results.values():
        assert not result.passed
        assert result.severity == dg.AssetCheckSeverity.ERROR


SOUND = {"trace_count": 4, "error_count": 1, "error_rate": 0.25, "p50_duration_ms": 1.0, "p95_duration_ms": 2.0}


@pytest.mark.parametrize(
    ("table", "row", "message"),
    [
        (HOURLY_PERFORMANCE, {"error_rate": 1.5}, "error_rate outside 0 to 1"),
        (HOURLY_PERFORMANCE, {"error_count": 5}, "error_count above trace_count"),
        (HOURLY_PERFORMANCE, {"trace_count": -4, "error_count": None}, "trace_count below 0"),
        (HOURLY_PERFORMANCE, {"p50_duration_ms": 2.5}, "p50_duration_ms above p95_duration_ms"),
        (HOURLY_PERFORMANCE, {"error_rate": float("nan")}, "error_rate is not finite"),
        (SPAN_PROFILE, {"self_time_ms": -0.5}, "self_time_ms below 0"),
        (HOURLY_QUALITY, {"ci_low": 0.6, "mean_score": 0.5}, "ci_low above mean_score"),
        (HOURLY_QUALITY, {"mean_score": float("inf")}, "mean_score is not finite"),
        (HOURLY_QUALITY, {"cost_usd": -0.01}, "cost_usd below 0"),
        (SCORER_AGREEMENT, {"kappa": -1.2}, "kappa outside -1 to 1"),
    ],
)
def test_an_impossible_value_blocks(lake: LakeResource, table: Table, row: dict[str, Any], message: str) -> None:
    base = SOUND if table == HOURLY_PERFORMANCE else {}
    sound = checks(lake, table, base)["values_in_range"]
    assert (sound.passed, value(sound, PROBLEMS)) == (True, "none")
    result = checks(lake, table, base, {**base, **row})["values_in_range"]
    assert not result.passed
    assert result.severity == dg.AssetCheckSeverity.ERROR
    assert f"2026-01-10 12:00 {message}: 1 row" in value(result, PROBLEMS).splitlines()


def test_an_impossible_value_reported_by_a_trace_is_only_a_warning(lake: LakeResource) -> None:
    for row in ({"duration_ms": -3.0}, {"input_tokens": -1}, {"cost_usd": -0.1}):
        result = checks(lake, TRACE_PERFORMANCE, {"trace_id": "tr-1", **row})["values_in_range"]
        assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.WARN)
    ours = checks(lake, TRACE_PERFORMANCE, {"trace_id": "tr-1", "duration_ms": -3.0, "span_count": -1})
    assert ours["values_in_range"].severity == dg.AssetCheckSeverity.ERROR


def test_a_trace_with_an_impossible_value_is_named(lake: LakeResource) -> None:
    row = {"trace_id": "tr-sound", "trace_hour": NOON, "created_at": NOON, "implausible": []}
    odd = {**row, "trace_id": "tr-odd", "implausible": ["duration_ms -3", "cost_usd nan"]}
    lake.insert(AGENT_TRACES, from_dicts(AGENT_TRACES, [row]))
    assert values_plausible(lake, ANY).passed
    lake.insert(AGENT_TRACES, from_dicts(AGENT_TRACES, [odd]))
    result = values_plausible(lake, ANY)
    assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert value(result, PROBLEMS) == "tr-odd: duration_ms -3, cost_usd nan"


def test_rounding_errors_are_not_a_defect(lake: LakeResource) -> None:
    row = {"ci_low": 0.1 + 0.2, "mean_score": 0.3, "ci_high": 0.3}
    assert checks(lake, HOURLY_QUALITY, row)["values_in_range"].passed


def test_a_trace_under_two_hours_is_found_from_either_hour(lake: LakeResource) -> None:
    def archive(trace_id: str, hour: datetime) -> None:
        row = {"trace_id": trace_id, "trace_hour": hour, "created_at": hour}
        lake.insert(AGENT_TRACES, from_dicts(AGENT_TRACES, [row]))

    archive("tr-once", NOON)
    archive("tr-moved", NOON)
    assert trace_ids_unique(lake, ANY).passed
    archive("tr-moved", NOON + HOUR)
    for hour in (NOON, NOON + HOUR):
        result = trace_ids_unique(lake, Window(hour, hour + HOUR))
        assert not result.passed
        assert value(result, PROBLEMS) == "tr-moved under 2026-01-10 12:00 and 2026-01-10 13:00"
    assert trace_ids_unique(lake, Window(NOON - HOUR, NOON)).passed  # in an adjacent hour only


def fill(lake: LakeResource, counts: dict[datetime, int]) -> None:
    """Fill `hourly_performance` with that many traces in each hour, of two names."""
    rows = [
        {"hour": hour, "experiment_id": "1", "trace_name": name, "trace_count": count}
        for hour, count in counts.items()
        for name in (None, "agent")
        if count
    ]
    lake.upsert(HOURLY_PERFORMANCE, from_dicts(HOURLY_PERFORMANCE, rows))


def busy_week(count: int = 50) -> dict[datetime, int]:
    return {NOON - hours * HOUR: count for hours in range(8 * 24)}


def test_an_empty_hour_between_busy_ones_is_reported_with_the_usual_number(lake: LakeResource) -> None:
    fill(lake, busy_week())
    assert no_silent_hour(lake, ANY).passed
    lake.replace(HOURLY_PERFORMANCE, Window(NOON - 3 * HOUR, NOON - HOUR), HOURLY_PERFORMANCE.schema.empty_table())
    result = no_silent_hour(lake, ANY)
    assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.WARN)
    usual = "no trace, against a median of 50 traces in this hour on 7 earlier days"
    assert value(result, PROBLEMS).splitlines() == [f"2026-01-10 09:00 {usual}", f"2026-01-10 10:00 {usual}"]


def test_a_young_archive_is_compared_with_adjacent_hours(lake: LakeResource) -> None:
    fill(lake, {NOON - 2 * HOUR: 40, NOON: 30})
    problem = value(no_silent_hour(lake, ANY), PROBLEMS)
    assert problem == "2026-01-10 11:00 no trace, against at least 30 traces in the adjacent hours"


@given(st.dictionaries(st.integers(0, 200), st.integers(0, 9)), st.integers(170, 200))
def test_hours_of_little_traffic_are_never_silent(traffic: dict[int, int], hour: int) -> None:
    counts = {NOON + hours * HOUR: count for hours, count in traffic.items()}
    assert silent_hours(counts, [NOON + hour * HOUR]) == {}


def test_nights_that_are_always_quiet_are_not_silent() -> None:
    counts = {NOON + hours * HOUR: 50 for hours in range(8 * 24) if 6 <= (NOON + hours * HOUR).hour < 23}
    assert silent_hours(counts, [NOON + hours * HOUR for hours in range(7 * 24, 8 * 24)]) == {}


def test_the_latest_hour_must_have_traces_if_traffic_is_usual(lake: LakeResource) -> None:
    fill(lake, busy_week())
    assert latest_hour_is_there(lake, NOON + HOUR + timedelta(minutes=20)).passed
    assert latest_hour_is_there(lake, NOON + 2 * HOUR + timedelta(minutes=14)).passed  # it may still be in progress
    result = latest_hour_is_there(lake, NOON + 2 * HOUR + timedelta(minutes=20))
    assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert value(result, "hour") == "2026-01-10 13:00"
    assert value(result, "usual") == "a median of 50 traces in this hour on 7 earlier days"


def test_the_latest_hour_must_have_all_archived_traces(lake: LakeResource) -> None:
    now = NOON + HOUR + timedelta(minutes=20)
    assert latest_hour_is_there(lake, now).passed  # there is no usual traffic
    rows = [{"trace_id": f"tr-{number}", "trace_hour": NOON, "created_at": NOON} for number in range(2)]
    lake.insert(AGENT_TRACES, from_dicts(AGENT_TRACES, rows))
    fill(lake, {NOON: 1})
    result = latest_hour_is_there(lake, now)
    assert not result.passed
    assert (value(result, "archived"), value(result, "computed")) == (2, 1)
    fill_again = {NOON: 2}
    lake.replace(HOURLY_PERFORMANCE, ANY, HOURLY_PERFORMANCE.schema.empty_table())
    fill(lake, fill_again)
    assert latest_hour_is_there(lake, now).passed


def test_an_asset_whose_blocking_check_fails_is_not_materialized(
    made: MadeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = build_definitions(made.settings).resolve_job_def(ASSETS)
    chain = [dg.AssetKey("trace_performance"), dg.AssetKey("hourly_performance")]
    hours = {"dagster/asset_partition_range_start": FIRST, "dagster/asset_partition_range_end": LAST}

    def run() -> dg.ExecuteInProcessResult:
        return job.execute_in_process(asset_selection=chain, tags=hours, run_config=QUIET, raise_on_error=False)

    clean = run()
    assert clean.success
    assert all(check.passed for check in clean.get_asset_check_evaluations())
    assert len(clean.get_asset_check_evaluations()) == 6

    from monitoring_pipeline.orchestration.assets import performance
    from monitoring_pipeline.orchestration.checks import table_checks as real

    def planted(key: dg.AssetKey, table: Table, rows: Any) -> list[dg.AssetCheckResult]:
        return real(key, table, rows.withColumn("span_count", -rows["span_count"]))

    monkeypatch.setattr(performance, "table_checks", planted)
    result = run()
    assert not result.success
    assert result.get_asset_materialization_events() == []
    checked = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert set(checked) == {"schema_as_declared", "values_in_range"}
    assert not checked["values_in_range"].passed
    problems = str(checked["values_in_range"].metadata[PROBLEMS].value).splitlines()
    assert [line[:16] for line in problems if "span_count below 0" in line] == [
        f"{hour:%Y-%m-%d %H:%M}" for hour in WINDOW.hours()
    ]
