"""A store and a lake in which the steps of a schedule really happen, in this process or in forks of another."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg

from monitoring_pipeline.archive.window import archive_window
from monitoring_pipeline.derivations import (
    ERRORS_OF_TRACES,
    PERFORMANCE_OF_HOURS,
    PERFORMANCE_OF_TRACES,
    PROFILE_OF_SPANS,
    USAGE_OF_MODELS,
    derive_quality,
    derive_settled_coverage,
)
from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.resources.build import build_resources
from monitoring_pipeline.scoring.registry import ConfiguredScorer, load_scorers
from monitoring_pipeline.scoring.run import score_window
from monitoring_pipeline.settings import (
    LakeSettings,
    MlflowSettings,
    ReportSettings,
    ScorerSettings,
    Settings,
    UpkeepSettings,
)
from monitoring_pipeline.tables import TABLES
from monitoring_pipeline.upkeep import deletion
from monitoring_pipeline.upkeep.recount import Recount
from monitoring_pipeline.upkeep.retention import expire
from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests import forks
from monitoring_pipeline_tests.cli.calling import run_command
from monitoring_pipeline_tests.faults import faults, truth
from monitoring_pipeline_tests.faults.faults import Fault, FaultyMlflow
from monitoring_pipeline_tests.faults.schedule import Step
from monitoring_pipeline_tests.scoring.model_double import KEY, OK, ModelDouble
from monitoring_pipeline_tests.sources.stores import Store, span_json

MIDNIGHT = datetime(2026, 1, 1, tzinfo=UTC)
JUDGE_RATE = 0.5
# A fault of the network must not take minutes.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "2", "MLFLOW_MODEL_CATALOG_URI": ""}


@dataclass(frozen=True)
class Outcome:
    """How a step ended: completely or not, and the error or the way of its process's end."""

    is_complete: bool
    reason: str = ""
    is_refused: bool = False  # a deletion of a trace that the lake does not have


def window(start: int, end: int) -> Window:
    return Window(MIDNIGHT + timedelta(hours=start), MIDNIGHT + timedelta(hours=end))


def scorer_of(settings: Settings, name: str = truth.SCORER) -> ConfiguredScorer:
    """The scorer of the settings with this name."""
    (scorer,) = load_scorers([entry for entry in settings.scorers if entry.name == name])
    return scorer


