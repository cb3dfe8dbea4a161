"""Reports written by Dagster on the recorded conversations, against figures of MLflow and pandas."""

from __future__ import annotations

import json
import shutil
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Trace
from scipy.stats import norm

from monitoring_pipeline import api
from monitoring_pipeline.analysis.signatures import error_signature
from monitoring_pipeline.errors import LakeError, TrackingError
from monitoring_pipeline.keys import DAILY_REPORT, MONITORING, RANGE_END, RANGE_START, WEEKLY_REPORT
from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.orchestration.runs import QUIET
from monitoring_pipeline.reports.in_mlflow import log_report
from monitoring_pipeline.reports.period import Period
from monitoring_pipeline.reports.reading import report_data
from monitoring_pipeline.reports.report import Report
from monitoring_pipeline.resources.build import build_resources
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.scoring.registry import load_scorers
from monitoring_pipeline.settings import (
    LakeSettings,
    MlflowSettings,
    ReportSettings,
    ScorerSettings,
    Settings,
    UpkeepSettings,
)
from monitoring_pipeline_tests.made_project import scorer

FIRST, SECOND = date(2026, 1, 1), date(2026, 1, 2)
HOURS = ("2026-01-01-00:00", "2026-01-02-23:00")
WEEK = "2025-12-29"
SCORERS: list[ScorerSettings] = [
    scorer("response_quality"),
    scorer("tool_errors", pass_if="<= 0", compare_with=["task_success"]),
]


@dataclass(frozen=True)
class Recorded:
    """The recorded 48 hours, archived and scored, and a Dagster instance."""

    settings: Settings
    instance: dg.DagsterInstance

    @property
    def reports(self) -> Path:
        return Path(self.settings.reports.location)

    def having(self, **sections: Any) -> Recorded:
        return replace(self, settings=self.settings.model_copy(update=sections))

    def run(self, job: str, first: str, last: str) -> dg.ExecuteInProcessResult:
        return (
            build_definitions(self.settings)
            .resolve_job_def(job)
            .execute_in_process(
                instance=self.instance,
                tags={RANGE_START: first, RANGE_END: last},
                run_config=QUIET,
                raise_on_error=False,
            )
        )

    def report(self, name: str) -> dict[str, Any]:
        return json.loads((self.reports / name / "report.json").read_text(encoding="utf-8"))

    def metadata(self, asset: str) -> dict[str, dict[str, Any]]:
        """The metadata of the latest report of each partition in Dagster."""
        records = self.instance.fetch_materializations(dg.AssetKey(asset), limit=20).records
        return {
            str(record.partition_key): {
                name: value.value for name, value in record.asset_materialization.metadata.items()
            }
            for record in reversed(records)
            if record.asset_materialization
        }


