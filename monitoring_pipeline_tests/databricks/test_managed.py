"""Scorers that Databricks runs: the real clients of MLflow and databricks-agents against a double of the service."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Assessment, AssessmentError, AssessmentSource, Feedback, Trace
from mlflow.entities.trace_location import TraceLocation
from mlflow.genai.scorers import Scorer, scorer

from monitoring_pipeline import lifecycle
from monitoring_pipeline.archive.window import archive_window
from monitoring_pipeline.cli.doctor import examine
from monitoring_pipeline.databricks import agents, managed, managed_backfill
from monitoring_pipeline.databricks.managed import check_managed, remote_scorers
from monitoring_pipeline.databricks.managed_results import take_results, update_managed_ledger
from monitoring_pipeline.errors import MonitoringError, SettingsError
from monitoring_pipeline.keys import ASSETS, RANGE_END, RANGE_START, WHOLE_CHAIN_TAG, scorer_key
from monitoring_pipeline.lifecycle.plan import apply, plan
from monitoring_pipeline.orchestration.assets.archive import archive_assets
from monitoring_pipeline.orchestration.assets.assessments import assessment_assets
from monitoring_pipeline.orchestration.partitions import hourly
from monitoring_pipeline.orchestration.runs import QUIET, failures
from monitoring_pipeline.resources.build import build_resources
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.scoring.coverage import ledger_problems
from monitoring_pipeline.scoring.registry import load_scorers
from monitoring_pipeline.scoring.runner import assessment_id
from monitoring_pipeline.scoring.states import Change, LifecycleError, ScorerLog, ScorerState, Standing
from monitoring_pipeline.settings import (
    ArchiveSettings,
    LakeSettings,
    MlflowSettings,
    ScorerSettings,
    Settings,
    load_settings,
)
from monitoring_pipeline.tables import SCORER_COVERAGE
from monitoring_pipeline.windows import HOUR
from monitoring_pipeline_tests.databricks.managed_double import SCORERS, Backfill, Experiment, ManagedDouble
from monitoring_pipeline_tests.databricks.workspace_double import TOKEN, Answer, WorkspaceDouble, error, serving
from monitoring_pipeline_tests.forks import Fork
from monitoring_pipeline_tests.made_project import FIRST, LAST, WINDOW, MadeProject, traces
from monitoring_pipeline_tests.scoring.made import made_trace
from monitoring_pipeline_tests.sources.stores import START, Store, trace_id

HERE = __name__
SAFETY = ScorerSettings(name="safety", builtin="Safety", model="databricks", sample_rate=0.5, managed="databricks")
EVEN = ScorerSettings(
    name="is_even", scorer="monitoring_pipeline_tests.odd_scorers:even", sample_rate=1.0, managed="databricks"
)
PROD = "tags.env = 'prod'"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkspaceDouble]:
    """The test's own workspace, polled at short intervals."""
    for name in ("POLL_SECONDS", "ARCHIVAL_SECONDS"):
        monkeypatch.setattr(managed_backfill, name, 0.05)
    with serving(tmp_path / "workspace", monkeypatch) as double:
        yield double


@pytest.fixture
def service(workspace: WorkspaceDouble, server: str, tmp_path: Path) -> ManagedDouble:
    """Managed evaluation in the workspace."""
    return ManagedDouble(workspace, server, tmp_path / "archived", judge)


def judge(name: str, trace: Trace) -> Assessment | None:
    """Odd traces are unsafe; the judge fails on multiples of 7, and returns nothing for multiples of 11."""
    number = int(trace.info.trace_id.removeprefix("tr-"), 16)
    if number % 11 == 0:
        return None
    return feedback(name, number, "no" if number % 2 else "yes", broken=number % 7 == 0)


def feedback(
    name: str, number: int, value: Any, broken: bool = False, after: timedelta = timedelta(0), **given: Any
) -> Feedback:
    """Feedback on trace `number`, made now or that much later."""
    made_ms = round((datetime.now(UTC) + after).timestamp() * 1000)
    metadata = {
        "mlflow.assessment.scorerVersion": "1",
        "mlflow.assessment.judgeInputTokens": "100",
        "mlflow.assessment.judgeOutputTokens": "20",
        "mlflow.assessment.judgeCost": "0.0015",
    }
    made = Feedback(
        name=name,
        value=None if broken else value,
        error=AssessmentError("TIMED_OUT", "the judge <b>took</b> too long") if broken else None,
        trace_id=trace_id(number),
        rationale=f"because of {number}",
        create_time_ms=made_ms,
        last_update_time_ms=made_ms,
        **{"source": AssessmentSource("LLM_JUDGE", "databricks"), "metadata": metadata, **given},
    )
    made.assessment_id = f"a-{number}-{made_ms}-{value}"
    return made


