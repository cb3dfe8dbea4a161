"""What the assets share: how a table is described to Dagster, and how an hour's figures are put on its partition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import dagster as dg
import pandas as pd

from monitoring_pipeline.columns import COMMENTS
from monitoring_pipeline.keys import partition_key
from monitoring_pipeline.tables import Table
from monitoring_pipeline.windows import Window


def tags(table: Table | None, reads: Literal["mlflow", "lake"] = "lake") -> dict[str, str]:
    """What an asset can be selected by: the table that it writes, and whether it loads the monitored MLflow server."""
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
    """Put each hour's figures on its partition, where Dagster plots them.

    `figures` has the start of an hour (UTC) as its index, a column `rows` (how many the hour has in the table) and one
    for each other figure. An hour that it lacks has no rows. Nothing is said of the run as a whole: Dagster would copy
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
    """`frame` indexed by `column` as UTC times, in order (Spark gives times without their zone)."""
    hours = pd.to_datetime(frame[column], utc=True)
    return frame.drop(columns=column).set_index(pd.DatetimeIndex(hours)).sort_index()
