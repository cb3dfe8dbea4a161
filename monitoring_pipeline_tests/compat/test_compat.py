"""The private parts of dependencies that the package uses, checked against the installed versions."""

from __future__ import annotations

import ast
import importlib
import inspect
import sqlite3
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy
from sqlalchemy.event import listens_for, remove

import monitoring_pipeline
from monitoring_pipeline.compat import dagster as of_dagster
from monitoring_pipeline.compat import mlflow as of_mlflow
from monitoring_pipeline.keys import RANGE_END, RANGE_START

# Each private name: its module, the name, and the parameters that it is called with (None: it is not called).
USED = {
    "dagster": [
        ("dagster._core.definitions.decorators.op_decorator", "DecoratedOpFunction.decorated_fn", None),
        (
            "dagster._core.definitions.unresolved_asset_job_definition",
            "UnresolvedAssetJobDefinition",
            {"name", "selection", "description", "run_tags", "executor_def"},
        ),
        (
            "dagster._core.definitions.unresolved_asset_job_definition",
            "UnresolvedAssetJobDefinition.resolve",
            {"self"},
        ),
        ("dagster._core.events.log", "EventLogEntry.is_dagster_event", None),
        ("dagster._core.execution.backfill", "BULK_ACTION_TERMINAL_STATUSES", None),
        ("dagster._core.execution.backfill", "BulkActionsFilter", None),
        ("dagster._core.execution.backfill", "BulkActionStatus", None),
        (
            "dagster._core.execution.backfill",
            "PartitionBackfill.from_asset_partitions",
            {
                "backfill_id",
                "asset_graph",
                "partition_names",
                "asset_selection",
                "backfill_timestamp",
                "tags",
                "dynamic_partitions_store",
                "all_partitions",
                "title",
                "description",
                "run_config",
            },
        ),
        ("dagster._core.execution.backfill", "PartitionBackfill.job_name", None),
        ("dagster._core.execution.context.system", "PlanOrchestrationContext.instance", None),
        ("dagster._core.execution.context.system", "PlanOrchestrationContext.run_id", None),
        ("dagster._core.executor.base", "Executor.step_dependency_config", None),
        ("dagster._core.storage.dagster_run", "NOT_FINISHED_STATUSES", None),
        (
            "dagster._core.storage.event_log.sqlite.sqlite_event_log",
            "SqliteEventLogStorage._connect",
            {"self", "shard"},
        ),
        (
            "dagster._core.storage.event_log.sqlite.sqlite_event_log",
            "SqliteEventLogStorage._initdb",
            {"self", "engine"},
        ),
        (
            "dagster._core.storage.event_log.sqlite.sqlite_event_log",
            "SqliteEventLogStorage.conn_string_for_shard",
            {"self", "shard_name"},
        ),
        ("dagster._core.utils", "make_new_backfill_id", set()),
        ("dagster._core.utils", "make_new_run_id", set()),
        (
            "dagster._daemon.controller",
            "get_daemon_statuses",
            {"instance", "daemon_types", "ignore_errors", "heartbeat_tolerance_seconds"},
        ),
        ("dagster._daemon.daemon", "BackfillDaemon.daemon_type", set()),
        ("dagster._utils.interrupts", "capture_interrupts", set()),
        ("dagster._utils.interrupts", "check_captured_interrupt", set()),
    ],
    "mlflow": [
        (
            "mlflow.genai.judges.adapters.gateway_adapter",
            "send_chat_request",
            {"endpoint", "headers", "payload", "num_retries"},
        ),
        ("mlflow.genai.judges.adapters.gateway_adapter", "_parse_response_message", {"response_data", "provider"}),
        ("mlflow.metrics.genai.model_utils", "_parse_model_uri", {"model_uri"}),
        ("mlflow.tracking._model_registry.utils", "_registry_uri", None),
        ("mlflow.tracking._tracking_service.utils", "_use_tracking_uri", {"uri"}),
        ("mlflow.utils.providers", "_load_bundled_provider", {"provider"}),
    ],
}


@pytest.mark.parametrize(
    ("dependency", "module", "name", "parameters"),
    [(dependency, *used) for dependency, names in USED.items() for used in names],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_private_name_has_the_parameters_we_use(
    dependency: str, module: str, name: str, parameters: set[str] | None
) -> None:
    where = f"{dependency} {version(dependency)}: {module}.{name}, which monitoring_pipeline.compat uses,"
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{where} is gone: {error}")
    if parameters is not None:
        taken = inspect.signature(getattr(found, "__wrapped__", found)).parameters
        missing = parameters - taken.keys()
        assert not missing, f"{where} no longer takes {', '.join(sorted(missing))}; it takes {', '.join(taken)}"


def test_no_other_module_imports_a_private_name() -> None:
    root = Path(monitoring_pipeline.__file__).parent
    found = []
    for file in root.rglob("*.py"):
        if file.parent.name == "compat":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("dagster", "mlflow")):
                path = f"{node.module}.{'.'.join(alias.name for alias in node.names)}"
                if any(part.startswith("_") for part in path.split(".")):
                    found.append(f"{file.relative_to(root)}:{node.lineno} {path}")
    assert found == []


