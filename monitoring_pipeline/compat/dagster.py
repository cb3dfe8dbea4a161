"""Private parts of Dagster."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster._core.definitions.decorators.op_decorator import DecoratedOpFunction
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from dagster._core.utils import make_new_backfill_id, make_new_run_id
from dagster._utils.interrupts import capture_interrupts, check_captured_interrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from contextlib import AbstractContextManager

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
TEXTS_AT_A_TIME = 200
RUNS_AT_A_TIME = 500
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


@dataclass(frozen=True)
class StoredTexts:
    """The texts in a column of a table of Dagster's storage.

    `of_run` is the table's column with ids of runs; without it, the texts are events, or `is_of_one_run`. For SQLite,
    `file` is the database's file.
    """

    connect: Callable[[], AbstractContextManager[sqlalchemy.Connection]]
    table: sqlalchemy.Table
    column: str
    of_run: str | None = None
    is_of_one_run: bool = False

    @property
    def file(self) -> Path | None:
        with self.connect() as connection:
            if connection.dialect.name != "sqlite":
                return None
            name = connection.exec_driver_sql("PRAGMA database_list").all()[0][2]
            return Path(name) if name else None  # one in memory has none

    def read(self, run_ids: Collection[str]) -> Iterator[str]:
        """Yield the texts of these runs."""
        for _, text in self._of_runs(run_ids):
            yield text

    def rewrite(self, run_ids: Collection[str], change: Callable[[str], str]) -> int:
        """Replace each text of these runs by the result of `change`; returns how many differ."""
        changed = 0
        for number, text in self._of_runs(run_ids):
            new = change(text)
            if new != text:
                with self.connect() as connection:
                    update = self.table.update().where(self.table.c.id == number)
                    connection.execute(update.values({self.column: new}))
                changed += 1
        return changed

    def _of_runs(self, run_ids: Collection[str]) -> Iterator[tuple[int, str]]:
        if self.of_run is None:
            for number, text in self._rows():
                if self.is_of_one_run or _run_of(json.loads(text)) in (None, *run_ids):
                    yield number, text
            return
        ordered = sorted(run_ids)
        for start in range(0, len(ordered), RUNS_AT_A_TIME):
            yield from self._rows(self.table.c[self.of_run].in_(ordered[start : start + RUNS_AT_A_TIME]))

    def _rows(self, *conditions: sqlalchemy.ColumnElement[bool]) -> Iterator[tuple[int, str]]:
        """The ids and texts of the table's rows, in pieces."""
        import sqlalchemy as db

        key, text = self.table.c.id, self.table.c[self.column]
        select = db.select(key, text).where(text.is_not(None), *conditions).order_by(key).limit(TEXTS_AT_A_TIME)
        last = 0
        while True:
            with self.connect() as connection:
                rows = connection.execute(select.where(key > last)).all()
            yield from ((row[0], row[1]) for row in rows)
            if len(rows) < TEXTS_AT_A_TIME:
                return
            last = rows[-1][0]


def _run_of(event: dict[str, Any]) -> str | None:
    """The id of the run of a stored event, which an asset's latest materialization wraps in a record."""
    return event.get("event_log_entry", event).get("run_id")


def stored_texts(instance: dg.DagsterInstance, run_ids: Collection[str]) -> list[StoredTexts]:
    """Return where Dagster's storage has texts that code or users wrote: events, checks, and runs with their tags.

    Events of `run_ids` are among them, which SQLite keeps in a file for each run. Empty for the parts of a storage that
    is not a database.
    """
    import functools

    from dagster._core.storage.event_log import schema
    from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
    from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage
    from dagster._core.storage.runs.schema import RunsTable, RunTagsTable
    from dagster._core.storage.runs.sql_run_storage import SqlRunStorage

    found: list[StoredTexts] = []
    events, runs = instance.event_log_storage, instance.run_storage
    if isinstance(events, SqlEventLogStorage):
        index = events.index_connection
        found += [
            StoredTexts(index, schema.SqlEventLogStorageTable, "event", "run_id"),
            StoredTexts(index, schema.AssetKeyTable, "last_materialization"),
            StoredTexts(index, schema.AssetCheckExecutionsTable, "evaluation_event", "run_id"),
        ]
    if isinstance(events, SqliteEventLogStorage):
        found += [
            StoredTexts(
                functools.partial(events.run_connection, run_id),
                schema.SqlEventLogStorageTable,
                "event",
                is_of_one_run=True,
            )
            for run_id in run_ids
            if Path(events.path_for_shard(run_id)).is_file()
        ]
    if isinstance(runs, SqlRunStorage):
        found += [
            StoredTexts(runs.connect, RunsTable, "run_body", "run_id"),
            StoredTexts(runs.connect, RunTagsTable, "value", "run_id"),
        ]
    return found
