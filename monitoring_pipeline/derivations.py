"""Derived tables: computes the rows of a window from other tables of the lake.

An asset derives its table for the window of its run; a deletion derives the tables again for the hours that it changed.
Both call these functions, so that each table has one definition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa

from monitoring_pipeline.analysis import performance
from monitoring_pipeline.analysis.agreement import agreement
from monitoring_pipeline.analysis.quality import quality
from monitoring_pipeline.databricks.managed import is_managed
from monitoring_pipeline.databricks.managed_results import update_managed_ledger
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.scoring.coverage import ledger_problems, update_ledger
from monitoring_pipeline.scoring.registry import ConfiguredScorer, reading_of
from monitoring_pipeline.scoring.states import Change
from monitoring_pipeline.tables import (
    AGENT_TRACES,
    ASSESSMENTS,
    HOURLY_PERFORMANCE,
    HOURLY_QUALITY,
    MODEL_USAGE,
    SCORER_AGREEMENT,
    SCORER_COVERAGE,
    SPAN_PROFILE,
    TRACE_ERRORS,
    TRACE_PERFORMANCE,
    Table,
)
from monitoring_pipeline.windows import Window

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


@dataclass(frozen=True)
class Derivation:
    """A table whose rows of a window are `transform` applied to another table's rows of the same window."""

    table: Table
    source: Table
    transform: Callable[[DataFrame], DataFrame]

    def derive(self, lake: LakeResource, window: Window) -> None:
        """Replace the rows of `window` in the table.

        Raises:
            LakeError: a table cannot be read or written.
        """
        lake.replace(self.table, window, self.transform(lake.read(self.source, window)))


PERFORMANCE_OF_TRACES = Derivation(TRACE_PERFORMANCE, AGENT_TRACES, performance.trace_performance)
ERRORS_OF_TRACES = Derivation(TRACE_ERRORS, AGENT_TRACES, performance.trace_errors)
PERFORMANCE_OF_HOURS = Derivation(HOURLY_PERFORMANCE, TRACE_PERFORMANCE, performance.hourly_performance)
PROFILE_OF_SPANS = Derivation(SPAN_PROFILE, AGENT_TRACES, performance.span_profile)
USAGE_OF_MODELS = Derivation(MODEL_USAGE, AGENT_TRACES, performance.model_usage)


def derive_coverage(
    lake: LakeResource, window: Window, scorers: Sequence[ConfiguredScorer], changes: Mapping[str, list[Change]]
) -> None:
    """Update the ledger of `window` for the scorers' current digests; all other rows stay.

    `scorers` have their effective states; `changes` holds the state changes of scorers that Databricks runs, by name.

    Raises:
        LakeError: a table cannot be read or written.
    """
    update_ledger(lake, [scorer for scorer in scorers if not is_managed(scorer)], window)
    for scorer in filter(is_managed, scorers):
        update_managed_ledger(lake, scorer, changes.get(scorer.name, []), window)


def derive_settled_coverage(
    lake: LakeResource, window: Window, scorers: Sequence[ConfiguredScorer], changes: Mapping[str, list[Change]]
) -> list[str]:
    """Repeat `derive_coverage` while other runs add results; returns the remaining ledger problems, a line each."""
    while True:
        version = lake.version(ASSESSMENTS)
        derive_coverage(lake, window, scorers, changes)
        problems = ledger_problems(lake, [*scorers], window)
        if not problems or lake.version(ASSESSMENTS) == version:
            return problems


def derive_quality(lake: LakeResource, window: Window, scorers: Sequence[ConfiguredScorer]) -> pd.DataFrame:
    """Replace the rows of `window` in `hourly_quality` from results and ledger; returns the rows (without `date`).

    Raises:
        LakeError: a table cannot be read or written.
    """
    results, coverage = lake.read(ASSESSMENTS, window), lake.read(SCORER_COVERAGE, window)
    rows = quality(results, coverage, reading_of(scorers), "hour").drop(columns=["covered_hours", "hours"])
    rows["hour"] = pd.to_datetime(rows["hour"], utc=True)
    lake.replace(HOURLY_QUALITY, window, pa.Table.from_pandas(rows, preserve_index=False))
    return rows


def derive_agreement(lake: LakeResource, window: Window, scorers: Sequence[ConfiguredScorer]) -> pd.DataFrame:
    """Replace the rows for the days of `window` in `scorer_agreement`; returns the rows (without `date`).

    Raises:
        LakeError: a table cannot be read or written.
    """
    rows = agreement(lake.read(AGENT_TRACES, window), lake.read(ASSESSMENTS, window), scorers)
    lake.replace(SCORER_AGREEMENT, window, pa.Table.from_pandas(rows, preserve_index=False))
    return rows