def test_the_function_of_an_asset_is_found() -> None:
    @dg.asset
    def numbers() -> int:
        return 3

    assert of_dagster.function_of(numbers)() == 3


def test_a_requested_backfill_is_active_until_it_ends() -> None:
    days = dg.DailyPartitionsDefinition("2026-01-01")

    @dg.asset(partitions_def=days)
    def counted() -> int:
        return 1

    with dg.DagsterInstance.ephemeral() as instance:
        backfill_id = of_dagster.request_backfill(
            instance,
            dg.Definitions([counted]),
            [counted.key],
            ["2026-01-02"],
            datetime(2026, 1, 3, tzinfo=UTC),
            title="one day",
            run_config={},
        )
        [found] = of_dagster.active_backfills(instance)
        assert (found.backfill_id, found.asset_selection, found.job_name) == (backfill_id, [counted.key], None)
        instance.update_backfill(found.with_status(type(found.status).COMPLETED_SUCCESS))
        assert of_dagster.active_backfills(instance) == []
        assert not of_dagster.has_heartbeat(instance, 60)


def test_events_written_together_are_those_that_others_read(
    dagster_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["a", "b"]))
    def counted() -> int:
        return 1

    opened: list[str] = []
    runs = of_dagster.KEPT_CONNECTIONS + 1  # each has a file
    connect = sqlite3.connect
    monkeypatch.setattr("sqlite3.dbapi2.connect", lambda file, **named: opened.append(file) or connect(file, **named))
    with dg.DagsterInstance.from_config(str(dagster_home)) as instance, dg.DagsterInstance.get() as other:
        of_dagster.write_events_together(instance)
        ran = [dg.materialize([counted], instance=instance, partition_key="ab"[n % 2]) for n in range(runs)]
        files = Counter(Path(file).name for file in opened)
        assert [files[f"{run.run_id}.db"] for run in ran] == [1] * runs
        assert files["index.db"] <= 4
        written, read = ([len(by.all_logs(run.run_id)) for run in ran] for by in (instance, other))
        assert written == read
        assert min(read) > 5
        assert other.get_materialized_partitions(counted.key) == {"a", "b"}


def test_the_events_of_all_partitions_of_a_run_are_one_transaction_in_each_file(dagster_home: Path) -> None:
    hours = [f"{number:02}" for number in range(40)]

    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(hours), backfill_policy=dg.BackfillPolicy.single_run())
    def counted() -> None: ...

    commits: Counter[str] = Counter()
    with dg.DagsterInstance.from_config(str(dagster_home)) as instance, dg.DagsterInstance.get() as other:
        of_dagster.write_events_together(instance)

        @listens_for(sqlalchemy.Engine, "commit")
        def count(connection: sqlalchemy.Connection) -> None:
            commits[Path(str(connection.engine.url.database)).name] += 1

        ran = dg.materialize([counted], instance=instance, tags={RANGE_START: hours[0], RANGE_END: hours[-1]})
        remove(sqlalchemy.Engine, "commit", count)
        assert other.get_materialized_partitions(counted.key) == set(hours)
        events = Counter(str(entry.dagster_event_type) for entry in other.all_logs(ran.run_id))
        assert events["DagsterEventType.ASSET_MATERIALIZATION"] == len(hours)
        assert commits[f"{ran.run_id}.db"] < len(hours)
        assert commits["index.db"] < len(hours)


def test_a_batch_of_events_is_written_whole_or_one_by_one(
    dagster_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hours = ["00", "01", "02"]

    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(hours), backfill_policy=dg.BackfillPolicy.single_run())
    def counted() -> None: ...

    with dg.DagsterInstance.from_config(str(dagster_home)) as instance, dg.DagsterInstance.get() as other:
        of_dagster.write_events_together(instance)
        storage = instance.event_log_storage
        store, calls = storage.store_event, iter(range(1_000))

        def failing_once(event: Any) -> None:
            store(event)
            if next(calls) == 1:
                raise sqlite3.OperationalError("database is locked")

        monkeypatch.setattr(storage, "store_event", failing_once)
        ran = dg.materialize([counted], instance=instance, tags={RANGE_START: hours[0], RANGE_END: hours[-1]})
        assert "Falling back" in capsys.readouterr().err
        events = Counter(str(entry.dagster_event_type) for entry in other.all_logs(ran.run_id))
        assert events["DagsterEventType.ASSET_MATERIALIZATION"] == len(hours)
        assert events["DagsterEventType.ASSET_MATERIALIZATION_PLANNED"] == len(hours)


def test_prices_come_from_the_bundled_list() -> None:
    listed = of_mlflow.bundled_prices("openai:/gpt-4.1-mini")
    assert listed is not None
    assert listed["input_cost_per_token"] > 0
    assert of_mlflow.bundled_prices("openai:/no-such-model") == {}
    assert of_mlflow.bundled_prices("databricks") is None
