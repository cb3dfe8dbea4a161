"""The percentiles of all tables and analyses: exact, with linear interpolation (numpy's default).

They are elements of the sorted values, which the mean needs too, so that no second aggregate collects the same values,
and every engine computes the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import Column

RANKS = (50, 95, 99)


def percentile_columns(values: Column, name: str, divisor: int = 1) -> Iterator[Column]:
    """Columns p50_, p95_ and p99_`name` of an array from `sums.in_order`, divided by `divisor`; null if it is empty."""
    from pyspark.sql import functions as F

    for rank in RANKS:
        place = (F.size(values) - 1) * F.lit(rank / 100)
        below = F.get(values, F.floor(place).cast("int"))
        above = F.get(values, F.ceil(place).cast("int"))
        value = below + (above - below) * (place - F.floor(place))
        yield (value if divisor == 1 else value / divisor).alias(f"p{rank}_{name}")
