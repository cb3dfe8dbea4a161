"""Backfills of scorers: as Dagster backfills if a daemon runs, otherwise as runs in this process or in others."""

from __future__ import annotations

import os
import queue
import signal
import urllib.request
from collections.abc import Callable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.managers import SyncManager

import dagster as dg

from monitoring_pipeline.compat.dagster import has_heartbeat, request_backfill
from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.keys import ASSETS, Names, partition_key, scorer_key
from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.orchestration.runs import StepEvent, execute, failures
from monitoring_pipeline.resources.build import build_resources
from monitoring_pipeline.scoring.forecast import Forecast, forecast
from monitoring_pipeline.scoring.registry import load_scorers
from monitoring_pipeline.scoring.states import ScorerLog, effective
from monitoring_pipeline.settings import Settings, make_importable
from monitoring_pipeline.tables import HOURLY_QUALITY, SCORER_COVERAGE
from monitoring_pipeline.windows import HOUR, Window, parts

# The hourly tables computed from assessments.
DOWNSTREAM = [dg.AssetKey(SCORER_COVERAGE.name), dg.AssetKey(HOURLY_QUALITY.name)]
LOCAL_UI = "http://127.0.0.1:3000"
# Highest age of a daemon's last heartbeat. One is due every 30 seconds; Dagster itself waits half an hour.
LATE_SECONDS = 60


@dataclass(frozen=True)
class ScorerOptions:
    """How a backfill runs a scorer, as in the run configuration of its asset.

    Raises:
        MonitoringError: the sample rate is not from 0 to 1.
    """

    sample_rate: float | None = None
    retry_failed: bool = False
    newest_first: bool = False

    def __post_init__(self) -> None:
        if self.sample_rate is not None and not 0 <= self.sample_rate <= 1:  # also refuses nan
            raise MonitoringError(f"sample rate {self.sample_rate}: must be from 0 to 1")


def daemon_is_running(instance: dg.DagsterInstance) -> bool:
    """Whether a Dagster daemon that launches backfills has had a heartbeat within `LATE_SECONDS`."""
    return has_heartbeat(instance, LATE_SECONDS)


def launch_backfills(
    definitions: dg.Definitions,
    settings: Settings,
    window: Window,
    scorers: Sequence[str],
    options: ScorerOptions,
    instance: dg.DagsterInstance,
) -> dict[str, str]:
    """Request a backfill of each scorer, and the tables computed from its results, from the daemon; returns their ids.

    Each scorer gets its own backfill, so that one that fails does not stop the others.
    """
    names = settings.dagster.names
    hours = [partition_key(hour) for hour in window.hours()]
    return {
        name: request_backfill(
            instance,
            definitions,
            [names.key(key) for key in (scorer_key(name), *DOWNSTREAM)],
            hours,
            datetime.now(UTC),
            title=f"{name}, {window}",
            run_config={"ops": _ops(names, name, options)},
        )
        for name in scorers
    }


def address_of(backfill_id: str) -> str:
    """Where to watch a backfill: its page if the UI runs at its usual address, otherwise how to find it."""
    try:
        with urllib.request.urlopen(f"{LOCAL_UI}/server_info", timeout=2):  # a constant of ours # nosec B310
            return f"{LOCAL_UI}/runs/b/{backfill_id}"
    except OSError:
        return f"the Dagster UI, under Runs, Backfills: {backfill_id}"


