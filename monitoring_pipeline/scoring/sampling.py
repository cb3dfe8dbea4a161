"""Deterministic sampling by trace and scorer: the same online, in a backfill and after a restart.

Trace t is in the sample of scorer s if sha256(f"{t}:{s}") / 2**256 < rate, as in MLflow's own online scoring. Raising
the rate only adds traces.
"""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import Column

HASHES = 2**256


def in_sample(trace_id: str, scorer: str, rate: float) -> bool:
    """Whether the trace is in the scorer's sample at `rate` (0 to 1)."""
    return int(hashlib.sha256(f"{trace_id}:{scorer}".encode()).hexdigest(), 16) < _threshold(rate)


def drawn(scorer: str, rate: float) -> Column:
    """`in_sample` as a Spark condition on the column trace_id."""
    from pyspark.sql import functions as F

    threshold = _threshold(rate)
    if threshold >= HASHES:
        return F.lit(True)
    return draw(scorer) < F.lit(f"{threshold:064x}")


def draw(scorer: str) -> Column:
    """The hash that decides whether the scorer's sample has the trace, in hexadecimal: these sort as their numbers do.

    The first traces in its order are the sample of a lower rate.
    """
    from pyspark.sql import functions as F

    return F.sha2(F.concat(F.col("trace_id"), F.lit(f":{scorer}")), 256)


def _threshold(rate: float) -> int:
    """The smallest hash that is not in the sample: hash / 2**256 < rate exactly when hash < this."""
    return math.ceil(Fraction(rate) * HASHES)