@pytest.fixture
def settings_of(store: Store, request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Settings]:
    """Settings on Databricks, with the test's own experiment and lake and these scorers."""
    name = f"/Shared/{request.node.name}"
    MlflowClient(store.uri).create_experiment(name, artifact_location=store.file.parent.as_uri())
    return lambda *scorers: Settings(
        mlflow=MlflowSettings(tracking_uri="databricks", experiments=[name]),
        lake=LakeSettings(location=str(tmp_path / "lake")),
        archive=ArchiveSettings(source="delta", location=str(tmp_path / "archived")),
        scorers=list(scorers or (SAFETY,)),
    )


@pytest.fixture
def settings(service: ManagedDouble, settings_of: Callable[..., Settings]) -> Settings:
    """Settings with only the scorer `safety`."""
    return settings_of()


def experiment_of(settings: Settings, service: ManagedDouble) -> Experiment:
    return service.experiments[id_of(settings)]


def id_of(settings: Settings) -> str:
    (experiment_id,) = ScorerLog.of(settings).tracking.experiment_names()
    return experiment_id


def standing(settings: Settings, service: ManagedDouble, name: str = "safety") -> Any:
    """Rate, filter and version of the scorer in the service."""
    found = experiment_of(settings, service).scorer(name)
    return found and (found.get("sample_rate"), found.get("filter_string") or None, found["scorer_version"])


# The lifecycle


def test_each_change_is_also_made_on_databricks(settings: Settings, service: ManagedDouble) -> None:
    first = lifecycle.handle("safety", settings)
    assert (first.managed, first.drift, standing(settings, service)) == (True, None, None)

    registered = first.register()
    assert standing(settings, service) == (0.0, None, 1)
    assert (registered.mlflow_version, registered.managed, registered.note) == (1, True, None)
    sent = experiment_of(settings, service).scorer("safety")
    assert sent is not None
    rebuilt = Scorer.model_validate_json(sent["serialized_scorer"])
    assert (type(rebuilt).__name__, rebuilt.name, rebuilt.model) == ("Safety", "safety", "databricks")  # type: ignore
    assert sent["builtin"] == {"name": "safety"}

    started = registered.start(sample_rate=0.25, filter=PROD)
    assert standing(settings, service) == (0.25, PROD, 1)
    updated = started.update(sample_rate=0.75)
    assert standing(settings, service) == (0.75, PROD, 1)
    updated = updated.update(filter="")
    assert standing(settings, service) == (0.75, None, 1)
    stopped = updated.stop()
    assert standing(settings, service) == (0.0, None, 1)
    assert stopped.sample_rate == 0.75
    again = stopped.start()
    assert standing(settings, service) == (0.75, None, 1)
    assert lifecycle.handle("safety", settings) == again
    gone = again.delete()
    assert standing(settings, service) is None
    assert gone.state is lifecycle.ScorerState.UNREGISTERED
    assert [entry.action for entry in lifecycle.history("safety", settings)] == [
        "register", "start", "update", "update", "stop", "start", "delete",
    ]  # fmt: skip


def test_a_rate_of_zero_is_a_stopped_scorer_on_databricks(settings: Settings, service: ManagedDouble) -> None:
    handle = lifecycle.handle("safety", settings).register().start(sample_rate=0)
    assert handle.state is lifecycle.ScorerState.ACTIVE
    assert standing(settings, service) == (0.0, None, 1)


def test_a_plan_registers_and_starts_functions_and_judges(
    service: ManagedDouble, settings_of: Callable[..., Settings]
) -> None:
    settings = settings_of(SAFETY, EVEN)
    apply(plan(settings))
    assert standing(settings, service) == (0.5, None, 1)
    assert standing(settings, service, "is_even") == (1.0, None, 1)
    sent = experiment_of(settings, service).scorer("is_even")
    assert sent is not None
    assert sent["custom"] == {}
    assert "% 5 == 0" in json.loads(sent["serialized_scorer"])["call_source"]
    assert plan(settings) == []
    before = len(service.requests_to("PATCH", f"scheduled-scorers/{id_of(settings)}"))
    lifecycle.handle("is_even", settings).register()
    assert len(service.requests_to("PATCH", f"scheduled-scorers/{id_of(settings)}")) == before


