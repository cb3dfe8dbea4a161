"""Shared by the assets: their declaration, the metadata of their tables, and figures by hour."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import dagster as dg
import pandas as pd

from monitoring_pipeline.columns import COMMENTS
from monitoring_pipeline.keys import partition_key
from monitoring_pipeline.orchestration.checks import table_check_specs
from monitoring_pipeline.tables import Table
from monitoring_pipeline.windows import Window


def table_asset(
    table: Table,
    partitions: dg.TimeWindowPartitionsDefinition,
    group: str,
    *,
    key: dg.AssetKey | str | None = None,
    deps: Iterable[dg.AssetKey | str] = (),
    checks: Iterable[dg.AssetCheckSpec] = (),
    kinds: set[str] | None = None,
    reads: Literal["mlflow", "lake"] = "lake",
    code_version: str = "1",
    backfill_policy: dg.BackfillPolicy | None = None,
    metadata: Mapping[str, Any] | None = None,
    description: str | None = None,
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """The decorator of an asset that writes `table`, with the table's own checks before `checks`.

    By default the asset has the table's name and description, and a backfill of it is a single run.
    """
    key = dg.AssetKey(table.name) if key is None else dg.AssetKey(key) if isinstance(key, str) else key
    return dg.asset(
        key=key,
        deps=list(deps),
        partitions_def=partitions,
        group_name=group,
        kinds=kinds or {"spark", "deltalake"},
        code_version=code_version,
        backfill_policy=backfill_policy or dg.BackfillPolicy.single_run(),
        tags=tags(table, reads),
        metadata={**table_metadata(table), **(metadata or {})},
        check_specs=[*table_check_specs(key, table), *checks],
        description=description or table.description,
    )


def tags(table: Table | None, reads: Literal["mlflow", "lake"] = "lake") -> dict[str, str]:
    """Tags for selecting an asset: the table it writes, and whether it reads from the monitored MLflow server."""
    return {"monitoring/reads": reads, **({"monitoring/table": table.name} if table else {})}


def table_metadata(table: Table) -> dict[str, Any]:
    """The table's columns, as Dagster shows them on an asset."""
    columns = [
        dg.TableColumn(
            column.name,
            str(column.type),
            COMMENTS[column.name],
            constraints=dg.TableColumnConstraints(nullable=column.nullable),
        )
        for column in table.schema
    ]
    return {"dagster/column_schema": dg.TableSchema(columns), "dagster/table_name": table.name}


def record_hours(context: dg.AssetExecutionContext, window: Window, figures: pd.DataFrame) -> None:
    """Attach each hour's figures to its partition, where Dagster plots them.

    `figures` has the start of an hour (UTC) as its index, a column `rows` (the hour's rows in the table) and one column
    for each other figure. An hour without an entry has no rows. The run as a whole gets no metadata: Dagster would copy
    it to every partition of a range.
    """
    for hour in window.hours():
        row: Mapping[str, Any] = figures.loc[hour] if hour in figures.index else {"rows": 0}
        metadata = {str(name): plain_number(value) for name, value in row.items() if not pd.isna(value)}
        metadata["dagster/row_count"] = metadata.pop("rows")
        context.add_asset_metadata(metadata, asset_key=context.asset_key, partition_key=partition_key(hour))


def plain_number(value: Any) -> float | int:
    """A numpy number as Python's own: Dagster refuses numpy's."""
    number = float(value)
    return int(number) if number.is_integer() else number


def utc_index(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """`frame` indexed by `column` as UTC times, in order (Spark returns times without their zone)."""
    hours = pd.to_datetime(frame[column], utc=True)
    return frame.drop(columns=column).set_index(pd.DatetimeIndex(hours)).sort_index()
