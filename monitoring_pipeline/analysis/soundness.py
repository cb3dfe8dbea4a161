"""Plausibility of a table: its columns, the ranges of its values, and unexpectedly empty hours."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

import pyarrow as pa

from monitoring_pipeline.tables import AGENT_TRACES, HOURLY_PERFORMANCE, TRACE_PERFORMANCE, Table
from monitoring_pipeline.windows import HOUR

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import StructType

SHARES = {"error_rate", "pass_rate", "sample_rate", "agreement"}
# Each column is at most the next one.
ORDERED = (
    ("error_span_count", "span_count"),
    ("error_count", "trace_count"),
    ("p50_duration_ms", "p95_duration_ms", "p99_duration_ms"),
    ("p50_ms", "p95_ms", "p99_ms", "max_ms"),
    ("ci_low", "mean_score", "ci_high"),
    ("pass_low", "pass_rate", "pass_high"),
    ("kappa_low", "kappa", "kappa_high"),
)
TOLERANCE = 1e-9  # for floating-point rounding
# Values that a trace reports about itself, and figures derived from them: a client whose clock was set back must not
# block an hour.
_REPORTED = ("input_tokens", "output_tokens", "total_tokens", "cost_usd")
CLAIMS = {
    AGENT_TRACES.name: {*_REPORTED, "duration_ms"},  # archived before such values became null
    TRACE_PERFORMANCE.name: {*_REPORTED, "duration_ms"},
    HOURLY_PERFORMANCE.name: {*_REPORTED, *(f"{figure}_duration_ms" for figure in ("avg", "p50", "p95", "p99"))},
}

BUSY = 10  # traces per hour; by chance alone, one in 20,000 such hours has none
BASELINE_DAYS = 7
ENOUGH_DAYS = 3


@dataclass(frozen=True)
class Breach:
    """A rule broken by `rows` rows of an hour (or day). `is_claim`: the value comes from the trace, not from us."""

    hour: datetime
    rule: str
    rows: int
    is_claim: bool

    def __str__(self) -> str:
        return f"{self.hour:%Y-%m-%d %H:%M} {self.rule}: {self.rows} row{'s' if self.rows != 1 else ''}"


def schema_problems(table: Table, found: StructType) -> list[str]:
    """Differences between the columns `found` and those that `table` declares, as messages.

    Nullability is not compared, because engines do not report it reliably.
    """
    from pyspark.sql.pandas.types import from_arrow_schema

    declared = {field.name: field.dataType.simpleString() for field in from_arrow_schema(table.schema)}
    present = {field.name: field.dataType.simpleString() for field in found}
    problems = [f"{name} is missing" for name in declared if name not in present]
    problems += [f"{name} is not declared" for name in present if name not in declared]
    both = [name for name in declared if name in present]
    problems += [f"{name} is {present[name]}, not {declared[name]}" for name in both if present[name] != declared[name]]
    return [f"{table.name}: {problem}" for problem in problems]


def has_numbers(table: Table) -> bool:
    """Whether any column is a number; only then has `breaches` any rules."""
    return any(pa.types.is_integer(field.type) or pa.types.is_floating(field.type) for field in table.schema)


def breaches(table: Table, rows: DataFrame) -> list[Breach]:
    """The rules that `rows` of the table break, by hour, in order.

    The rules: counts, durations and costs are not negative, shares lie between 0 and 1 and kappa between -1 and 1,
    numbers are finite, percentiles are in order, and a mean lies in its interval.
    """
    from pyspark.sql import functions as F

    rules = list(_rules(table))
    counts = [F.sum(F.coalesce(broken, F.lit(False)).cast("long")) for _, _, broken in rules]
    sums = [count.alias(f"rule_{index}") for index, count in enumerate(counts)]
    by_hour = rows.groupBy(table.hour).agg(*sums).toArrow().sort_by(table.hour)
    claims = CLAIMS.get(table.name, set())
    return [
        Breach(hour[table.hour], rule, hour[f"rule_{index}"], column in claims)
        for hour in by_hour.to_pylist()
        for index, (column, rule, _) in enumerate(rules)
        if hour[f"rule_{index}"]
    ]


def _rules(table: Table) -> Iterator[tuple[str, str, Column]]:
    """For each rule: its column, a description of a breach, and the condition that broken rows meet."""
    from pyspark.sql import functions as F

    for field in table.schema:
        value = F.col(field.name)
        if pa.types.is_floating(field.type):
            yield field.name, f"{field.name} is not finite", F.isnan(value) | (F.abs(value) == float("inf"))
        if pa.types.is_integer(field.type) or field.name.endswith(("_ms", "_usd")):
            yield field.name, f"{field.name} below 0", value < 0
        if field.name in SHARES:
            yield field.name, f"{field.name} outside 0 to 1", (value < 0) | (value > 1)
        if field.name == "kappa":
            yield field.name, f"{field.name} outside -1 to 1", F.abs(value) > 1 + TOLERANCE
    for chain in ORDERED:
        if set(chain) <= set(table.schema.names):
            for low, high in pairwise(chain):
                slack = TOLERANCE * F.greatest(F.lit(1.0), F.abs(F.col(high)))
                # We compute the order of values, even if the values are claims.
                yield "", f"{low} above {high}", F.col(low) > F.col(high) + slack


def usual_traces(counts: Mapping[datetime, int], hour: datetime, beside: tuple[datetime, ...]) -> tuple[float, str]:
    """The expected number of traces in `hour`, and a description of its basis.

    The expected number is the median of the same hour on those of the seven previous days that had traces around it;
    with fewer than three such days, the minimum of the hours `beside`. `counts` has the traces of each hour; missing
    hours have none.
    """
    days = [hour - timedelta(days=day) for day in range(1, BASELINE_DAYS + 1)]
    running = [counts.get(day, 0) for day in days if any(counts.get(day + near * HOUR) for near in (-1, 0, 1))]
    if len(running) >= ENOUGH_DAYS:
        median = statistics.median(running)
        return median, f"a median of {median:g} traces in this hour on {len(running)} earlier days"
    least = min(counts.get(near, 0) for near in beside)
    return least, f"at least {least} traces in the adjacent hour{'s' if len(beside) > 1 else ''}"


def silent_hours(counts: Mapping[datetime, int], hours: list[datetime]) -> dict[datetime, str]:
    """The `hours` that have no trace although ten or more are usual, with a description of the usual number."""
    usual = {hour: usual_traces(counts, hour, (hour - HOUR, hour + HOUR)) for hour in hours if not counts.get(hour)}
    return {hour: words for hour, (traces, words) in usual.items() if traces >= BUSY}
