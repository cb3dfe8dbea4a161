"""Runs the chain in this process, as Dagster runs that the UI shows afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from monitoring_pipeline.compat.dagster import make_new_run_id, write_events_together
from monitoring_pipeline.folders import make_private
from monitoring_pipeline.keys import (
    DAILY_REPORT,
    MONITORING,
    RANGE_END,
    RANGE_START,
    Names,
    partition_key,
    scorer_key,
)
from monitoring_pipeline.orchestration.unchanged import Work
from monitoring_pipeline.resources.known_lakes import check_known
from monitoring_pipeline.settings import Settings
from monitoring_pipeline.upkeep.lost_runs import end_lost_runs, process_tags
from monitoring_pipeline.windows import HOUR, Window, parts

if TYPE_CHECKING:
    from monitoring_pipeline.compat.dagster import EventLogEntry
    from monitoring_pipeline.resources.lake import LakeResource

# Callers receive the log messages of steps as events, and print what they want.
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass(frozen=True)
class StepEvent:
    """An event of a step: it started, succeeded or failed, or it reports its progress."""

    step: str
    kind: str  # start, progress, success, failure
    message: str


@dataclass(frozen=True)
class ChainResult:
    """The outcome of a run of the chain: failed steps with their reasons, and failed checks."""

    failed_steps: dict[str, str]
    failed_checks: list[dg.AssetCheckEvaluation]

    @property
    def succeeded(self) -> bool:
        return not self.failed_steps and not any(
            check.severity == dg.AssetCheckSeverity.ERROR for check in self.failed_checks
        )


def start_instance(folder: Path, names: Names, lake: LakeResource | None = None) -> dg.DagsterInstance:
    """The Dagster instance of DAGSTER_HOME; if that is unset or empty, of data/dagster in `folder`, which is created.

    If `folder` has a dagster.yaml, it configures the instance of data/dagster. Runs that a command on this machine left
    when it was killed are marked as failed, so that nothing waits for them.

    Raises:
        LakeError: the instance has used another lake in the place of `lake`.
    """
    if not os.environ.get("DAGSTER_HOME"):
        home = folder.absolute() / "data" / "dagster"
        make_private(home)
        configuration, used = folder.absolute() / "dagster.yaml", home / "dagster.yaml"
        if not used.exists():
            if configuration.is_file():
                used.symlink_to(configuration)
            else:
                used.write_text("telemetry:\n  enabled: false\n", encoding="utf-8")
        os.environ["DAGSTER_HOME"] = str(home)
    instance = dg.DagsterInstance.get()
    if lake is not None:
        check_known(lake, instance)
    write_events_together(instance)
    end_lost_runs(instance, names)
    return instance


def run_chain(
    definitions: dg.Definitions,
    settings: Settings,
    work: Work,
    scorers: list[str] | None,
    instance: dg.DagsterInstance,
    on_event: Callable[[StepEvent], None],
) -> ChainResult:
    """Materialise the chain for the hours of `work`, then the reports of its days; only `scorers`, if given.

    A long window is split into runs of `[backfill] max_partitions_per_run` hours, in order, until one fails.
    """
    names = settings.dagster.names
    selection = _selection(definitions, settings, scorers)
    failed_checks: list[dg.AssetCheckEvaluation] = []
    for part in _runs(settings, work):
        keys = (partition_key(part.start), partition_key(part.end - HOUR))
        result = execute(
            definitions, names, names.definition(MONITORING), selection, keys, instance, on_event, tags=work.tags
        )
        failed = [check for check in result.get_asset_check_evaluations() if not check.passed]
        failed_checks += failed
        if not result.success:
            return ChainResult(failures(result), failed_checks)
        if any(check.severity == dg.AssetCheckSeverity.ERROR for check in failed):
            # Otherwise the next command would find nothing to do, and report no failure.
            instance.add_run_tags(result.run_id, dict.fromkeys(work.tags, "a check failed"))
    if not work.days:
        return ChainResult({}, failed_checks)
    keys = (f"{work.days[0]}", f"{work.days[-1]}")
    reports = execute(
        definitions, names, names.definition(DAILY_REPORT), None, keys, instance, on_event, tags=work.tags
    )
    return ChainResult(failures(reports), failed_checks)


def step_count(definitions: dg.Definitions, settings: Settings, work: Work, scorers: list[str] | None) -> int:
    """The number of steps of `run_chain`, over all its runs."""
    by_day = definitions.resolve_job_def(
        settings.dagster.names.definition(DAILY_REPORT)
    ).asset_layer.selected_asset_keys
    hourly = len(_runs(settings, work)) * len(_selection(definitions, settings, scorers))
    return hourly + (len(by_day) if work.days else 0)


def _runs(settings: Settings, work: Work) -> list[Window]:
    """The window of each run of the hourly chain."""
    return [part for window in work.hours for part in parts(window, settings.backfill.max_partitions_per_run)]


def _selection(definitions: dg.Definitions, settings: Settings, scorers: list[str] | None) -> list[dg.AssetKey]:
    """The assets of the hourly chain, with only `scorers`, if given."""
    names = settings.dagster.names
    others = [scorer.name for scorer in settings.scorers if scorers and scorer.name not in scorers]
    left_out = {names.key(scorer_key(name)) for name in others}
    every = definitions.resolve_job_def(names.definition(MONITORING)).asset_layer.selected_asset_keys
    return [key for key in every if key not in left_out]


def execute(
    definitions: dg.Definitions,
    names: Names,
    job: str,
    selection: list[dg.AssetKey] | None,
    keys: tuple[str, str],
    instance: dg.DagsterInstance,
    on_event: Callable[[StepEvent], None],
    ops: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
) -> dg.ExecuteInProcessResult:
    """Run a job in this process over the partitions from the first to the second of `keys`; only `selection`, if given.

    `ops` is the run configuration of its steps; `tags` are tags of the run.

    Raises:
        KeyboardInterrupt: the run was interrupted, for example by Ctrl-C. Dagster only ends the run; this stops the
            caller from starting the next.
    """

    def listen(entry: EventLogEntry) -> None:
        event = _step_event(entry)
        if event:
            on_event(event)

    run_id = make_new_run_id()
    instance.add_event_listener(run_id, listen)
    result = definitions.resolve_job_def(job).execute_in_process(
        run_id=run_id,
        instance=instance,
        asset_selection=selection,
        tags={RANGE_START: keys[0], RANGE_END: keys[1], **process_tags(names, run_id), **(tags or {})},
        run_config={**QUIET, "ops": dict(ops or {})},
        raise_on_error=False,
    )
    if any(_was_interrupted(event) for event in result.all_events):
        raise KeyboardInterrupt
    return result


def _was_interrupted(event: dg.DagsterEvent) -> bool:
    error = event.step_failure_data.error if event.is_step_failure else None
    return error is not None and error.cls_name == dg.DagsterExecutionInterruptedError.__name__


_KINDS = {
    dg.DagsterEventType.STEP_START: "start",
    dg.DagsterEventType.STEP_SUCCESS: "success",
    dg.DagsterEventType.STEP_FAILURE: "failure",
}


def _step_event(entry: EventLogEntry) -> StepEvent | None:
    if entry.step_key is None:
        return None
    step = entry.step_key.replace("__", "/")
    if not entry.is_dagster_event:
        return StepEvent(step, "progress", entry.user_message)
    kind = _KINDS.get(entry.get_dagster_event().event_type)
    return StepEvent(step, kind, entry.user_message) if kind else None


def failures(result: dg.ExecuteInProcessResult) -> dict[str, str]:
    """What failed, with the reason: steps, or the run if it failed before its first step."""
    failed: dict[str, str] = {}
    before_steps = "unknown reason"
    for event in result.all_events:
        if event.is_run_failure and (thrown := event.job_failure_data.error):
            before_steps = (thrown.cause or thrown).message.strip()
        if event.is_step_failure and event.step_key:
            error = event.step_failure_data.error
            raised = error.cause or error if error else None  # Dagster wraps the error that was raised
            failed[event.step_key.replace("__", "/")] = raised.message.strip() if raised else "unknown reason"
    return failed or ({} if result.success else {"run": before_steps})
