"""What Dagster's storage quotes of deleted traces is replaced, in SQLite and PostgreSQL; its records stay readable."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from monitoring_pipeline.compat.dagster import stored_texts
from monitoring_pipeline.keys import DELETE, NO_PREFIX
from monitoring_pipeline.orchestration.runs import QUIET
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.upkeep.dagster_records import forget, records_about
from monitoring_pipeline.upkeep.marks import Marks
from monitoring_pipeline_tests.postgres import PostgresServer, running

WORD, TRACE = "Quagga7391", "tr-0123456789abcdef0123456789abcdef"
TEXT = "say it without a mark"  # nothing marks it, so that only what quotes as a whole loses it
DAY = date(2026, 1, 1)
MARKS = Marks(frozenset({TRACE}), frozenset({WORD, TRACE.removeprefix("tr-")}))
DAYS = dg.DailyPartitionsDefinition("2025-12-01")


def report_of(name: str) -> dg.AssetsDefinition:
    """An asset whose run quotes a trace in its metadata, a check, and its log."""

    @dg.asset(name=name, partitions_def=DAYS, check_specs=[dg.AssetCheckSpec("works", asset=name)])
    def report() -> dg.MaterializeResult:
        dg.OpExecutionContext.get().log.warning(f"rejected {WORD}")
        quoted = {"most_frequent_error": f"{TEXT}: {TRACE}", "scored": 3}
        return dg.MaterializeResult(
            metadata={"preview": dg.MetadataValue.md(f"# {TEXT} {TRACE}"), "trace_count": 7},
            check_results=[dg.AssetCheckResult(check_name="works", passed=False, metadata=quoted)],
        )

    return report


@dg.asset(name="weekly_report", partitions_def=DAYS)
def failing() -> None:
    raise ValueError(TEXT)


@pytest.fixture(params=["sqlite", "postgres"])
def instance(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    home = tmp_path / "home"
    home.mkdir()
    settings = "telemetry:\n  enabled: false\n"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres").create("dagster_records")
        settings += f"storage:\n  postgres:\n    postgres_url: {url}\n"
    (home / "dagster.yaml").write_text(settings, encoding="utf-8")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield instance


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """A database server."""
    with running() as server:
        yield server


def materialize(instance: dg.DagsterInstance, asset: dg.AssetsDefinition, day: str = "2026-01-01") -> str:
    job = dg.Definitions([asset]).resolve_implicit_global_asset_job_def()
    run = job.execute_in_process(
        instance=instance, partition_key=day, raise_on_error=False, asset_selection=[asset.key], run_config=QUIET
    )
    return run.run_id


def texts(instance: dg.DagsterInstance, *run_ids: str) -> str:
    return "\n".join(text for stored in stored_texts(instance, run_ids) for text in stored.read(run_ids))


def test_texts_are_replaced_and_records_stay_readable(instance: dg.DagsterInstance, lake: LakeResource) -> None:
    ours, failed = materialize(instance, report_of("daily_report")), materialize(instance, failing)
    far, others = materialize(instance, report_of("daily_report"), "2025-12-10"), materialize(instance, report_of("x"))
    config = {"ops": {"delete_traces": {"config": {"user_ids": ["ann"], "trace_ids": [TRACE], "dry_run": False}}}}
    deleting = create_run_for_test(instance, job_name=DELETE, run_config=config)
    assert all(word in texts(instance, ours) for word in (WORD, TEXT, TRACE))
    assert TEXT in texts(instance, failed)
    before = {run_id: [*instance.all_logs(run_id)] for run_id in (far, others)}

    records = records_about(instance, NO_PREFIX, [DAY])
    assert set(records.run_ids) == {ours, failed, deleting.run_id}
    assert forget(lake, instance, records, MARKS, NO_PREFIX, None) > 0

    left = texts(instance, ours, failed, deleting.run_id)
    assert [line for line in left.split("\n") if any(word in line for word in (WORD, TEXT, TRACE, '"ann"'))] == []
    assert {run_id: [*instance.all_logs(run_id)] for run_id in (far, others)} == before
    materialized = instance.get_latest_materialization_event(dg.AssetKey("daily_report"))
    assert materialized is not None
    assert materialized.asset_materialization is not None
    assert materialized.asset_materialization.metadata["trace_count"].value == 7
    assert set(instance.get_materialized_partitions(dg.AssetKey("daily_report"))) == {"2025-12-10", "2026-01-01"}
    assert len([*instance.all_logs(failed)]) > 5
    kept = instance.get_run_by_id(deleting.run_id)
    assert kept is not None
    replaced = {"user_ids": ["[deleted on request]"], "trace_ids": ["[deleted on request]"], "dry_run": False}
    assert kept.run_config == {"ops": {"delete_traces": {"config": replaced}}}
