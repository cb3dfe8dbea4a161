"""Backfills of managed scorers: start them at Databricks, wait for them, and archive their results."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from filelock import FileLock
from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
)

from monitoring_pipeline.databricks.managed import check_managed
from monitoring_pipeline.databricks.managed_results import take_results, update_managed_ledger
from monitoring_pipeline.databricks.workspace import connect, refusal
from monitoring_pipeline.errors import MonitoringError, one_line
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.scoring.metering import shared_file
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.states import ScorerLog
from monitoring_pipeline.settings import ArchiveSettings
from monitoring_pipeline.windows import Window

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient
    from databricks.sdk.service.jobs import BaseRun

from monitoring_pipeline.databricks.agents import at_databricks, is_worth_repeating, monitor_of, patiently, status_of

POLL_SECONDS = 15.0
CONFLICT_SECONDS = 6 * 3600.0  # how long a backfill waits for another one of its experiment
BACKFILL_SECONDS = 24 * 3600.0  # how long a backfill may take
# Databricks archives traces about every 15 minutes; until then the table lacks the results of a backfill.
ARCHIVAL_SECONDS = 20 * 60.0


class BackfillUnderWayError(MonitoringError):
    """Another backfill of the experiment is running, and Databricks runs one at a time."""

    def __init__(self, experiment_id: str):
        super().__init__(
            f"another backfill of experiment {experiment_id} is running, and Databricks runs one at a time; run this "
            "again when it has ended"
        )


def take_managed(
    log: ScorerLog,
    lake: LakeResource,
    scorer: ConfiguredScorer,
    window: Window,
    source: ArchiveSettings,
    dagster_run_id: str,
    *,
    requested: bool,
    on_progress: Callable[[str], None],
) -> None:
    """Copy Databricks' results into `assessments` and update the ledger; if `requested`, run a backfill first.

    Raises:
        SettingsError: Databricks cannot run the scorer in the monitored experiments.
        MonitoringError: Databricks rejected a backfill, or it failed.
    """
    check_managed(log.tracking, [scorer])
    backfilled = backfill_and_archive(log.tracking, lake, scorer, window, source, on_progress) if requested else []
    changes = log.read().changes.get(scorer.name, [])
    taken = take_results(lake, scorer, changes, window, dagster_run_id)
    update_managed_ledger(lake, scorer, changes, window, backfilled)
    on_progress(f"{window}: {taken.found} results from Databricks, {taken.written} of them new")


def backfill_and_archive(
    tracking: TrackingResource,
    lake: LakeResource,
    scorer: ConfiguredScorer,
    window: Window,
    source: ArchiveSettings,
    log: Callable[[str], None],
) -> list[str]:
    """Run `backfill`, then archive the traces of `window` again from `source`; returns the ids of experiments."""
    from monitoring_pipeline.archive.window import archive_window

    backfilled = backfill(tracking, lake, scorer, window, log)
    if source.source == "delta":
        log(f"waiting {ARCHIVAL_SECONDS / 60:g} minutes for Databricks to archive the results")
        time.sleep(ARCHIVAL_SECONDS)
    archive_window(source, tracking, lake, window)
    return backfilled


def backfill(
    tracking: TrackingResource, lake: LakeResource, scorer: ConfiguredScorer, window: Window, log: Callable[[str], None]
) -> list[str]:
    """Score the traces of `window` at Databricks at the scorer's rate, and wait; returns the ids of the experiments.

    An experiment has one backfill at a time: a lock makes backfills of this machine wait for each other, and polling
    waits for all others. `log` receives progress.

    Raises:
        MonitoringError: a backfill was rejected, failed, or did not end in time.
    """
    client, experiments = connect(), tracking.experiment_names()
    for experiment_id, experiment in experiments.items():
        with FileLock(shared_file(lake.location, experiment_id, "managed-backfill")):
            job_id = _started(scorer, experiment_id, window, log)
            log(f"Databricks job {job_id} scores {window} of experiment {experiment}")
            _wait(client, experiment_id, job_id, log)
    return list(experiments)


def _started(scorer: ConfiguredScorer, experiment_id: str, window: Window, log: Callable[[str], None]) -> str:
    """Start the backfill, after any other backfill has ended; returns the id of its job."""
    retrying = Retrying(
        retry=retry_if_exception_type(BackfillUnderWayError),
        wait=lambda state: POLL_SECONDS,
        stop=stop_after_delay(CONFLICT_SECONDS),
        before_sleep=lambda state: log("another backfill of the experiment is running; waiting for it to end"),
        reraise=True,
    )
    return retrying(_start, scorer, experiment_id, window)


def _start(scorer: ConfiguredScorer, experiment_id: str, window: Window) -> str:
    named = scorer.scorer.model_copy(update={"name": scorer.name})

    def start() -> str:
        from databricks.agents.scorers import BackfillScorerConfig, backfill_scorers

        if _job_under_way(experiment_id):
            raise BackfillUnderWayError(experiment_id)
        try:
            return str(
                backfill_scorers(
                    experiment_id=experiment_id,
                    scorers=[BackfillScorerConfig(named, scorer.sample_rate)],
                    start_time=window.start,
                    end_time=window.end,
                )
            )
        except Exception as error:
            if status_of(error) == 409:
                raise BackfillUnderWayError(experiment_id) from None
            # The job may have started although the response was lost: a second one would pay for everything twice.
            if is_worth_repeating(error) and (job_id := _job_under_way(experiment_id)):
                return job_id
            raise

    with at_databricks():
        return patiently(start)


def _job_under_way(experiment_id: str) -> str | None:
    """The job id of the experiment's running backfill; None if there is none."""
    job_id = monitor_of(experiment_id)["current_backfill_job_id"]
    return str(job_id) if job_id else None


def _wait(client: WorkspaceClient, experiment_id: str, job_id: str, log: Callable[[str], None]) -> None:
    """Wait until the backfill's job has ended.

    The Databricks client has no call for this. The id refers to a job of the Jobs API, whose run has the result; and
    while the backfill runs, the experiment's monitor has the job's id.
    """
    deadline, last = time.monotonic() + BACKFILL_SECONDS, None
    while time.monotonic() < deadline:
        run = _latest_run(client, job_id)
        state = run.state if run else None
        if run is None:
            if _job_under_way(experiment_id) != job_id:
                return
        elif state and state.life_cycle_state and state.life_cycle_state != last:
            last = state.life_cycle_state
            log(f"Databricks job {job_id}: {last.value}, {run.run_page_url}")
            if last.value in ("TERMINATED", "SKIPPED", "INTERNAL_ERROR"):
                if state.result_state and state.result_state.value == "SUCCESS":
                    return
                reason = one_line(state.state_message or "no reason given")
                raise MonitoringError(
                    f"the backfill of Databricks job {job_id} failed: {reason}; see {run.run_page_url}"
                )
        time.sleep(POLL_SECONDS)
    raise MonitoringError(
        f"the backfill of Databricks job {job_id} has not ended in {BACKFILL_SECONDS / 3600:g} hours; check it in "
        "Databricks, and run this again"
    )


def _latest_run(client: WorkspaceClient, job_id: str) -> BaseRun | None:
    """The job's latest run; None if it has no run yet, or the job is deleted or not accessible."""
    from databricks.sdk.errors import BadRequest, NotFound, PermissionDenied

    if not job_id.isdecimal():
        return None
    try:
        return next(iter(client.jobs.list_runs(job_id=int(job_id), limit=1)), None)
    except (NotFound, BadRequest, PermissionDenied):
        return None
    except (OSError, TimeoutError) as error:
        raise refusal(client.config.host, error) from None