def test_changed_code_becomes_a_new_version_on_databricks_and_keeps_running(
    service: ManagedDouble, settings_of: Callable[..., Settings]
) -> None:
    apply(plan(settings_of(EVEN)))
    changed = settings_of(EVEN.model_copy(update={"scorer": f"{HERE}:unlike_even"}))
    (change,) = plan(changed)
    assert set(change.fields) == {"digest"}
    (handle,) = apply([change])
    assert standing(changed, service, "is_even") == (1.0, None, 2)
    assert (handle.version, handle.mlflow_version) == (2, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_rate": 0.9}, "rate 0.9 there, 0.5 here"),
        ({"sample_rate": None}, "rate 0 there, 0.5 here"),
        ({"filter_string": PROD}, f"filter {PROD} there, none here"),
        ({"serialized_scorer": json.dumps({"name": "safety", "call_source": "raise SystemExit"})}, "other code there"),
        (None, "not registered there"),
    ],
)
def test_changes_made_on_databricks_are_shown_and_reverted(
    settings: Settings, service: ManagedDouble, changes: dict[str, Any] | None, message: str
) -> None:
    apply(plan(settings))
    experiment = experiment_of(settings, service)
    experiment.scorers = [] if changes is None else [{**experiment.scorers[0], **changes}]

    assert lifecycle.handle("safety", settings).drift == f"{settings.mlflow.experiments[0]}: {message}"
    (change,) = plan(settings)
    assert change.fields == {"databricks": (f"{settings.mlflow.experiments[0]}: {message}", "as configured")}
    finding = next(finding for finding in examine(settings) if finding.subject == "databricks")
    assert message in finding.detail
    apply([change])
    assert plan(settings) == []
    assert (standing(settings, service) or ())[:2] == (0.5, None)


def test_a_scorer_that_is_no_longer_configured_is_deleted_on_databricks(
    service: ManagedDouble, settings_of: Callable[..., Settings]
) -> None:
    apply(plan(settings_of(SAFETY, EVEN)))
    settings = settings_of(SAFETY)
    with pytest.raises(LifecycleError, match="cannot stop scorer 'is_even': it is not configured"):
        lifecycle.handle("is_even", settings).stop()
    (change,) = plan(settings)
    apply([change])
    assert standing(settings, service, "is_even") is None
    assert standing(settings, service) == (0.5, None, 1)


def test_the_twenty_first_scorer_of_an_experiment_is_refused(settings: Settings, service: ManagedDouble) -> None:
    experiment = experiment_of(settings, service)
    experiment.scorers = [
        {"name": f"theirs_{n}", "serialized_scorer": "{}", "sample_rate": 0.1, "scorer_version": 1} for n in range(20)
    ]
    service.page = 7
    with pytest.raises(
        LifecycleError, match=r"has 20 scorers, but Databricks runs at most 20; delete one of theirs_0, "
    ):
        lifecycle.handle("safety", settings).register()
    assert lifecycle.handle("safety", settings).state is lifecycle.ScorerState.UNREGISTERED


def test_a_refusal_changes_nothing_here_and_is_reported(
    settings: Settings, service: ManagedDouble, workspace: WorkspaceDouble
) -> None:
    handle = lifecycle.handle("safety", settings).register()
    path = f"{SCORERS}/{id_of(settings)}"
    workspace.answer_next(9, error(403, "PERMISSION_DENIED", f"No access to {path}"), path)
    with pytest.raises(MonitoringError, match=r"denies access: No access to .*; check DATABRICKS_HOST") as refused:
        handle.start()
    assert "\n" not in str(refused.value)
    workspace._faults.clear()
    assert lifecycle.handle("safety", settings) == handle


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_temporary_failure_of_the_service_is_retried(
    settings: Settings, service: ManagedDouble, workspace: WorkspaceDouble, status: int
) -> None:
    code = {429: "RESOURCE_EXHAUSTED", 500: "INTERNAL_ERROR", 503: "TEMPORARILY_UNAVAILABLE"}[status]
    workspace.answer_next(1, Answer(status, {"error_code": code, "message": "busy"}, {"Retry-After": "0"}), SCORERS)
    lifecycle.handle("safety", settings).register().start()
    assert standing(settings, service) == (0.5, None, 1)


