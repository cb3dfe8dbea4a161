"""Deletion on request: no byte of the user is left, all figures add up over the rest, and nothing comes back."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient

from monitoring_pipeline.archive.merging import archive
from monitoring_pipeline.archive.window import archive_window
from monitoring_pipeline.errors import LakeError, MonitoringError
from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.reports.files import write_report
from monitoring_pipeline.reports.in_mlflow import log_report
from monitoring_pipeline.reports.period import Period
from monitoring_pipeline.reports.reading import report_data
from monitoring_pipeline.reports.report import Report
from monitoring_pipeline.resources.build import build_resources
from monitoring_pipeline.resources.delta_folders import DeltaFolders
from monitoring_pipeline.resources.rows import from_dicts
from monitoring_pipeline.resources.tombstones import trace_digest
from monitoring_pipeline.scoring.coverage import ledger_problems
from monitoring_pipeline.scoring.isolation import IsolatedScorer
from monitoring_pipeline.scoring.registry import load_scorers
from monitoring_pipeline.scoring.run import score_window
from monitoring_pipeline.scoring.runner import PendingTrace
from monitoring_pipeline.tables import (
    AGENT_TRACES,
    ASSESSMENTS,
    DELETED_TRACES,
    HOURLY_PERFORMANCE,
    HOURLY_QUALITY,
    NOT_APPLICABLE,
    QUARANTINED_TRACES,
    SCORER_COVERAGE,
    TABLES,
    Table,
)
from monitoring_pipeline.traces.flatten import UnreadableTrace
from monitoring_pipeline.upkeep import deletion, others
from monitoring_pipeline.upkeep.recount import Recount, settled
from monitoring_pipeline_tests.cli.calling import calling
from monitoring_pipeline_tests.made_project import WINDOW, MadeProject
from monitoring_pipeline_tests.sources.stores import HOUR, START, trace_id
from monitoring_pipeline_tests.upkeep.conftest import project_in
from monitoring_pipeline_tests.upkeep.marks import ANN, MARK

ANNS = {trace_id(number) for number in (1, 3, 5)}


def holding(folder: Path, *words: str) -> list[str]:
    """The files under the folder that contain any of the words, in their bytes or in parquet values."""
    found = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        text = file.read_bytes().decode("utf-8", "replace")
        if file.suffix == ".parquet":
            text += json.dumps(pq.ParquetFile(file).read().to_pylist(), default=str, ensure_ascii=False)
        if any(word in text for word in words):
            found.append(str(file.relative_to(folder)))
    return found


def delete(project: MadeProject, *trace_ids: str, user: str | None = None) -> deletion.Deletion:
    lake = project.lake
    recount = Recount.of(project.settings, lake, build_resources(project.settings)["tracking"])
    instance = dg.DagsterInstance.ephemeral()
    return deletion.delete(lake, recount, instance, None, trace_ids, [user] if user else [], "ticket 7")


@dataclass(frozen=True)
class WithoutAnn:
    """The project after Ann's traces are deleted, to read only, and the result of the deletion."""

    project: MadeProject
    done: deletion.Deletion