class World:
    """The store, the lake and the doubles of one schedule."""

    def __init__(self, folder: Path, empty_store: Path, disk: Path, on_disk: bool, services: Services):
        shutil.copytree(empty_store, folder / "store")
        self.folder, self.services, self.on_disk = folder, services, on_disk
        self.lake = disk / folder.name
        self.store = Store.open(folder / "store" / "mlflow.db")
        self.store.file.chmod(0o666)
        services.mlflow.serve(self.store.uri)
        self.archive_from = self.results_from = 0

    def close(self) -> None:
        shutil.rmtree(self.lake, ignore_errors=True)

    def settings(self, step: Step) -> Settings:
        """The settings with which the step runs."""
        patience_s = 0.5 if step.fault else 60  # a busy machine answers late, too
        judge = ScorerSettings(
            name="safety",
            builtin="Safety",
            model="openai:/gpt-4o-mini",
            sample_rate=JUDGE_RATE,
            timeout_seconds=patience_s,
            max_attempts=2,
        )
        grade = ScorerSettings(
            name=truth.SCORER,
            scorer="monitoring_pipeline_tests.faults.scorers:grade",
            params={"version": step.version},
            sample_rate=step.rate,
        )
        return Settings(
            mlflow=MlflowSettings(
                tracking_uri=self.services.mlflow.uri if step.over_http else self.store.uri, experiments=["made"]
            ),
            lake=LakeSettings(location=str(self.lake)),
            reports=ReportSettings(location=str(self.folder / "reports")),
            upkeep=UpkeepSettings(
                keep_archive_days=_days_since(self.archive_from), keep_results_days=_days_since(self.results_from)
            ),
            scorers=[judge if step.action == "judge" else grade],
        )

    def log(self, number: int, original: truth.Original) -> None:
        """Log a new trace at the source."""
        started = self._started(number, original)
        self.store.log(
            number,
            [self._span(number, original)],
            state=truth_state(number),
            started=started,
            duration_ms=truth.duration_ms(number),
            trace_metadata={"mlflow.trace.user": truth.user(number)},
        )

    def change(self, action: str, number: int, original: truth.Original) -> None:
        """Change a trace at the source to what `original` says now."""
        if action == "lose":
            self.store.client.delete_traces(self.store.experiment_id, trace_ids=[truth.trace_id(number)])
            return
        started_ms = round(self._started(number, original).timestamp() * 1000)
        content = json.dumps(self._span(number, original)) if original.is_readable else "{oops"
        self.store.store_spans(number, content)
        self.store.sql(
            "UPDATE trace_info SET timestamp_ms = ? WHERE request_id = ?", (started_ms, truth.trace_id(number))
        )

    def run(self, step: Step) -> Outcome:
        """Carry out the step under its fault, if it has one; nothing of the fault is left afterwards."""
        fault, settings = step.fault, self.settings(step)
        if step.beside:
            raise ValueError("call run_together")
        if step.command or (fault and fault.kind in faults.IN_A_CHILD):
            [outcome] = self._in_children([(step, settings, fault)])
            is_refused = step.command == "delete" and "in the lake; check the id" in " ".join(outcome.reason.split())
            return Outcome(True, outcome.reason, is_refused=True) if is_refused else outcome
        with contextlib.ExitStack() as stack:
            if fault and fault.kind == "mlflow":
                stack.enter_context(self.services.mlflow.struck(fault))
            elif fault and fault.kind == "judge":
                stack.enter_context(self.services.judging_badly(fault))
            elif fault:
                stack.enter_context(faults.struck(fault, self.lake, self.on_disk))
            try:
                outcome = perform(settings, step)
                is_lost = fault is not None and fault.kind == "lake gone"  # the work went to a lake that is no more
                return Outcome(False, "done elsewhere") if is_lost else outcome
            except Exception as error:  # noqa: BLE001 - a fault may cause any error; the runner counts them
                if not fault:
                    return Outcome(False, "".join(traceback.format_exception(error)))
                return Outcome(False, f"{type(error).__name__}: {str(error)[:200]}")

    def run_together(self, step: Step) -> list[Outcome]:
        """Carry out the step and the one beside it in two processes at once; only the first may be struck."""
        assert step.beside
        return self._in_children(
            [(step, self.settings(step), step.fault), (step.beside, self.settings(step.beside), None)]
        )

    def _in_children(self, works: list[tuple[Step, Settings, Fault | None]]) -> list[Outcome]:
        children = []
        for number, (step, settings, fault) in enumerate(works):
            output = self.folder / f"child-{number}"
            output.unlink(missing_ok=True)
            if step.command:
                self._configure(settings)
            arguments = (settings, replace(step, beside=None), fault, self.lake, self.on_disk)
            folder = Path(tempfile.gettempdir()) if fault and fault.kind == "no permission" else self.folder
            children.append((forks.Fork(_work, arguments, folder, self._environment(), output, output), output))
        return [_outcome(child.wait(), output) for child, output in children]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "DAGSTER_HOME": str(self.services.dagster_home(self.folder)), "COLUMNS": "200"}

    def _configure(self, settings: Settings) -> None:
        [scorer] = settings.scorers
        days = {name: value for name, value in settings.upkeep.model_dump(exclude_none=True).items() if "days" in name}
        upkeep = "".join(f"{name} = {value}\n" for name, value in days.items())
        (self.folder / "monitoring.toml").write_text(
            f'[mlflow]\ntracking_uri = "{settings.mlflow.tracking_uri}"\nexperiments = ["made"]\n'
            f'[lake]\nlocation = "{settings.lake.location}"\n[reports]\nlocation = "{settings.reports.location}"\n'
            f'[upkeep]\n{upkeep}[[scorers]]\nname = "{scorer.name}"\nscorer = "{scorer.scorer}"\n'
            f"params = {{ version = {scorer.params['version']} }}\nsample_rate = {scorer.sample_rate}\n",
            encoding="utf-8",
        )

    def _started(self, number: int, original: truth.Original) -> datetime:
        return MIDNIGHT + timedelta(hours=original.hour, seconds=number)

    def _span(self, number: int, original: truth.Original) -> dict[str, Any]:
        texts = {"mlflow.spanInputs": json.dumps({"q": truth.mark(number)})}
        texts["mlflow.spanOutputs"] = json.dumps(truth.answer(number, original.revision))
        return span_json(number, started=self._started(number, original), attributes=texts)


def truth_state(number: int) -> Any:
    from mlflow.entities import TraceState

    return TraceState.ERROR if truth.has_failed(number) else TraceState.OK


