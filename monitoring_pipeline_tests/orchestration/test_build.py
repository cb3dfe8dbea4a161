"""The assets as Dagster runs them: single hours, ranges, re-runs, a scorer added or changed."""

from __future__ import annotations

import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from monitoring_pipeline.keys import DAILY_REPORT, MONITORING, RANGE_END, RANGE_START, RESULTS_IN_MLFLOW, scorer_key
from monitoring_pipeline.orchestration.assets.write_back import RESULTS_SENT
from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.orchestration.runs import QUIET
from monitoring_pipeline.resources.build import build_resources
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.settings import (
    SHIPPED_SCORERS,
    LakeSettings,
    MlflowSettings,
    ReportSettings,
    ScorerSettings,
    ScoringSettings,
    Settings,
)
from monitoring_pipeline.tables import (
    AGENT_TRACES,
    ASSESSMENTS,
    HOURLY_PERFORMANCE,
    SCORER_AGREEMENT,
    SCORER_COVERAGE,
    SUPERSEDED_ASSESSMENTS,
    TABLES,
    WRITTEN_BACK,
    Table,
)

FIRST, LAST = "2026-01-01-00:00", "2026-01-02-23:00"
HOURS = 48
# Columns that differ between two runs of the same work at different times.
TIMES = ["created_at", "assessed_at", "archived_at", "duration_ms", "dagster_run_id"]


def scorer(name: str, attribute: str | None = None, **values: object) -> ScorerSettings:
    return ScorerSettings.model_validate({"name": name, "scorer": f"{SHIPPED_SCORERS}:{attribute or name}", **values})


THREE = [scorer("response_quality"), scorer("tool_errors"), scorer("stage_latency", sample_rate=0.5)]


@dataclass
class Project:
    """A configured pipeline with its own Dagster instance."""

    settings: Settings
    instance: dg.DagsterInstance

    @property
    def lake(self) -> LakeResource:
        return build_resources(self.settings)["lake"]

    def with_scorers(self, scorers: list[ScorerSettings]) -> Project:
        return Project(self.settings.model_copy(update={"scorers": scorers}), self.instance)

    def definitions(self) -> dg.Definitions:
        return build_definitions(self.settings)

    def keys(self) -> set[dg.AssetKey]:
        return set(self.definitions().resolve_asset_graph().get_all_asset_keys())

    def run(
        self, first: str = FIRST, last: str = LAST, job: str = MONITORING, only: dg.AssetKey | None = None
    ) -> dg.ExecuteInProcessResult:
        return (
            self.definitions()
            .resolve_job_def(job)
            .execute_in_process(
                instance=self.instance,
                tags={RANGE_START: first, RANGE_END: last},
                run_config=QUIET,
                asset_selection=[only] if only else None,
            )
        )

    def rows(self, table: Table) -> pd.DataFrame:
        """The sorted rows of the table, without columns that differ between runs."""
        frame = self.lake.read(table).toPandas()
        frame = frame.drop(columns=[name for name in TIMES if name in frame.columns and name in _times_of(table)])
        return frame.sort_values(list(table.key), ignore_index=True)


def _times_of(table: Table) -> list[str]:
    if table is SUPERSEDED_ASSESSMENTS:  # its key has a time
        return []
    return TIMES if table is ASSESSMENTS else ["created_at", "assessed_at", "archived_at"]


def assert_same_rows(one: Project, other: Project, tables: tuple[Table, ...] = TABLES) -> None:
    for table in tables:
        left, right = one.rows(table), other.rows(table)
        assert len(left) == len(right), table.name
        pd.testing.assert_frame_equal(left.astype(str), right.astype(str), obj=table.name)


def make_project(folder: Path, store: str, scorers: list[ScorerSettings]) -> Project:
    settings = Settings(
        mlflow=MlflowSettings(tracking_uri=store, experiments=["airline"]),
        lake=LakeSettings(location=str(folder / "lake")),
        reports=ReportSettings(location=str(folder / "reports")),
        scorers=scorers,
    )
    return Project(settings, dg.DagsterInstance.ephemeral())