def test_the_token_is_in_no_error_and_no_log(
    settings: Settings,
    workspace: WorkspaceDouble,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    handle = lifecycle.handle("safety", settings)
    experiment_id, judge_of_safety = id_of(settings), load_scorers([SAFETY])[0].scorer

    def by_mlflow() -> None:
        with agents.at_databricks():
            judge_of_safety.stop(name="safety", experiment_id=experiment_id)

    monkeypatch.setattr(logging.getLogger("mlflow"), "propagate", True)
    calls: list[Callable[[], Any]] = [handle.register, by_mlflow, lambda: managed.run_every(experiment_id, 15)]
    for call in calls:
        # Not JSON: the SDK's error then quotes the request with its headers.
        for fault in (Answer(500, b"<html>no", {}), Answer(418, b"?", {})):
            workspace.answer_next(1000, fault, "managed-evals")
            monkeypatch.setattr(agents, "RETRY_SECONDS", 0.1)
            monkeypatch.setattr("monitoring_pipeline.databricks.workspace.RETRY_SECONDS", 0.1)
            with pytest.raises(MonitoringError) as refused:
                call()
            assert "\n" not in str(refused.value)
            assert TOKEN not in str(refused.value)
            workspace._faults.clear()
    printed = capsys.readouterr()
    assert "Max retries (1) exceeded" in caplog.text
    assert TOKEN not in caplog.text + printed.out + printed.err


def test_the_rest_of_the_process_is_unchanged(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    before = (mlflow.get_tracking_uri(), mlflow.get_registry_uri(), os.environ.get("MLFLOW_REGISTRY_URI"))
    apply(plan(settings))
    managed.run_every(id_of(settings), 30)
    assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri(), os.environ.get("MLFLOW_REGISTRY_URI")) == before
    assert capsys.readouterr().out == ""


def test_source_code_from_databricks_is_not_executed_to_compare_it(
    settings: Settings, service: ManagedDouble, tmp_path: Path
) -> None:
    proof = tmp_path / "run"
    signature = f"(outputs, x=__import__('pathlib').Path({str(proof)!r}).touch())"
    theirs = {
        **json.loads(json.dumps(load_scorers([EVEN])[0].scorer.model_dump())),
        "call_signature": signature,
    }
    entry = {"name": "theirs", "serialized_scorer": json.dumps(theirs), "sample_rate": 1.0}
    experiment_of(settings, service).scorers = [entry]
    assert remote_scorers(id_of(settings))["theirs"].sample_rate == 1.0
    assert plan(settings)
    assert not proof.exists()


# What Databricks can run


@scorer
def unlike_even(trace: Trace) -> bool:
    """The same in other words."""
    from re import search

    return search("[02468ace]$", trace.info.trace_id) is not None


@scorer
def inline(outputs: Any) -> bool: return bool(outputs)  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"scorer": f"{HERE}:inline"}, "MLflow loses a body on the same line as its def; write it on separate lines"),
        ({"scorer": "monitoring_pipeline_tests.odd_scorers:number"}, "it uses re from outside its function; import"),
        (
            {"scorer": "monitoring_pipeline_tests.scoring.sample_scorers:at_least_10"},
            "it uses least, words from outside its function",
        ),
        (
            {"scorer": "monitoring_pipeline_tests.scoring.sample_scorers:characters", "params": {"least": 1}},
            "MLflow stores a function's source but not its params",
        ),
        ({"scorer": "monitoring_pipeline_tests.scoring.sample_scorers:flight"}, "it is a Keyword; write it as a func"),
        ({"builtin": "Safety", "model": "openai:/gpt-4o-mini"}, "its model is openai:/gpt-4o-mini, but must be"),
        ({"builtin": "Safety"}, "its model is openai:/gpt-4.1-mini, but must be a Databricks model; set model = "),
        ({"builtin": "UserFrustration", "model": "databricks"}, "it scores sessions, whose boundaries this pipeline"),
    ],
)
def test_a_scorer_that_databricks_cannot_run_is_refused_in_one_line(entry: dict[str, Any], problem: str) -> None:
    tracking = TrackingResource(tracking_uri="databricks", experiments=["/Shared/agent"])
    loaded = load_scorers([ScorerSettings(name="it", managed="databricks", **entry)])
    with pytest.raises(SettingsError) as refused:
        check_managed(tracking, loaded)
    (line,) = refused.value.problems
    assert line.startswith(f"scorer 'it' is managed by Databricks: {problem}")
    check_managed(tracking, load_scorers([ScorerSettings(name="it", **entry)]))


@pytest.mark.parametrize(
    "entry",
    [
        {"scorer": "monitoring_pipeline_tests.odd_scorers:even"},
        {"scorer": "monitoring_pipeline.scoring.scorers:response_quality"},
        {"scorer": "monitoring_pipeline.scoring.scorers:tool_selection_accuracy"},
        {"builtin": "Safety", "model": "databricks:/databricks-gpt-5-mini"},
        {"builtin": "RegexMatch", "params": {"pattern": "x"}},
        {"builtin": "make_judge", "model": "databricks", "params": {"instructions": "Is {{ outputs }} polite?"}},
    ],
)
def test_a_scorer_that_databricks_can_run_is_rebuilt_by_mlflow_and_accepted(
    entry: dict[str, Any], settings_of: Callable[..., Settings], service: ManagedDouble
) -> None:
    settings = settings_of(ScorerSettings(name="it", managed="databricks", **entry))
    lifecycle.handle("it", settings).register()
    sent = experiment_of(settings, service).scorer("it")
    assert sent is not None
    serialized = json.loads(sent["serialized_scorer"])
    with agents.at_databricks():
        rebuilt = Scorer.model_validate(serialized)
    assert rebuilt.name == "it"
    assert (serialized["call_source"] is None) == ("scorer" not in entry)


def test_it_needs_databricks_and_names_of_experiments() -> None:
    tracking = TrackingResource(tracking_uri="postgresql://me:secret@host/db")
    with pytest.raises(SettingsError) as refused:
        check_managed(tracking, load_scorers([SAFETY]))
    assert refused.value.problems == [
        "[mlflow] tracking_uri = 'postgresql://***@host/db': managed scorers need 'databricks' (and "
        "DATABRICKS_CONFIG_PROFILE for a profile)",
        "[mlflow] experiments is empty: managed scorers need the experiments that Databricks scores",
    ]