def perform(settings: Settings, step: Step) -> Outcome:
    """Do the work of the step in this process, as the assets and commands do it."""
    resources = build_resources(settings)
    lake, tracking = resources["lake"], resources["tracking"]
    hours = window(step.start, step.end) if step.end else None
    match step.action:
        case "archive":
            assert hours
            counts = archive_window(settings.archive, tracking, lake, hours)
            return Outcome(not counts.lacking, "traces lacking" if counts.lacking else "")
        case "score":
            assert hours
            score_window(lake, scorer_of(settings), hours, "run", retry_failed=False)
        case "judge":
            assert hours
            score_window(lake, scorer_of(settings, "safety"), hours, "run", retry_failed=step.version < 0)
        case "derive":
            assert hours
            derive(lake, [scorer_of(settings)], hours)
        case "compact":
            for table in TABLES:
                lake.maintain(table)
        case "retain":
            expire(lake, settings.upkeep)
        case "forget":
            ids = {truth.trace_id(number) for number in step.numbers}
            recount, instance = Recount.of(settings, lake, tracking), dg.DagsterInstance.ephemeral()
            try:
                deletion.find(lake, ids, [])
            except MonitoringError as error:
                if deletion.has_unfinished(lake):
                    deletion.carry_out(lake, recount, instance, None)
                return Outcome(True, str(error), is_refused=True)
            deletion.delete(lake, recount, instance, None, ids, [])
        case action:
            raise ValueError(action)
    return Outcome(True)


def derive(lake: Any, scorers: list[ConfiguredScorer], hours: Window) -> None:
    """Derive the tables of the hours as the assets do."""
    for each in (PERFORMANCE_OF_TRACES, ERRORS_OF_TRACES, PERFORMANCE_OF_HOURS, PROFILE_OF_SPANS, USAGE_OF_MODELS):
        each.derive(lake, hours)
    if problems := derive_settled_coverage(lake, hours, scorers, {}):
        raise AssertionError(f"ledger: {problems}")
    derive_quality(lake, hours, scorers)


def _work(settings: Settings, step: Step, fault: Fault | None, lake: Path, on_disk: bool) -> None:
    """The entry of a child process."""
    with faults.struck(fault, lake, on_disk) if fault else contextlib.nullcontext():
        if not step.command:
            outcome = perform(settings, step)
            raise SystemExit(0 if outcome.is_complete else 3)
        hours = window(step.start, step.end) if step.end else None
        arguments = [step.command, "--config", "monitoring.toml"]
        if hours:
            arguments += ["--from", hours.start.isoformat(), "--to", hours.end.isoformat()]
        for number in step.numbers:
            arguments += ["--trace-id", truth.trace_id(number)]
        if step.command == "backfill":
            arguments += ["--scorer", truth.SCORER]
        run_command(*arguments)


def _outcome(code: int, output: Path) -> Outcome:
    if code == 0:
        return Outcome(True)
    text = output.read_text(errors="replace") if output.exists() else ""
    return Outcome(False, "killed" if code == -signal.SIGKILL else f"exit code {code}: {text[-3000:]}")


def _days_since(hour: int) -> int | None:
    if not hour:
        return None
    return (datetime.now(UTC).date() - (MIDNIGHT + timedelta(hours=hour)).date()).days


class Services:
    """What all schedules of a process share: MLflow's server, the judge's model, and an empty Dagster home."""

    def __init__(self, folder: Path):
        self.mlflow, self.model = FaultyMlflow(), ModelDouble(stall_seconds=1.2)
        self._home = folder / "empty-home"
        self._home.mkdir()
        (self._home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")

    def environment(self) -> dict[str, str]:
        """What a process needs to find the doubles, and to give up on them soon."""
        return {**PATIENCE, "OPENAI_API_KEY": KEY, "OPENAI_API_BASE": self.model.address}

    @contextmanager
    def judging_badly(self, fault: Fault) -> Iterator[None]:
        """The model answers `fault.how` to the requests from number `at` on, `size` of them."""
        first = len(self.model.requests) + fault.at - 1
        before = self.model.fate
        self.model.fate = lambda number, prompt: fault.how if first <= number < first + fault.size else OK
        try:
            yield
        finally:
            self.model.fate = before

    def dagster_home(self, folder: Path) -> Path:
        """The Dagster home of a schedule, with the database of a new instance."""
        home = folder / "home"
        if not home.exists():
            if not (self._home / "storage").exists():
                dg.DagsterInstance.from_config(str(self._home)).dispose()
            shutil.copytree(self._home, home)
        return home

    def close(self) -> None:
        self.mlflow.close()
        self.model.close()