@pytest.fixture(scope="module")
def finished(recorded_store: str, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The recorded 48 hours, run once; to read only."""
    project = make_project(tmp_path_factory.mktemp("finished"), recorded_store, THREE)
    assert project.run().success
    return project


@pytest.fixture
def copied(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished project's lake, with a new instance."""
    shutil.copytree(finished.settings.lake.location, tmp_path / "lake")
    return make_project(tmp_path, finished.settings.mlflow.tracking_uri, THREE)


def test_every_asset_has_group_kinds_description_and_code_version(finished: Project) -> None:
    graph = finished.definitions().resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.group_name != "default", key
        assert node.kinds, key
        assert node.description, key
        assert node.code_version, key


def test_an_address_from_the_environment_is_shown_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "http://someone:secret@127.0.0.1:9"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", secret)
    resources = build_definitions(Settings()).resources
    assert resources is not None
    assert "secret" not in str(resources)
    assert resources["tracking"].process_config_and_initialize().tracking_uri == secret


def test_only_the_archive_reads_from_the_monitored_server(finished: Project) -> None:
    graph = finished.definitions().resolve_asset_graph()
    reads = {key: graph.get(key).tags["monitoring/reads"] for key in graph.get_all_asset_keys()}
    assert {key for key, source in reads.items() if source == "mlflow"} == {dg.AssetKey("archived_traces")}


def test_table_assets_show_their_columns(finished: Project) -> None:
    graph = finished.definitions().resolve_asset_graph()
    schema = graph.get(dg.AssetKey("hourly_performance")).metadata["dagster/column_schema"]
    assert [column.name for column in schema.columns][:3] == ["hour", "experiment_id", "trace_name"]


def test_each_hour_has_its_own_figures(finished: Project) -> None:
    records = finished.instance.fetch_materializations(dg.AssetKey("hourly_performance"), limit=HOURS).records
    assert len({record.partition_key for record in records}) == HOURS
    rows = finished.lake.read(HOURLY_PERFORMANCE).toPandas()
    for record in records:
        partition, materialization = record.partition_key, record.asset_materialization
        assert partition is not None
        assert materialization is not None
        hour = pd.Timestamp(f"{partition[:10]} {partition[11:]}")
        row = rows[(rows["hour"] == hour) & rows["trace_name"].isna()].iloc[0]
        metadata = {name: value.value for name, value in materialization.metadata.items()}
        assert metadata["trace_count"] == row["trace_count"]
        assert metadata["p95_duration_ms"] == pytest.approx(row["p95_duration_ms"])
        assert metadata["error_rate"] == pytest.approx(row["error_rate"])


def test_single_hours_and_a_range_write_the_same_rows(finished: Project, tmp_path: Path, recorded_store: str) -> None:
    by_hour = make_project(tmp_path, recorded_store, THREE)
    for hour in ("2026-01-01-05:00", "2026-01-01-06:00", "2026-01-02-23:00"):
        assert by_hour.run(hour, hour).success
    for table in TABLES:
        expected, found = finished.rows(table), by_hour.rows(table)
        hours = found[table.hour].unique()
        expected = expected[expected[table.hour].isin(hours)].reset_index(drop=True)
        pd.testing.assert_frame_equal(found.astype(str), expected.astype(str), obj=table.name)


def test_running_again_changes_no_row_and_scores_nothing(copied: Project, finished: Project) -> None:
    versions = {table.name: copied.lake.version(table) for table in (AGENT_TRACES, ASSESSMENTS, SCORER_COVERAGE)}
    assert copied.run("2026-01-01-18:00", "2026-01-02-05:00").success
    assert {
        table.name: copied.lake.version(table) for table in (AGENT_TRACES, ASSESSMENTS, SCORER_COVERAGE)
    } == versions
    assert_same_rows(copied, finished)


def test_a_backfill_of_a_new_scorer_changes_nothing_else(copied: Project, finished: Project) -> None:
    added = copied.with_scorers([*THREE, scorer("tool_selection_accuracy")])
    assert added.run(only=scorer_key("tool_selection_accuracy")).success
    assert set(added.instance.all_asset_keys()) == {scorer_key("tool_selection_accuracy")}
    assessments = added.rows(ASSESSMENTS)
    others = assessments[assessments["scorer"] != "tool_selection_accuracy"].reset_index(drop=True)
    pd.testing.assert_frame_equal(others.astype(str), finished.rows(ASSESSMENTS).astype(str))
    assert len(assessments) - len(others) == 100
    assert_same_rows(added, finished, tuple(table for table in TABLES if table.name not in CHANGED_BY_A_SCORER))


CHANGED_BY_A_SCORER = {"assessments", "not_applicable", "scorer_coverage"}


def test_a_changed_parameter_is_stale_and_scores_beside_the_old_digest(copied: Project) -> None:
    hours = ("2026-01-01-00:00", "2026-01-01-01:00")
    assert copied.run(*hours).success
    strict = scorer("response_quality", params={"min_characters": 500})
    changed = copied.with_scorers([strict, *THREE[1:]])
    graph = changed.definitions().resolve_asset_graph()
    resolver = CachingStaleStatusResolver(changed.instance, graph, LoadingContextForTest(changed.instance))
    key = scorer_key("response_quality")
    assert resolver.get_status(key, hours[0]) == StaleStatus.STALE
    assert "code version" in resolver.get_stale_causes(key, hours[0])[0].reason
    assert resolver.get_status(scorer_key("tool_errors"), hours[0]) == StaleStatus.FRESH

    before = copied.rows(ASSESSMENTS)
    assert changed.run(*hours, only=key).success
    after = changed.rows(ASSESSMENTS)
    own = after[after["scorer"] == "response_quality"]
    in_hours = own[own["trace_hour"] < pd.Timestamp("2026-01-01 02:00")]
    assert in_hours.groupby("scorer_digest").size().nunique() == 1
    assert in_hours["scorer_digest"].nunique() == 2
    kept = after[after["assessment_id"].isin(before["assessment_id"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept.astype(str), before.astype(str))


def test_a_ledger_that_does_not_add_up_blocks_quality(copied: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitoring_pipeline.derivations.ledger_problems", lambda *_: ["one trace is unaccounted for"])
    definitions = copied.definitions()
    result = definitions.resolve_job_def(MONITORING).execute_in_process(
        instance=copied.instance,
        tags={RANGE_START: "2026-01-01-00:00", RANGE_END: "2026-01-01-00:00"},
        run_config=QUIET,
        raise_on_error=False,
    )
    assert not result.success
    steps = {event.step_key for event in result.all_events if event.is_step_success}
    assert "scorer_coverage" not in steps or "hourly_quality" not in steps
    assert not result.asset_materializations_for_node("hourly_quality")


def test_the_report_of_a_day_is_written_and_named_on_its_partition(copied: Project) -> None:
    assert copied.run("2026-01-01", "2026-01-01", job=DAILY_REPORT).success
    record = copied.instance.fetch_materializations(dg.AssetKey("daily_report"), limit=1).records[0]
    assert record.asset_materialization is not None
    metadata = record.asset_materialization.metadata
    assert record.partition_key == "2026-01-01"
    assert Path(str(metadata["report"].value)).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert metadata["trace_count"].value == 370


def test_agreement_by_day_runs_before_the_report_that_shows_it(copied: Project) -> None:
    with_checker = copied.with_scorers([scorer("tool_errors", pass_if="<= 0", compare_with=["task_success"])])
    result = with_checker.run("2026-01-01", "2026-01-02", job=DAILY_REPORT)
    steps = [event.step_key for event in result.all_events if event.is_step_success]
    assert steps == ["scorer_agreement", "daily_report"]

    rows = with_checker.rows(SCORER_AGREEMENT)
    records = with_checker.instance.fetch_materializations(dg.AssetKey("scorer_agreement"), limit=9).records
    by_day = {record.partition_key: record.asset_materialization for record in records}
    assert list(rows["day"]) == [pd.Timestamp(day) for day in sorted(map(str, by_day))]
    for row in rows.itertuples():
        materialization = by_day[f"{row.day:%Y-%m-%d}"]
        assert materialization is not None
        metadata = {name: value.value for name, value in materialization.metadata.items()}
        assert metadata["tool_errors_task_success_agreement"] == pytest.approx(row.agreement)
        assert metadata.get("tool_errors_task_success_kappa", float("nan")) == pytest.approx(row.kappa, nan_ok=True)

    reports = Path(with_checker.settings.reports.location)
    first, both = (
        (reports / day / "report.md").read_text(encoding="utf-8").count(f"task\\_success | {compared} |")
        for day, compared in (
            ("2026-01-01", rows.loc[0, ["pass_pass", "pass_fail", "fail_pass", "fail_fail"]].sum()),
            ("2026-01-02", rows[["pass_pass", "pass_fail", "fail_pass", "fail_fail"]].sum().sum()),
        )
    )
    assert (first, both) == (1, 1)

    assert with_checker.run("2026-01-02", "2026-01-02", job=DAILY_REPORT).success
    pd.testing.assert_frame_equal(with_checker.rows(SCORER_AGREEMENT), rows)


def test_agreement_belongs_only_to_the_daily_job(finished: Project) -> None:
    jobs = {name: finished.definitions().resolve_job_def(name) for name in (MONITORING, DAILY_REPORT)}
    selected = {
        name: {key.to_user_string() for key in job.asset_layer.selected_asset_keys} for name, job in jobs.items()
    }
    assert selected[DAILY_REPORT] == {"scorer_agreement", "daily_report"}
    assert not selected[DAILY_REPORT] & selected[MONITORING]


WRITE_BACK = ScoringSettings(write_back=True)


def test_results_go_to_mlflow_only_if_configured(finished: Project) -> None:
    with_write_back = Project(finished.settings.model_copy(update={"scoring": WRITE_BACK}), finished.instance)
    added = with_write_back.keys() - finished.keys()
    assert added == {dg.AssetKey(RESULTS_IN_MLFLOW)}


def test_results_left_pending_by_a_dead_server_are_sent_with_the_next_hour(recorded_store: str, tmp_path: Path) -> None:
    shutil.copy(recorded_store.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    project = make_project(tmp_path, f"sqlite:///{tmp_path / 'mlflow.db'}", THREE)
    key, hours = dg.AssetKey(RESULTS_IN_MLFLOW), ("2026-01-01-05:00", "2026-01-01-06:00")
    assert project.run(*hours).success
    results = project.rows(ASSESSMENTS)
    first, both = (results["trace_hour"] == pd.Timestamp("2026-01-01 05:00")).sum(), len(results)

    def send(hour: str, store: str) -> tuple[bool, object]:
        """Whether the check passed, and the hour's pending results as Dagster plots them."""
        changes = {"scoring": WRITE_BACK, "mlflow": MlflowSettings(tracking_uri=store)}
        run = Project(project.settings.model_copy(update=changes), project.instance).run(hour, hour, only=key)
        [check] = [found for found in run.get_asset_check_evaluations() if found.check_name == RESULTS_SENT.name]
        assert check.severity == dg.AssetCheckSeverity.WARN
        materialization = project.instance.fetch_materializations(key, limit=1).records[0].asset_materialization
        assert materialization is not None
        assert materialization.partition == hour
        return check.passed, materialization.metadata["pending"].value

    store = project.settings.mlflow.tracking_uri
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        assert send(hours[0], f"http://127.0.0.1:{dead.getsockname()[1]}") == (False, first)
    assert send(hours[1], store) == (True, 0)
    assert (project.rows(WRITTEN_BACK)["outcome"] == "written").sum() == both
    trace_id = results["trace_id"][0]
    feedback = TrackingResource(tracking_uri=store).client.get_trace_info(trace_id).assessments
    assert {found.name for found in feedback} == set(results[results["trace_id"] == trace_id]["scorer"])


def test_a_range_without_traces_succeeds(tmp_path: Path, recorded_store: str) -> None:
    project = make_project(tmp_path, recorded_store, THREE)
    assert project.run("2026-03-01-00:00", "2026-03-01-05:00").success
    assert project.run("2026-03-01", "2026-03-01", job=DAILY_REPORT).success
    assert all(len(project.rows(table)) == 0 for table in TABLES)