def test_more_scorers_than_databricks_accepts_are_refused() -> None:
    tracking = TrackingResource(tracking_uri="databricks", experiments=["/Shared/agent"])
    many = load_scorers([SAFETY.model_copy(update={"name": f"safety_{n}"}) for n in range(21)])
    with pytest.raises(SettingsError, match=r"^21 scorers are managed; Databricks runs at most 20 per experiment$"):
        check_managed(tracking, many)
    check_managed(tracking, many[:20])


@pytest.mark.parametrize("limit", ["concurrency", "requests_per_minute", "max_usd_per_day", "max_traces_per_hour"])
def test_limits_that_nobody_would_enforce_are_refused(tmp_path: Path, limit: str) -> None:
    file = tmp_path / "monitoring.toml"
    file.write_text(
        f'[[scorers]]\nname = "safety"\nbuiltin = "Safety"\nmodel = "databricks"\nmanaged = "databricks"\n{limit} = 1\n'
    )
    with pytest.raises(
        SettingsError, match=f"{limit} cannot be enforced with managed = 'databricks', which calls the model"
    ):
        load_settings(file)


def test_without_the_package_each_error_names_what_to_install(settings: Settings, tmp_path: Path) -> None:
    apply(plan(settings))
    program = f"""
import sys
for name in ("databricks.agents", "databricks.agents.scorers", "databricks.agents.archive", "databricks.rag_eval"):
    sys.modules[name] = None
from datetime import UTC, datetime, timedelta
from monitoring_pipeline import api, cli, lifecycle
from monitoring_pipeline.databricks import managed, managed_backfill
from monitoring_pipeline.cli.doctor import examine
from monitoring_pipeline.resources.build import build_resources
from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.scoring.registry import load_scorers
from monitoring_pipeline.settings import Settings
from monitoring_pipeline.windows import Window
settings = Settings.model_validate_json({settings.model_dump_json()!r})
handle = lifecycle.handle("safety", settings)
window = Window(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC))
resources = build_resources(settings)
code = load_scorers(settings.scorers)[0]
calls = [
    handle.stop,
    handle.delete,
    lambda: managed.run_every("1", 15),
    lambda: managed_backfill.backfill(resources["tracking"], resources["lake"], code, window, print),
    lambda: api.enable_trace_archival("main", "monitoring", settings=settings),
]
for call in calls:
    try:
        call()
    except MonitoringError as error:
        print(error)
print([finding.detail for finding in examine(settings) if finding.subject == "databricks"][0])
"""
    output, errors = tmp_path / "output", tmp_path / "errors"
    ran = Fork(exec, (program, {}), tmp_path, os.environ, output, errors)
    assert ran.wait() == 0, errors.read_text()
    lines = output.read_text().splitlines()
    assert len(lines) == 6
    line = "managed scorers and trace archival need the package databricks-agents; run pip install 'monitoring"
    assert all(found.startswith(line) for found in lines)


