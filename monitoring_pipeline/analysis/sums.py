"""Sums of floating-point columns that do not depend on the order of rows.

Floating-point addition is not associative: an engine that splits the same rows differently returns different last bits.
Adding in ascending order returns the same bits for the same values, so that a second run changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import Column


def in_order(column: str) -> Column:
    """An aggregate: the non-null values of a double column in ascending order, as an array."""
    from pyspark.sql import functions as F

    return F.array_sort(F.collect_list(column))


def total(values: Column) -> Column:
    """The sum of an array from `in_order`; null if empty."""
    from pyspark.sql import functions as F

    added = F.aggregate(values, F.lit(0.0), lambda sum_so_far, value: sum_so_far + value)
    return F.when(F.size(values) > 0, added)


def mean(values: Column) -> Column:
    """The mean of an array from `in_order`; null if empty."""
    from pyspark.sql import functions as F

    return F.when(F.size(values) > 0, total(values) / F.size(values))