def run_backfills(
    definitions: dg.Definitions,
    settings: Settings,
    window: Window,
    scorers: Sequence[str],
    options: ScorerOptions,
    instance: dg.DagsterInstance,
    on_event: Callable[[StepEvent], None],
) -> dict[str, str]:
    """Run the scorers over `window` in this process, one after the other, then the tables computed from their results.

    Returns the steps that failed, with the reason; a scorer that fails does not stop the others.
    """
    names = settings.dagster.names
    windows = parts(window, settings.backfill.max_partitions_per_run)
    failed: dict[str, str] = {}
    # The tables get separate runs, because Dagster would skip them after a scorer that fails.
    for selection in ([scorer_key(name) for name in scorers], DOWNSTREAM):
        for part in windows[::-1] if options.newest_first else windows:
            keys = (partition_key(part.start), partition_key(part.end - HOUR))
            ops = {name: config for scorer in scorers for name, config in _ops(names, scorer, options).items()}
            ours = [names.key(key) for key in selection]
            failed |= failures(execute(definitions, names, ASSETS, ours, keys, instance, on_event, ops))
    return failed


def run_side_by_side(
    settings: Settings,
    window: Window,
    scorers: Sequence[str],
    options: ScorerOptions,
    on_event: Callable[[StepEvent], None],
) -> dict[str, str]:
    """Run `run_backfills` for each scorer; several run in a process each, `[backfill] max_scorers_at_once` at a time.

    The caller must have opened the instance of DAGSTER_HOME before: two processes that create it at once fail. Returns
    the steps that failed, and the scorers whose process died, with the reason.
    """
    if len(scorers) == 1:
        with dg.DagsterInstance.get() as instance:
            return run_backfills(build_definitions(settings), settings, window, scorers, options, instance, on_event)
    processes = _processes()
    manager = SyncManager(ctx=processes)
    manager.start(
        signal.signal, (signal.SIGINT, signal.SIG_IGN)
    )  # Ctrl-C must reach only the processes that run scorers
    with manager, ThreadPoolExecutor(settings.backfill.max_scorers_at_once) as pool:
        events = manager.Queue()

        def run(name: str) -> dict[str, str]:
            failed = manager.dict()
            arguments = (dict(os.environ), settings, window, name, options, events, failed)
            process = processes.Process(target=_run_one, args=arguments)
            process.start()
            process.join()
            return dict(failed) | ({name: f"its process ended with {process.exitcode}"} if process.exitcode else {})

        waiting = [pool.submit(run, name) for name in scorers]
        try:
            while not all(future.done() for future in waiting):
                with suppress(queue.Empty):
                    on_event(events.get(timeout=0.2))
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)  # running processes have received Ctrl-C too, and end on their own
            raise
        while not events.empty():
            on_event(events.get())
        return {step: reason for future in waiting for step, reason in future.result().items()}


def _processes() -> ForkServerContext | SpawnContext:
    """How processes start; Dagster cannot run two jobs in threads of one process.

    They are forks of one process that has imported this module, where the system can fork; importing takes seconds.
    """
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    processes = get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    return processes


def _run_one(
    environment: dict[str, str],
    settings: Settings,
    window: Window,
    scorer: str,
    options: ScorerOptions,
    events: queue.Queue[StepEvent],
    failed: MutableMapping[str, str],
) -> None:
    os.environ.update(environment)  # the forked process has that of its start
    make_importable(settings.python.path)
    with dg.DagsterInstance.get() as instance, suppress(KeyboardInterrupt):
        definitions = build_definitions(settings)
        failed.update(run_backfills(definitions, settings, window, [scorer], options, instance, events.put))


def forecasts(settings: Settings, window: Window, scorers: Sequence[str], options: ScorerOptions) -> list[Forecast]:
    """What a backfill of each scorer would do, at its current sample rate and filter."""
    lake = build_resources(settings)["lake"]
    entries = [entry for entry in settings.scorers if entry.name in scorers]
    configured = load_scorers(entries, settings.scoring.unfinished_after_hours)
    current = effective(configured, ScorerLog.of(settings))
    return [forecast(lake, scorer, window, options.sample_rate, options.retry_failed) for scorer in current]


def _ops(names: Names, scorer: str, options: ScorerOptions) -> dict[str, object]:
    return {names.op("__".join(scorer_key(scorer).path)): {"config": asdict(options)}}