def test_nothing_imports_the_package_at_start_up(tmp_path: Path) -> None:
    program = (
        "import sys, monitoring_pipeline.definitions, monitoring_pipeline.cli.app, monitoring_pipeline.api; "
        "print([n for n in sys.modules if n.startswith(('databricks.agents', 'databricks.rag_eval'))])"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ran.stdout.strip() == "[]", ran.stderr


# Backfills and results


@dataclass(frozen=True)
class Run:
    """A project at Databricks, whose 40 traces are archived there, and the Dagster that runs it."""

    settings: Settings
    service: ManagedDouble
    instance: dg.DagsterInstance

    @property
    def project(self) -> MadeProject:
        return MadeProject(Path(self.settings.lake.location).parent, self.settings)

    def definitions(self) -> dg.Definitions:
        hours, source = hourly(self.settings.archive.start), self.settings.archive
        scorers = load_scorers(self.settings.scorers)
        return dg.Definitions(
            assets=[*archive_assets(hours, source), *assessment_assets(hours, scorers, 168, None, source)],
            jobs=[
                dg.define_asset_job("monitoring", selection=dg.AssetSelection.all(), run_tags={WHOLE_CHAIN_TAG: "true"})
            ],
            resources=build_resources(self.settings),
        )

    def run(self, *keys: str, job: str = ASSETS, **config: Any) -> dg.ExecuteInProcessResult:
        """Run the scorers' assets, or the assets given, over the four hours."""
        ops = {f"assessments__{name}": {"config": config} for name in keys} if config else {}
        return (
            self.definitions()
            .resolve_job_def(job)
            .execute_in_process(
                instance=self.instance,
                asset_selection=[scorer_key(name) for name in keys] or None,
                tags={RANGE_START: FIRST, RANGE_END: LAST},
                run_config={**QUIET, "ops": ops},
                raise_on_error=False,
            )
        )

    def ledger(self, *columns: str) -> list[int]:
        """The sums of the ledger's columns."""
        lines = self.project.rows(SCORER_COVERAGE)
        return [sum(line[name] for line in lines) for name in columns]

    def problems(self) -> list[str]:
        return ledger_problems(self.project.lake, load_scorers(self.settings.scorers), WINDOW)


COUNTS = ("archived", "filtered_out", "unsampled", "eligible", "scored", "failed", "pending")


@pytest.fixture
def run(settings: Settings, service: ManagedDouble) -> Iterator[Run]:
    """A project with `safety` registered and started; its traces are only in Databricks' archive."""
    made = traces()
    for trace in made:
        trace.info.trace_location = TraceLocation.from_experiment_id(id_of(settings))
    service.archived(made)
    apply(plan(settings))
    with dg.DagsterInstance.ephemeral() as instance:
        yield Run(settings, service, instance)


def expected(service: ManagedDouble) -> dict[str, Assessment]:
    """The last assessment of each trace by the double."""
    return {trace.info.trace_id: trace.info.assessments[-1] for trace in service.traces if trace.info.assessments}


def test_databricks_runs_a_backfill_and_its_results_are_read(run: Run) -> None:
    assert run.run("safety").success

    (request,) = run.service.requests_to("POST", f"scheduled-scorers/{id_of(run.settings)}/backfill")
    assert request == {
        "experiment_id": id_of(run.settings),
        "endpoint_name": f"monitor-{id_of(run.settings)}",
        "scorer_sample_rates": [{"name": "safety", "sample_rate": 0.5}],
        "start_timestamp_ms": 1_767_243_600_000,
        "end_timestamp_ms": 1_767_243_600_000 + 4 * 3_600_000,
        "trace_ids": None,
    }
    there = expected(run.service)
    rows = {row["trace_id"]: row for row in run.project.rows()}
    assert 10 < len(there) < 30
    assert set(rows) == set(there)
    (code,) = load_scorers(run.settings.scorers)
    for trace, assessment in there.items():
        given, row = assessment.feedback, rows[trace]
        assert given is not None
        number = int(trace.removeprefix("tr-"), 16)
        assert row["trace_hour"] == START + number // 10 * HOUR
        assert (row["scorer"], row["scorer_digest"], row["scorer_version"]) == ("safety", code.digest, 1)
        assert row["assessment_id"] == assessment_id(trace, code)
        assert (row["experiment_id"], row["sample_rate"]) == (id_of(run.settings), 0.5)
        assert (row["rationale"], row["source_type"]) == (f"because of {number}", "LLM_JUDGE")
        assert (row["input_tokens"], row["output_tokens"], row["cost_usd"]) == (100, 20, 0.0015)
        assert row["assessed_at"].timestamp() * 1000 == assessment.last_update_time_ms
        if number % 7 == 0:
            assert (row["error_code"], row["error_message"]) == ("TIMED_OUT", "the judge <b>took</b> too long")
            assert (row["value"], row["score"]) == (None, None)
        else:
            assert (json.loads(row["value"]), row["score"]) == (given.value, 0.0 if number % 2 else 1.0)
            assert row["error_code"] is None
    failed = sum(int(trace.removeprefix("tr-"), 16) % 7 == 0 for trace in there)
    assert run.ledger(*COUNTS) == [40, 0, 40 - len(there), len(there), len(there) - failed, failed, 0]
    assert run.problems() == []


def test_the_hourly_chain_scores_nothing_and_reads_existing_results(run: Run) -> None:
    assert run.run(job="monitoring").success
    assert run.service.requests_to("POST", f"scheduled-scorers/{id_of(run.settings)}/backfill") == []
    assert run.ledger(*COUNTS) == [40, 0, 0, 40, 0, 0, 40]
    assert run.problems() == []

    # Databricks scores one on its own.
    one = run.service.traces[4]
    one.info.assessments.append(feedback("safety", 4, "yes"))
    run.service.archived([one])
    assert run.run(job="monitoring").success
    assert run.ledger(*COUNTS) == [40, 0, 0, 40, 1, 0, 39]
    assert run.problems() == []


def test_a_later_run_adds_nothing_and_keeps_the_ledger(run: Run) -> None:
    assert run.run("safety").success
    before, rows = run.ledger(*COUNTS), run.project.rows()
    assert run.run(job="monitoring").success
    assert (run.ledger(*COUNTS), run.project.rows()) == (before, rows)
    assert run.problems() == []


def test_results_after_a_backfill_count_and_a_new_trace_is_pending(run: Run) -> None:
    assert run.run("safety").success
    _, _, unsampled, eligible, scored, *_ = run.ledger(*COUNTS)
    left_out = next(trace for trace in run.service.traces if not trace.info.assessments)
    number = int(left_out.info.trace_id.removeprefix("tr-"), 16)
    left_out.info.assessments.append(feedback("safety", number, "yes"))
    late = made_trace(77, START + timedelta(minutes=1))
    late.info.trace_location = left_out.info.trace_location
    run.service.archived([left_out])
    assert run.run(job="monitoring").success
    assert run.ledger("archived", "unsampled", "eligible", "scored", "pending") == [
        40, unsampled - 1, eligible + 1, scored + 1, 0,
    ]  # fmt: skip
    run.service.archived([late])
    assert run.run(job="monitoring").success
    assert run.ledger("archived", "unsampled", "eligible", "pending") == [41, unsampled - 1, eligible + 2, 1]
    assert run.problems() == []


def test_a_run_may_have_its_own_rate_and_the_filter_applies(run: Run) -> None:
    lifecycle.handle("safety", run.settings).update(filter=PROD)
    assert run.run("safety", sample_rate=1.0).success
    (request,) = run.service.requests_to("POST", f"scheduled-scorers/{id_of(run.settings)}/backfill")
    assert request["scorer_sample_rates"] == [{"name": "safety", "sample_rate": 1.0}]
    # The double does not filter: results on odd traces exist, so they count. On four it returns nothing.
    assert len(expected(run.service)) == 36
    assert run.ledger("archived", "filtered_out", "unsampled", "eligible", "pending") == [40, 2, 2, 36, 0]
    assert run.problems() == []


def test_a_stopped_scorer_is_backfilled_on_request(run: Run) -> None:
    lifecycle.handle("safety", run.settings).stop()
    assert run.run("safety").success
    assert run.project.rows() != []


def test_it_waits_for_another_backfill_of_the_experiment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = experiment_of(run.settings, run.service)
    experiment.backfills.append(Backfill(6999, id_of(run.settings), {}))
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            experiment.backfills[0].state = {"life_cycle_state": "TERMINATED"}

    monkeypatch.setattr("tenacity.nap.time.sleep", wait)
    assert run.run("safety").success
    assert waits[:3] == [managed_backfill.POLL_SECONDS] * 3
    assert [backfill.is_over for backfill in experiment.backfills] == [True, True]


def test_it_waits_for_a_backfill_that_another_process_just_started(run: Run, workspace: WorkspaceDouble) -> None:
    conflict = error(409, "RESOURCE_CONFLICT", "A backfill is already running for this experiment")
    workspace.answer_next(2, conflict, f"{SCORERS}/{id_of(run.settings)}/backfill")
    assert run.run("safety").success
    assert len(run.service.requests_to("POST", f"scheduled-scorers/{id_of(run.settings)}/backfill")) == 3
    assert len(experiment_of(run.settings, run.service).backfills) == 1


def test_another_backfill_that_does_not_end_is_reported_in_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(managed_backfill, "CONFLICT_SECONDS", 0.2)
    experiment_of(run.settings, run.service).backfills.append(Backfill(6999, id_of(run.settings), {}))
    (reason,) = failures(run.run("safety")).values()
    assert reason.endswith(
        f"another backfill of experiment {id_of(run.settings)} is running, and Databricks runs one at a time; run this "
        "again when it has ended"
    )


def test_a_backfill_whose_response_is_lost_is_not_run_twice(run: Run, workspace: WorkspaceDouble) -> None:
    path = f"{SCORERS}/{id_of(run.settings)}/backfill"
    workspace.answer_next(1, error(500, "INTERNAL_ERROR", "lost"), path, carried_out=True)
    assert run.run("safety").success
    assert len(experiment_of(run.settings, run.service).backfills) == 1
    assert {row["trace_id"] for row in run.project.rows()} == set(expected(run.service))


@pytest.mark.parametrize("status", [429, 500])
def test_a_backfill_that_did_not_start_is_requested_again(run: Run, workspace: WorkspaceDouble, status: int) -> None:
    workspace.answer_next(1, error(status, "BUSY", "busy"), f"{SCORERS}/{id_of(run.settings)}/backfill")
    assert run.run("safety").success
    assert len(experiment_of(run.settings, run.service).backfills) == 1


def test_a_failed_backfill_fails_the_step_and_keeps_the_ledger(run: Run) -> None:
    run.service.fails = "The judge's <i>endpoint</i>\nis gone"
    (reason,) = failures(run.run("safety")).values()
    assert "the backfill of Databricks job 7000 failed: The judge's <i>endpoint</i> is gone; see http" in reason
    assert run.project.rows() == []
    assert run.project.rows(SCORER_COVERAGE) == []


def test_a_job_missing_from_the_jobs_api_ends_with_the_monitor(run: Run) -> None:
    run.service.forgets_jobs = True
    assert run.run("safety").success
    assert {row["trace_id"] for row in run.project.rows()} == set(expected(run.service))


def test_a_scorer_that_databricks_does_not_have_is_reported_in_one_line(run: Run) -> None:
    experiment_of(run.settings, run.service).scorers = []
    (reason,) = failures(run.run("safety")).values()
    assert "Databricks request failed: HTTPError: 400 Client Error" in reason
    assert "Scorer safety is not registered" in reason
    assert "\n" not in reason.partition("MonitoringError: ")[2]


# Which results count


@pytest.fixture
def taken(run: Run) -> Callable[..., list[dict[str, Any]]]:
    """The rows read from assessments on trace 4."""

    def take(*assessments: Assessment) -> list[dict[str, Any]]:
        run.service.traces[4].info.assessments = list(assessments)
        run.service.archived(run.service.traces[4:5])
        assert run.run(job="monitoring").success
        return run.project.rows()

    return take


def test_the_latest_of_several_results_counts(taken: Callable[..., list[dict[str, Any]]]) -> None:
    later, sooner = feedback("safety", 4, "no", after=timedelta(seconds=9)), feedback("safety", 4, "yes")
    (row,) = taken(later, sooner)
    assert row["value"] == '"no"'
    (row,) = taken(later, sooner, feedback("safety", 4, "yes", after=timedelta(seconds=20)))
    assert row["value"] == '"yes"'
    assert taken(sooner) == [row]


@pytest.mark.parametrize(
    "given",
    [
        {"name": "others"},
        {"source": AssessmentSource("HUMAN", "me@here")},
        {"metadata": {"monitoring_pipeline.assessed_at": "2026-01-01T00:00:00.000000"}},
        {"after": timedelta(hours=-1)},
    ],
    ids=["of another scorer", "of a person", "written back by us", "before the code was registered"],
)
def test_assessments_that_are_not_results_of_the_scorer(
    taken: Callable[..., list[dict[str, Any]]], given: dict[str, Any]
) -> None:
    assert taken(feedback(**{"name": "safety", "number": 4, "value": "yes", **given})) == []


def test_results_belong_to_the_code_registered_when_they_were_made(run: Run) -> None:
    (code,) = load_scorers(run.settings.scorers)
    now = datetime.now(UTC)
    held = [("old", -9), (code.digest, -6), ("new", -3), (code.digest, 3), ("newer", 6)]
    changes = [
        Change("safety", n, "register", Standing(ScorerState.ACTIVE, 1, None, n, digest, n), now + hour * HOUR, f"{n}")
        for n, (digest, hour) in enumerate(held)
    ]
    for number, hours in enumerate((-8, -5, -2, 4, 7)):
        trace = run.service.traces[number]
        trace.info.assessments = [feedback("safety", number, "yes", after=hours * HOUR)]
    run.service.archived(run.service.traces[:5])
    lake = run.project.lake
    archive_window(run.settings.archive, ScorerLog.of(run.settings).tracking, lake, WINDOW)
    took = take_results(lake, code, changes, WINDOW, "run")
    assert (took.found, run.project.scored("safety")) == (2, [trace_id(1), trace_id(3)])


@pytest.mark.parametrize(("value", "score"), [(True, 1.0), (0.25, 0.25), ("no", 0.0), ("blue", None), ({"a": 1}, None)])
def test_values_of_every_kind(taken: Callable[..., list[dict[str, Any]]], value: Any, score: float | None) -> None:
    (row,) = taken(feedback("safety", 4, value))
    assert (json.loads(row["value"]), row["score"]) == (value, score)


# Traces that Databricks has scored on its own


def test_an_hour_is_settled_when_the_scorer_ran_until_long_after_it(run: Run) -> None:
    assert run.run(job="monitoring").success
    (code,) = load_scorers(run.settings.scorers)

    def change(revision: int, state: ScorerState, moment: datetime, digest: str = code.digest) -> Change:
        return Change("safety", revision, "start", Standing(state, 0.5, None, 1, digest, 1), moment, f"{revision}")

    def waiting(*changes: Change) -> list[int]:
        run.project.lake.replace(SCORER_COVERAGE, WINDOW, SCORER_COVERAGE.schema.empty_table())
        update_managed_ledger(run.project.lake, code, list(changes), WINDOW)
        return [line["pending"] for line in sorted(run.project.rows(SCORER_COVERAGE), key=lambda line: line["hour"])]

    active, stopped = ScorerState.ACTIVE, ScorerState.STOPPED
    assert waiting(change(1, active, START)) == [0, 0, 0, 0]
    assert waiting(change(1, active, START + HOUR / 2)) == [10, 0, 0, 0]
    assert waiting(change(1, stopped, START)) == [10, 10, 10, 10]
    assert waiting(change(1, active, START), change(2, stopped, START + 4 * HOUR)) == [0, 0, 10, 10]
    assert waiting(change(1, active, START), change(2, active, START + 4 * HOUR, "other")) == [0, 0, 10, 10]
    assert waiting(change(1, active, START, "other"), change(2, active, START + 2 * HOUR)) == [10, 10, 0, 0]
    assert waiting() == [10, 10, 10, 10]