@pytest.fixture(scope="module")
def recorded(recorded_store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    """Run once, with the reports of both days and of the week."""
    folder = tmp_path_factory.mktemp("reports")
    settings = Settings(
        mlflow=MlflowSettings(tracking_uri=recorded_store, experiments=["airline"]),
        lake=LakeSettings(location=str(folder / "lake")),
        reports=ReportSettings(location=str(folder / "reports"), mlflow_ui="http://user:secret@mlflow.example.org/"),
        scorers=SCORERS,
    )
    with dg.DagsterInstance.ephemeral() as instance:
        made = Recorded(settings, instance)
        assert made.run(MONITORING, *HOURS).success
        assert made.run(DAILY_REPORT, f"{FIRST}", f"{SECOND}").success
        assert made.run(WEEKLY_REPORT, WEEK, WEEK).success
        yield made


@pytest.fixture(scope="module")
def traces(recorded_traces: list[Trace]) -> pd.DataFrame:
    """The traces as MLflow has them, a row each."""
    return pd.DataFrame(
        {
            "trace_id": [trace.info.trace_id for trace in recorded_traces],
            "start": pd.to_datetime([trace.info.request_time for trace in recorded_traces], unit="ms", utc=True),
            "ms": [float(trace.info.execution_duration or 0) for trace in recorded_traces],
            "state": [str(trace.info.state.value) for trace in recorded_traces],
            "tokens": [(trace.info.token_usage or {})["total_tokens"] for trace in recorded_traces],
            "trace": recorded_traces,
        }
    )


@pytest.mark.parametrize(
    ("name", "first", "days"), [("2026-01-01", FIRST, 1), ("2026-01-02", SECOND, 1), ("2026-W01", FIRST, 2)]
)
def test_figures_equal_those_of_pandas_on_mlflows_traces(
    recorded: Recorded, traces: pd.DataFrame, name: str, first: date, days: int
) -> None:
    report = recorded.report(name)
    start = pd.Timestamp(first, tz="UTC")
    rows = traces[(traces["start"] >= start) & (traces["start"] < start + pd.Timedelta(days=days))]
    failed = rows["state"] == "ERROR"
    assert (report["total_requests"], report["error_count"]) == (len(rows), failed.sum())
    assert report["success_rate"] == pytest.approx((rows["state"] == "OK").mean())
    assert report["latency"] == pytest.approx(
        {"mean": rows["ms"].mean(), **{f"p{rank}": np.percentile(rows["ms"], rank) for rank in (50, 95, 99)}}
    )
    assert report["total_tokens"] == rows["tokens"].sum()
    if name.startswith("2026-01"):
        volume = rows.groupby(rows["start"].dt.hour).size()
        assert report["hourly_volume"] == {str(hour): count for hour, count in volume.items()}
    else:
        volume = rows.groupby(rows["start"].dt.strftime("%Y-%m-%d")).size()
        assert report["daily_volume"] == volume.to_dict()
    slowest = rows.sort_values(["ms", "trace_id"], ascending=[False, True]).head(5)
    assert [trace["trace_id"] for trace in report["worst_traces"]["slowest"]] == slowest["trace_id"].tolist()
    assert {trace["trace_id"] for trace in report["worst_traces"]["failed"]} <= set(rows[failed]["trace_id"])


def failures(traces: pd.DataFrame, day: date) -> Counter[tuple[str, str]]:
    """The number of failed traces of the day by signature, in the innermost span with the message."""
    found: Counter[tuple[str, str]] = Counter()
    for trace in traces[traces["start"].dt.date == day]["trace"]:
        spans = [span for span in trace.data.spans if span.status.status_code.value == "ERROR"]
        innermost = {span.status.description: span.name for span in spans}
        found.update({(error_signature(message), name) for message, name in innermost.items()})
    return found


def test_errors_are_counted_by_signature_and_new_if_no_earlier_day_had_them(
    recorded: Recorded, traces: pd.DataFrame
) -> None:
    first, second = failures(traces, FIRST), failures(traces, SECOND)
    reports = recorded.report("2026-01-01"), recorded.report("2026-01-02")
    for report, expected in zip(reports, (first, second), strict=True):
        assert {(e["signature"], e["span_name"]): e["trace_count"] for e in report["errors"]} == expected
    assert {error["is_new"] for error in reports[0]["errors"]} == {None}
    assert {
        (e["signature"], e["span_name"]) for e in reports[1]["errors"] if e["is_new"]
    } == second.keys() - first.keys()
    assert [report["compared_error_days"] for report in reports] == [0, 1]


def test_a_day_is_compared_with_the_day_before(recorded: Recorded, traces: pd.DataFrame) -> None:
    found = {
        change["measure"]: change
        for change in recorded.report("2026-01-02")["changes"]
        if change["experiment_id"] is None
    }
    errors = (traces["state"] == "ERROR").groupby(traces["start"].dt.date)
    rates, counts = errors.mean(), errors.size()
    rate = found["error_rate"]
    assert (rate["value"], rate["before"]) == pytest.approx((rates[SECOND], rates[FIRST]))
    assert found["trace_count"]["amount"] == pytest.approx(counts[SECOND] / counts[FIRST])
    assert {change["against"] for change in found.values()} == {"2026-01-01"}
    # Newcombe's interval, computed from Wilson's formula
    z = norm.ppf(0.995)

    def wilson(share: float, n: int) -> np.ndarray:
        middle, width = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
        return np.array([middle - width, middle + width]) / (1 + z**2 / n)

    own, before = wilson(rates[SECOND], counts[SECOND]), wilson(rates[FIRST], counts[FIRST])
    difference = rates[SECOND] - rates[FIRST]
    low = difference - np.hypot(rates[SECOND] - own[0], before[1] - rates[FIRST])
    high = difference + np.hypot(own[1] - rates[SECOND], rates[FIRST] - before[0])
    assert (rate["low"], rate["high"]) == pytest.approx((low, high), abs=1e-9)
    assert rate["beyond_noise"] == (not low <= 0 <= high)
    assert recorded.report("2026-01-01")["changes"] == []


def test_agreement_and_pass_rates_use_the_scorers_rules(recorded: Recorded) -> None:
    [agreement] = [row for row in recorded.report("2026-01-02")["agreement"] if row["scorer"] == "tool_errors"]
    assert agreement["reference_name"] == "task_success"
    assert agreement["compared"] > 50
    scorers = {row["scorer"]: row for row in recorded.report("2026-01-01")["scorers"]}
    low = recorded.report("2026-01-01")["worst_traces"]["low_scores"]
    assert scorers["tool_errors"]["pass_rate"] < 1
    assert {score["scorer"] for trace in low for score in trace["scores"]} <= scorers.keys()
    assert all(score["score"] > 0 for trace in low for score in trace["scores"] if score["scorer"] == "tool_errors")


def test_dagster_shows_the_path_of_the_report_and_a_preview(recorded: Recorded) -> None:
    for asset, key, name, title in (
        ("daily_report", "2026-01-01", "2026-01-01", "Daily"),
        ("weekly_report", WEEK, "2026-W01", "Weekly"),
    ):
        shown = recorded.metadata(asset)[key]
        for metadata, file in (("report", "html"), ("report_markdown", "md"), ("report_json", "json")):
            assert shown[metadata] == str(recorded.reports / name / f"report.{file}")
            assert Path(shown[metadata]).is_file()
        assert shown["preview"].startswith(f"# {title} quality report, {name}")
        assert "mlflow_run" not in shown
    assert recorded.metadata("daily_report")["2026-01-01"]["trace_count"] == 370
    assert recorded.metadata("weekly_report")[WEEK]["trace_count"] == 681


def test_links_lead_to_the_traces_and_show_no_credentials(recorded: Recorded, traces: pd.DataFrame) -> None:
    known = dict(zip(traces["trace_id"], (trace.info.experiment_id for trace in traces["trace"]), strict=True))
    for kind in recorded.report("2026-01-01")["worst_traces"].values():
        for trace in kind:
            assert trace["url"] == (
                f"http://mlflow.example.org/#/experiments/{known[trace['trace_id']]}/traces"
                f"?selectedEvaluationId={trace['trace_id']}&traceId={trace['trace_id']}"
            )
    for file in (recorded.reports / "2026-01-01").iterdir():
        assert "secret" not in file.read_text(encoding="utf-8")


def test_the_function_returns_the_content_of_the_file(recorded: Recorded) -> None:
    report = api.daily_quality_report(FIRST, recorded.settings)
    assert json.loads(json.dumps(report, default=lambda moment: moment.isoformat().replace("+00:00", "Z"))) == (
        recorded.report("2026-01-01")
    )
    assert report["date"] == FIRST
    assert report["hourly_volume"][0] > 0
    assert api.daily_quality_report(datetime(2026, 1, 1, 15, tzinfo=UTC), recorded.settings) == report


def test_the_default_is_yesterday_and_a_day_without_traces_is_reported_as_such(recorded: Recorded) -> None:
    report = api.daily_quality_report(settings=recorded.settings)
    assert report["date"] == datetime.now(UTC).date() - timedelta(days=1)
    assert (report["total_requests"], report["success_rate"], report["latency"]["p95"]) == (0, None, None)
    assert report["verdict"]["state"] == "empty"


def test_a_day_that_the_archive_no_longer_keeps_is_refused(recorded: Recorded) -> None:
    expired = recorded.having(upkeep=UpkeepSettings(keep_archive_days=30))
    with pytest.raises(LakeError, match="2026-01-01 00:00 is before"):
        api.daily_quality_report(FIRST, expired.settings)
    before = (recorded.reports / "2026-W01" / "report.json").read_bytes()
    assert not expired.run(WEEKLY_REPORT, WEEK, WEEK).success
    assert (recorded.reports / "2026-W01" / "report.json").read_bytes() == before


def test_an_earlier_day_that_is_no_longer_kept_is_compared_by_hourly_figures(recorded: Recorded) -> None:
    """Simulates that the archive of the first day is gone: its counts are known, its percentiles are not."""
    kept = datetime.now(UTC).date() - SECOND
    lake = build_resources(recorded.having(upkeep=UpkeepSettings(keep_archive_days=kept.days)).settings)["lake"]
    data = report_data(lake, load_scorers(SCORERS), Period.day(SECOND))
    before = data.totals[data.totals["period"] == "2026-01-01"]
    assert before["trace_count"].tolist() == [370, 370]
    assert before["experiment_id"].isna().tolist() == [True, False]
    assert before["p95_duration_ms"].isna().all()
    assert (data.known_errors, data.known_error_days) == (None, 0)  # else every error would be new


# --- in MLflow ---


@pytest.fixture
def logging(recorded: Recorded, tmp_path: Path) -> Iterator[Recorded]:
    """Reports are also logged to an experiment of the test's own store; with a Dagster instance of its own."""
    shutil.copy(recorded.settings.mlflow.tracking_uri.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    MlflowClient(store).create_experiment("reports", artifact_location=str(tmp_path / "artifacts"))
    having = recorded.having(
        mlflow=MlflowSettings(tracking_uri=store, experiments=["airline"]),
        reports=ReportSettings(location=str(tmp_path / "reports"), log_to_experiment="reports"),
    )
    with dg.DagsterInstance.ephemeral() as instance:
        yield replace(having, instance=instance)


def test_a_report_is_an_mlflow_run_that_is_updated_when_written_again(logging: Recorded) -> None:
    client = MlflowClient(logging.settings.mlflow.tracking_uri)
    experiment = client.get_experiment_by_name("reports")
    assert experiment is not None
    assert logging.run(WEEKLY_REPORT, WEEK, WEEK).success
    for _ in range(2):
        assert logging.run(DAILY_REPORT, f"{FIRST}", f"{FIRST}").success
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.run_name ASC"])
    assert [run.info.run_name for run in runs] == ["daily report 2026-01-01", "weekly report 2026-W01"]
    run = runs[0]
    assert logging.metadata("daily_report")["2026-01-01"]["mlflow_run"] == run.info.run_id
    assert run.info.status == "FINISHED"
    report = logging.report("2026-01-01")
    assert run.data.metrics == pytest.approx(
        {
            "total_requests": report["total_requests"],
            "error_rate": report["error_rate"],
            "p95_duration_ms": report["latency"]["p95"],
            "cost_usd": report["cost_usd"],
        }
    )
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {"report.html", "report.json", "report.md"}
    logged = Path(client.download_artifacts(run.info.run_id, "report.json"))
    assert logged.read_bytes() == (logging.reports / "2026-01-01" / "report.json").read_bytes()


def test_a_dead_server_does_not_lose_a_report(logging: Recorded) -> None:
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{dead.getsockname()[1]}"
        assert (
            logging.having(mlflow=MlflowSettings(tracking_uri=address))
            .run(DAILY_REPORT, f"{FIRST}", f"{FIRST}")
            .success
        )
    shown = logging.metadata("daily_report")["2026-01-01"]
    assert shown["mlflow_warning"].startswith("not logged: no MLflow server answers at http://127.0.0.1:")
    assert "mlflow_run" not in shown
    assert logging.report("2026-01-01")["total_requests"] == 370


def test_a_deleted_experiment_is_named(logging: Recorded, tmp_path: Path) -> None:
    store = logging.settings.mlflow.tracking_uri
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("reports")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    report = Report(report_data(build_resources(logging.settings)["lake"], [], Period.day(FIRST)))
    with pytest.raises(TrackingError, match="experiment 'reports' is deleted; restore it"):
        log_report(TrackingResource(tracking_uri=store), "reports", report, tmp_path)
