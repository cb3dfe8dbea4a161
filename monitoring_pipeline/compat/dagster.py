"""Private parts of Dagster."""

from __future__ import annotations

import contextlib
import os
import threading
from datetime import datetime
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster._core.definitions.decorators.op_decorator import DecoratedOpFunction
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from dagster._core.utils import make_new_backfill_id, make_new_run_id
from dagster._utils.interrupts import capture_interrupts, check_captured_interrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import sqlalchemy
    from dagster._core.events.log import EventLogEntry as EventLogEntry  # what listeners of an instance get
    from dagster._core.execution.backfill import PartitionBackfill

    # What an executor is given, and what it says of itself.
    from dagster._core.execution.context.system import PlanOrchestrationContext as PlanOrchestrationContext
    from dagster._core.execution.plan.plan import ExecutionPlan as ExecutionPlan
    from dagster._core.execution.retries import RetryMode as RetryMode
    from dagster._core.execution.step_dependency_config import StepDependencyConfig as StepDependencyConfig

__all__ = [
    "NOT_FINISHED_STATUSES",  # of runs; the public API has no such list
    "UnresolvedAssetJobDefinition",  # returned by dg.define_asset_job; we subclass it
    "capture_interrupts",  # delays Ctrl-C within a block
    "check_captured_interrupt",  # whether Ctrl-C was pressed within the block
    "make_new_run_id",  # to listen to a run's events before it starts
]


KEPT_CONNECTIONS = 8
EVENTS_OF_A_BATCH = 500
SQLITE_TIMEOUT_SECONDS = 60  # until a file that another process writes is free


def function_of(asset: dg.AssetsDefinition) -> Callable[..., Any]:
    """Return the function that the asset's decorator wraps."""
    compute = asset.op.compute_fn
    assert isinstance(compute, DecoratedOpFunction), f"{asset.key} was not defined by a decorator"
    return compute.decorated_fn


def write_events_together(instance: dg.DagsterInstance) -> None:
    """Let this process write the events of an instance whose events are in SQLite files with less work.

    By default Dagster opens a file for each event, which compiles each statement again and writes the whole journal
    back each time. Here, a connection to each file stays open, which saves a quarter of the CPU time of a run in this
    process. Events that Dagster has as a batch, such as one for each partition, are one transaction, which saves a
    sixth of the rest.
    """
    from dagster._core.storage.event_log.sqlite.sqlite_event_log import INDEX_SHARD_NAME, SqliteEventLogStorage
    from sqlalchemy import create_engine
    from sqlalchemy.pool import StaticPool

    storage = instance.event_log_storage
    if not isinstance(storage, SqliteEventLogStorage):
        return
    os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", str(EVENTS_OF_A_BATCH))
    engines: dict[str, sqlalchemy.Engine] = {}
    begun: dict[str, sqlalchemy.Connection] = {}  # of the batch that is being written
    tables: set[str] = set()  # that were found; Dagster looks anew for each event
    store_one_by_one, look_for_table = storage.store_event_batch, storage.has_table

    def engine_of(shard: str) -> sqlalchemy.Engine:
        # Reinserted at each use, so that the first is the one that was not used for longest.
        engines[shard] = engines.pop(shard, None) or create_engine(
            storage.conn_string_for_shard(shard),
            poolclass=StaticPool,
            connect_args={"timeout": SQLITE_TIMEOUT_SECONDS, "check_same_thread": False},
        )
        while len(engines) > KEPT_CONNECTIONS:
            engines.pop(next(iter(engines))).dispose()
        if shard not in storage._initialized_dbs:
            storage._initdb(engines[shard])
            storage._initialized_dbs.add(shard)
        return engines[shard]

    @contextlib.contextmanager
    def connect(shard: str) -> Iterator[sqlalchemy.Connection]:
        with storage._db_lock:  # only one thread uses a connection at a time
            if shard in begun:
                yield begun[shard]
                return
            with engine_of(shard).begin() as connection:
                yield connection

    def store_event_batch(events: Sequence[EventLogEntry]) -> None:
        with storage._db_lock, contextlib.ExitStack() as transactions:
            transactions.callback(begun.clear)
            for shard in (events[0].run_id, INDEX_SHARD_NAME):  # all events of a batch are of one run
                begun[shard] = transactions.enter_context(engine_of(shard).begin())
            store_one_by_one(events)

    def has_table(name: str) -> bool:
        if name not in tables and look_for_table(name):
            tables.add(name)
        return name in tables

    storage._db_lock = threading.RLock()  # type: ignore[assignment]
    storage._connect = connect  # type: ignore[method-assign]
    storage.store_event_batch = store_event_batch  # type: ignore[method-assign]
    storage.has_table = has_table  # type: ignore[method-assign]


def recall(instance: dg.DagsterInstance, key: str) -> str | None:
    """Return the text that the instance keeps under the key; None if it keeps none."""
    return instance.daemon_cursor_storage.get_cursor_values({key}).get(key) or None


def remember(instance: dg.DagsterInstance, key: str, text: str) -> None:
    """Let the instance keep the text under the key, for all processes that use the instance."""
    instance.daemon_cursor_storage.set_cursor_values({key: text})


def forget(instance: dg.DagsterInstance, key: str) -> None:
    """Let the instance keep nothing under the key."""
    instance.daemon_cursor_storage.set_cursor_values({key: ""})  # there is no way to remove a key


def has_heartbeat(instance: dg.DagsterInstance, tolerance_seconds: float) -> bool:
    """Return whether the daemon that launches backfills had a heartbeat within the last `tolerance_seconds`."""
    from dagster._daemon.controller import get_daemon_statuses
    from dagster._daemon.daemon import BackfillDaemon

    name = BackfillDaemon.daemon_type()
    status = get_daemon_statuses(instance, [name], ignore_errors=True, heartbeat_tolerance_seconds=tolerance_seconds)
    return bool(status[name].healthy)


def request_backfill(
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    keys: Sequence[dg.AssetKey],
    partitions: Sequence[str],
    requested_at: datetime,
    title: str,
    run_config: dict[str, Any],
) -> str:
    """Request a backfill of the assets' partitions from the daemon; returns its id."""
    from dagster._core.execution.backfill import PartitionBackfill

    backfill_id = make_new_backfill_id()
    instance.add_backfill(
        PartitionBackfill.from_asset_partitions(
            backfill_id=backfill_id,
            asset_graph=definitions.resolve_asset_graph(),
            partition_names=[*partitions],
            asset_selection=[*keys],
            backfill_timestamp=requested_at.timestamp(),
            tags={},
            dynamic_partitions_store=instance,
            all_partitions=False,
            title=title,
            description=None,
            run_config=run_config,
        )
    )
    return backfill_id


def active_backfills(instance: dg.DagsterInstance) -> Sequence[PartitionBackfill]:
    """Return the backfills that have not ended; each has backfill_id, job_name and asset_selection."""
    from dagster._core.execution.backfill import BULK_ACTION_TERMINAL_STATUSES, BulkActionsFilter, BulkActionStatus

    active = [status for status in BulkActionStatus if status not in BULK_ACTION_TERMINAL_STATUSES]
    return instance.get_backfills(filters=BulkActionsFilter(statuses=active))
