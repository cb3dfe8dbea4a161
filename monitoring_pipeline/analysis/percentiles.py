"""The percentiles of all tables and analyses: exact, with linear interpolation (numpy's default)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import Column

RANKS = (50, 95, 99)
PERCENTILES = "percentiles"


def percentiles(column: str) -> Column:
    """An aggregate named PERCENTILES: the column's percentiles at RANKS as an array; null without a value."""
    from pyspark.sql import functions as F

    return F.percentile(column, F.array(*(F.lit(rank / 100) for rank in RANKS))).alias(PERCENTILES)


def percentile_columns(name: str, divisor: int = 1) -> Iterator[Column]:
    """The elements of the aggregate `percentiles` as columns p50_, p95_ and p99_`name`, divided by `divisor`."""
    from pyspark.sql import functions as F

    for index, rank in enumerate(RANKS):
        value = F.col(PERCENTILES)[index]
        yield (value if divisor == 1 else value / divisor).alias(f"p{rank}_{name}")
