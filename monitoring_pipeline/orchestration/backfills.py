"""Backfills of scorers: as Dagster backfills where a daemon runs, else as runs of this process or beside it."""

from __future__ import annotations

import queue
import signal
import time
import urllib.request
from collections.abc import Callable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.managers import SyncManager

import dagster as dg

from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.keys import ASSETS, partition_key, scorer_key
from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.orchestration.runs import StepEvent, execute, failures
from monitoring_pipeline.resources.build import build_resources
from monitoring_pipeline.scoring.forecast import Forecast, forecast
from monitoring_pipeline.scoring.registry import load_scorers
from monitoring_pipeline.scoring.states import ScorerLog, effective
from monitoring_pipeline.settings import Settings
from monitoring_pipeline.tables import HOURLY_QUALITY, SCORER_COVERAGE
from monitoring_pipeline.windows import HOUR, Window, parts

# What is made of the assessments, hour by hour.
DOWNSTREAM = [dg.AssetKey(SCORER_COVERAGE.name), dg.AssetKey(HOURLY_QUALITY.name)]
LOCAL_UI = "http://127.0.0.1:3000"
# How late a daemon's next sign of life may be, due every 30 seconds; Dagster itself waits half an hour for it.
LATE_SECONDS = 60


@dataclass(frozen=True)
class ScorerOptions:
    """How a backfill runs a scorer, as in the run configuration of its asset.

    Raises:
        MonitoringError: the sample rate is none.
    """

    sample_rate: float | None = None
    retry_failed: bool = False
    newest_first: bool = False

    def __post_init__(self) -> None:
        if self.sample_rate is not None and not 0 <= self.sample_rate <= 1:  # as nan is not
            raise MonitoringError(f"sample rate {self.sample_rate}: must be from 0 to 1")


def daemon_is_running(instance: dg.DagsterInstance) -> bool:
    """Whether a Dagster daemon that launches backfills has lately given a sign of life."""
    from dagster._daemon.controller import get_daemon_statuses
    from dagster._daemon.daemon import BackfillDaemon

    name = BackfillDaemon.daemon_type()
    status = get_daemon_statuses(instance, [name], ignore_errors=True, heartbeat_tolerance_seconds=LATE_SECONDS)
    return bool(status[name].healthy)


def launch_backfills(
    definitions: dg.Definitions,
    window: Window,
    scorers: Sequence[str],
    options: ScorerOptions,
    instance: dg.DagsterInstance,
) -> dict[str, str]:
    """Ask the daemon for a backfill of each scorer, and what is made of its results; returns their ids.

    One for each, so that one which fails stops no other.
    """
    from dagster._core.execution.backfill import PartitionBackfill
    from dagster._core.utils import make_new_backfill_id

    graph = definitions.resolve_asset_graph()
    hours = [partition_key(hour) for hour in window.hours()]
    launched = {}
    for name in scorers:
        launched[name] = make_new_backfill_id()
        instance.add_backfill(
            PartitionBackfill.from_asset_partitions(
                backfill_id=launched[name],
                asset_graph=graph,
                partition_names=hours,
                asset_selection=[scorer_key(name), *DOWNSTREAM],
                backfill_timestamp=time.time(),
                tags={},
                dynamic_partitions_store=instance,
                all_partitions=False,
                title=f"{name}, {window}",
                description=None,
                run_config={"ops": _ops(name, options)},
            )
        )
    return launched


def address_of(backfill_id: str) -> str:
    """Where to watch a backfill: its page, if the UI is at its usual address, else how to find it."""
    try:
        with urllib.request.urlopen(f"{LOCAL_UI}/server_info", timeout=2):
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
    """Run the scorers over `window` in this process, one after the other, then what is made of their results.

    Returns the steps that failed, with the reason; one that fails stops no other.
    """
    windows = parts(window, settings.backfill.max_partitions_per_run)
    failed: dict[str, str] = {}
    # What is made of the results goes apart: it must not wait for a scorer that fails.
    for selection in ([scorer_key(name) for name in scorers], DOWNSTREAM):
        for part in windows[::-1] if options.newest_first else windows:
            keys = (partition_key(part.start), partition_key(part.end - HOUR))
            ops = {name: config for scorer in scorers for name, config in _ops(scorer, options).items()}
            failed |= failures(execute(definitions, ASSETS, selection, keys, instance, on_event, ops))
    return failed


def run_side_by_side(
    settings: Settings,
    window: Window,
    scorers: Sequence[str],
    options: ScorerOptions,
    on_event: Callable[[StepEvent], None],
) -> dict[str, str]:
    """`run_backfills` for each scorer in a process of its own, `[backfill] max_scorers_at_once` of them at a time.

    The instance of DAGSTER_HOME must have been opened before: two processes that make it at once fail. Returns the
    steps that failed, and the scorers whose process ended, with the reason.
    """
    processes = get_context("spawn")  # Dagster runs no two jobs in threads of one process
    manager = SyncManager(ctx=processes)
    manager.start(signal.signal, (signal.SIGINT, signal.SIG_IGN))  # Ctrl-C is for those that can end well
    with manager, ThreadPoolExecutor(settings.backfill.max_scorers_at_once) as pool:
        events = manager.Queue()

        def run(name: str) -> dict[str, str]:
            failed = manager.dict()
            process = processes.Process(target=_run_one, args=(settings, window, name, options, events, failed))
            process.start()
            process.join()
            return dict(failed) | ({name: f"its process ended with {process.exitcode}"} if process.exitcode else {})

        waiting = [pool.submit(run, name) for name in scorers]
        try:
            while not all(future.done() for future in waiting):
                with suppress(queue.Empty):
                    on_event(events.get(timeout=0.2))
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)  # those under way have had it too, and end by themselves
            raise
        while not events.empty():
            on_event(events.get())
        return {step: reason for future in waiting for step, reason in future.result().items()}


def _run_one(
    settings: Settings,
    window: Window,
    scorer: str,
    options: ScorerOptions,
    events: queue.Queue[StepEvent],
    failed: MutableMapping[str, str],
) -> None:
    with dg.DagsterInstance.get() as instance, suppress(KeyboardInterrupt):
        definitions = build_definitions(settings)
        failed.update(run_backfills(definitions, settings, window, [scorer], options, instance, events.put))


def forecasts(settings: Settings, window: Window, scorers: Sequence[str], options: ScorerOptions) -> list[Forecast]:
    """What a backfill of each scorer would do, at the rate and filter that it has now."""
    lake = build_resources(settings)["lake"]
    configured = load_scorers([entry for entry in settings.scorers if entry.name in scorers])
    current = effective(configured, ScorerLog.of(settings))
    return [forecast(lake, scorer, window, options.sample_rate, options.retry_failed) for scorer in current]


def _ops(scorer: str, options: ScorerOptions) -> dict[str, object]:
    return {"__".join(scorer_key(scorer).path): {"config": asdict(options)}}