@pytest.fixture(scope="module")
def without_ann(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> WithoutAnn:
    folder = tmp_path_factory.mktemp("without ann") / "run"
    shutil.copytree(run_folder, folder)
    run = project_in(folder)
    return WithoutAnn(run, delete(run, user=ANN))


def test_no_byte_of_the_user_is_left_in_lake_or_reports(run_folder: Path, without_ann: WithoutAnn) -> None:
    tables = {file.split("/")[0] for file in holding(run_folder / "lake", MARK, ANN)}
    assert tables >= {"agent_traces", "trace_errors", "assessments"}
    assert any("_change_data" in file for file in holding(run_folder / "lake", MARK))
    assert holding(run_folder / "reports", MARK)

    lake, reports = without_ann.project.folder / "lake", without_ann.project.folder / "reports"
    done = without_ann.done
    assert holding(lake, MARK, ANN, *ANNS) == []
    assert holding(reports, MARK, *ANNS) == []
    assert done.traces == 3
    assert {name: done.rows[name] for name in ("agent_traces", "trace_performance", "trace_errors", "assessments")} == {
        "agent_traces": 3,
        "trace_performance": 3,
        "trace_errors": 3,
        "assessments": 6,
    }
    assert [report.name for report in done.reports] == ["2026-01-01"]


def test_the_weeks_report_and_the_copies_in_mlflow_are_rewritten(run: MadeProject, tmp_path: Path) -> None:
    client = MlflowClient(run.settings.mlflow.tracking_uri)
    client.create_experiment("reports", artifact_location=str(tmp_path / "artifacts"))
    reports = run.settings.reports.model_copy(update={"log_to_experiment": "reports"})
    logged = MadeProject(run.folder, run.settings.model_copy(update={"reports": reports}))
    tracking = build_resources(logged.settings)["tracking"]
    for period in (Period.day(START.date()), Period.week_of(START.date())):
        report = Report(report_data(logged.lake, load_scorers(logged.settings.scorers), period))
        log_report(tracking, "reports", report, write_report(report, run.folder / "reports"))
    assert len(holding(tmp_path / "artifacts", *ANNS)) == len(holding(run.folder / "reports", *ANNS)) == 6

    done = delete(logged, user=ANN)

    assert [report.name for report in done.reports] == ["2026-01-01", "2026-W01"]
    assert holding(run.folder / "reports", MARK, *ANNS) == []
    assert holding(tmp_path / "artifacts", MARK, *ANNS) == []


def test_every_figure_is_computed_from_the_remaining_traces(without_ann: WithoutAnn) -> None:
    run = without_ann.project
    assert {row["trace_id"] for row in run.rows(AGENT_TRACES)} == {trace_id(number) for number in (0, 2, 4)}
    assert ledger_problems(run.lake, load_scorers(run.settings.scorers), WINDOW) == []
    assert {(row["archived"], row["scored"]) for row in run.rows(SCORER_COVERAGE)} == {(3, 3)}
    assert {row["trace_count"] for row in run.rows(HOURLY_PERFORMANCE)} == {3}
    assert {row["scored"] for row in run.rows(HOURLY_QUALITY)} == {3}


def test_an_hour_without_remaining_traces_has_no_figures(run: MadeProject) -> None:
    delete(run, *(trace_id(number) for number in range(6)))
    assert run.rows(SCORER_COVERAGE) == run.rows(HOURLY_PERFORMANCE) == run.rows(HOURLY_QUALITY) == []


def test_archiving_does_not_bring_deleted_traces_back(run: MadeProject) -> None:
    delete(run, trace_id(1))
    resources = build_resources(run.settings)
    counts = archive_window(run.settings.archive, resources["tracking"], run.lake, HOUR)

    assert (counts.deleted, counts.written) == (1, 0)
    assert trace_id(1) not in {row["trace_id"] for row in run.rows(AGENT_TRACES)}


def test_results_of_traces_that_were_deleted_while_they_were_scored_do_not_come_back(
    run: MadeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scorer,) = (scorer for scorer in load_scorers(run.settings.scorers) if scorer.name == "echo")
    scorer = replace(scorer, limits=replace(scorer.limits, concurrency=1))
    assess_one = IsolatedScorer.assess

    def assess_and_delete(self: IsolatedScorer, pending: PendingTrace) -> Any:
        found = assess_one(self, pending)
        if ANN in run.lake.read(AGENT_TRACES).toPandas()["user_id"].tolist():
            delete(run, user=ANN)
        return found

    monkeypatch.setattr(IsolatedScorer, "assess", assess_and_delete)
    for table in (ASSESSMENTS, NOT_APPLICABLE):
        ids = set(run.lake.read(table).toPandas()["assessment_id"])
        run.lake.remove(table, WINDOW, "assessment_id", ids)
    score_window(run.lake, scorer, WINDOW, "a run")

    assert {row["trace_id"] for row in run.rows(ASSESSMENTS)} == {trace_id(number) for number in (0, 2, 4)}
    assert ledger_problems(run.lake, [scorer], WINDOW) == []
    assert holding(run.folder / "lake", MARK, ANN) == []


@pytest.mark.parametrize("is_complete", [False, True])
def test_rows_written_during_a_deletion_are_removed_again(
    is_complete: bool, run: MadeProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = run.lake.read(ASSESSMENTS).drop("date").toArrow()
    rows = from_dicts(ASSESSMENTS, rows.to_pylist())
    merge = DeltaFolders.merge

    def merge_late(self: DeltaFolders, table: Table, *arguments: Any, **named: Any) -> int:
        if table is ASSESSMENTS:
            monkeypatch.undo()
            if is_complete:
                delete(run, user=ANN)
            else:
                places = deletion.find(run.lake, [], [ANN])
                deletion.request(run.lake, places, "ticket 8")
        return merge(self, table, *arguments, **named)

    monkeypatch.setattr(DeltaFolders, "merge", merge_late)
    run.lake.upsert(ASSESSMENTS, rows)

    assert {row["trace_id"] for row in run.rows(ASSESSMENTS)}.isdisjoint(ANNS)
    assert deletion.has_unfinished(run.lake)
    recount = Recount.of(run.settings, run.lake, build_resources(run.settings)["tracking"])
    deletion.carry_out(run.lake, recount, dg.DagsterInstance.ephemeral(), None)
    assert not deletion.has_unfinished(run.lake)
    assert holding(run.folder / "lake", MARK, ANN) == []


def test_the_record_of_a_request_contains_nothing_about_the_user(without_ann: WithoutAnn) -> None:
    rows = without_ann.project.rows(DELETED_TRACES)
    assert {row["trace_digest"] for row in rows} == set(map(trace_digest, ANNS))
    assert {row["request_reference"] for row in rows} == {"ticket 7"}
    assert all(row["completed_at"] >= row["requested_at"] for row in rows)


def test_the_ledger_of_an_older_digest_adds_up_too(run: MadeProject) -> None:
    for table in (SCORER_COVERAGE, ASSESSMENTS):
        rows = [{**row, "scorer_digest": "old"} for row in run.rows(table)]
        for row in rows:
            row |= {"assessment_id": f"old {row['assessment_id']}"} if table is ASSESSMENTS else {}
        run.lake.upsert(table, from_dicts(table, rows))
    delete(run, trace_id(1))

    of_old = [row for row in run.rows(SCORER_COVERAGE) if row["scorer_digest"] == "old"]
    assert [(row["archived"], row["scored"]) for row in of_old] == [(5, 5), (5, 5)]
    assert ledger_problems(run.lake, load_scorers(run.settings.scorers), WINDOW) == []


PARTS = ("scored", "failed", "declined", "other", "unsampled", "pending", "over_budget")


@given(
    st.tuples(*[st.integers(0, 30)] * 7).map(
        lambda n: dict(
            zip(("scored", "failed", "declined", "other", "unsampled", "pending", "over_budget"), n, strict=True)
        )
    ),
    st.data(),
)
@settings(max_examples=200, deadline=None)
def test_a_settled_line_adds_up_over_the_remaining_traces(parts: dict[str, int], data: st.DataObject) -> None:
    with_result = ("scored", "failed", "declined")
    left = {name: data.draw(st.integers(0, parts[name])) for name in parts}
    line = {
        "archived": sum(parts.values()),
        "filtered_out": parts["declined"] + parts["other"],
        "unsampled": parts["unsampled"],
        "eligible": parts["scored"] + parts["failed"] + parts["pending"] + parts["over_budget"],
        "scored": parts["scored"],
        "failed": parts["failed"],
        "over_budget": parts["over_budget"],
        "pending": parts["pending"],
        "not_applicable": parts["declined"],
    }
    new = settled(line, sum(left.values()), *(left[name] for name in with_result))
    assert new["archived"] == sum(left.values()) == new["eligible"] + new["filtered_out"] + new["unsampled"]
    assert new["eligible"] == new["scored"] + new["failed"] + new["over_budget"] + new["pending"]
    assert (new["scored"], new["failed"], new["not_applicable"]) == tuple(left[name] for name in with_result)
    assert all(value >= 0 for value in new.values())


def test_an_interrupted_deletion_is_completed_by_the_next(run: MadeProject, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(DeltaFolders, "purge", lambda *arguments: (_ for _ in ()).throw(LakeError("no disk")))
        with pytest.raises(LakeError, match="no disk"):
            delete(run, user=ANN)
    assert deletion.has_unfinished(run.lake)
    assert holding(run.folder / "lake", MARK)

    delete(run, trace_id(0))
    assert not deletion.has_unfinished(run.lake)
    assert holding(run.folder / "lake", MARK, ANN) == []


def test_unreadable_traces_of_the_user_are_deleted_too(run: MadeProject) -> None:
    mine = UnreadableTrace("tr-mine", START, "broken", f"TraceInfo(user={ANN!r})")
    other = UnreadableTrace("tr-other", START, "broken", f"TraceInfo(user='{ANN}2')")
    archive(run.lake, HOUR, [[mine, other]], {})
    delete(run, user=ANN)
    assert [row["trace_id"] for row in run.rows(QUARANTINED_TRACES)] == ["tr-other"]


def test_results_on_a_session_are_deleted_with_any_of_its_traces(run: MadeProject) -> None:
    [row, *_] = [row for row in run.rows(ASSESSMENTS) if row["trace_id"] == trace_id(1)]
    session = {**row, "assessment_id": "a-session", "scorer": "session", "session_id": "s1", "rationale": MARK + "s"}
    run.lake.upsert(ASSESSMENTS, from_dicts(ASSESSMENTS, [session]))
    delete(run, trace_id(3))
    left = run.rows(ASSESSMENTS)
    assert "a-session" not in {row["assessment_id"] for row in left}
    assert trace_id(1) in {row["trace_id"] for row in left}


@pytest.mark.parametrize(
    ("traces", "user", "message"),
    [
        (["tr-nowhere"], None, "no trace tr-nowhere in the lake"),
        ([], "nobody", "user 'nobody': the lake has no trace"),
        ([], None, "pass ids of traces or users"),
        (["x' OR '1'='1"], None, "no trace x' OR '1'='1"),
    ],
)
def test_unknown_ids_are_reported_and_nothing_is_deleted(
    run: MadeProject, traces: list[str], user: str | None, message: str
) -> None:
    before = run.versions()
    with pytest.raises(MonitoringError, match=message.replace("(", r"\(")):
        delete(run, *traces, user=user)
    assert run.versions() == before


def test_it_does_not_start_while_another_run_is_in_progress(run: MadeProject, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import timedelta

    from dagster._core.test_utils import create_run_for_test

    monkeypatch.setattr(others, "PATIENCE", timedelta(0))
    instance = dg.DagsterInstance.ephemeral()
    busy = create_run_for_test(instance, job_name="monitoring", status=dg.DagsterRunStatus.STARTED)
    recount = Recount.of(run.settings, run.lake, build_resources(run.settings)["tracking"])
    before = run.versions()
    with pytest.raises(MonitoringError, match=f"run {busy.run_id} of monitoring may be reading"):
        deletion.delete(run.lake, recount, instance, None, [trace_id(1)], [])
    assert run.versions() == before


def test_it_does_not_wait_for_runs_of_other_projects(run: MadeProject, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import timedelta

    from dagster._core.test_utils import create_run_for_test

    monkeypatch.setattr(others, "PATIENCE", timedelta(0))
    instance = dg.DagsterInstance.ephemeral()
    theirs = frozenset({dg.AssetKey(["billing", "archived_traces"]), dg.AssetKey("invoices")})
    for job_name, selection in (("billing_job", None), ("__ASSET_JOB", theirs)):
        create_run_for_test(instance, job_name=job_name, asset_selection=selection, status=dg.DagsterRunStatus.STARTED)
    recount = Recount.of(run.settings, run.lake, build_resources(run.settings)["tracking"])
    assert deletion.delete(run.lake, recount, instance, None, [trace_id(1)], []).traces == 1

    ours = frozenset({dg.AssetKey(["assessments", "tool_errors"])})
    create_run_for_test(instance, job_name="__ASSET_JOB", asset_selection=ours, status=dg.DagsterRunStatus.STARTED)
    with pytest.raises(MonitoringError, match="of __ASSET_JOB may be reading"):
        deletion.delete(run.lake, recount, instance, None, [trace_id(2)], [])


def test_the_job_deletes_and_reports_counts(run: MadeProject) -> None:
    job = build_definitions(run.settings).resolve_job_def("delete_traces_job")
    result = job.execute_in_process(
        run_config={
            "ops": {"delete_traces": {"config": {"user_ids": [ANN]}}},
            "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
        }
    )
    [output] = [event.step_output_data for event in result.all_events if event.is_successful_output]
    assert output.metadata["traces"].value == 3
    assert output.metadata["agent_traces/rows_removed"].value == 3
    assert holding(run.folder / "lake", MARK) == []


@pytest.mark.usefixtures("dagster_home")
def test_the_command_previews_and_deletes(
    run: MadeProject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = calling(monkeypatch, capsys, "delete")
    config = ("--config", str(run.configure()))
    before = run.versions()
    preview = call("--user-id", ANN, "--dry-run", *config)
    assert (preview.code, run.versions()) == (0, before)
    assert ["agent_traces", "3"] in preview.table()

    done = call("--user-id", ANN, "--reference", "ticket 7", *config)
    assert done.code == 0, done.error
    assert ["agent_traces", "3"] in done.table()
    assert "of Dagster for 3 trace ids" in done.out
    assert "words of theirs: nothing found" in done.out
    assert "not searched, because the pipeline does not know where they are" in done.out
    assert holding(run.folder / "lake", MARK) == []

    again = call("--user-id", ANN, *config)
    assert (again.code, "no trace of that user" in again.error) == (1, True)


def test_the_command_requires_something_to_delete(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calling(monkeypatch, capsys, "delete")().code == 2


def test_every_table_with_a_trace_id_is_searched() -> None:
    names = {table.name for table in TABLES if "trace_id" in table.schema.names}
    assert {table.name for table in deletion.OF_TRACES} == names
    assert deletion.OF_TRACES[-1] is AGENT_TRACES
