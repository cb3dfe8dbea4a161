"""Recomputes tables, reports and datasets of an hour, a day or a week after some of its traces were deleted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from monitoring_pipeline.databricks.managed import is_managed
from monitoring_pipeline.derivations import (
    PERFORMANCE_OF_HOURS,
    PROFILE_OF_SPANS,
    USAGE_OF_MODELS,
    derive_agreement,
    derive_coverage,
    derive_quality,
)
from monitoring_pipeline.reports.period import Period
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.rows import from_dicts
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.scoring.registry import ConfiguredScorer, load_scorers
from monitoring_pipeline.scoring.states import Change, ScorerLog, effective
from monitoring_pipeline.settings import Settings
from monitoring_pipeline.tables import (
    AGENT_TRACES,
    ASSESSMENTS,
    HOURLY_QUALITY,
    NOT_APPLICABLE,
    SCORER_AGREEMENT,
    SCORER_COVERAGE,
    Table,
)
from monitoring_pipeline.windows import Window

# Columns of traces without a result. They are reduced in this order, since a deleted trace's column is unknown for a
# digest that is no longer in use.
WITHOUT_RESULT = ("unsampled", "filtered_out", "pending", "over_budget")
Line = dict[str, Any]


@dataclass(frozen=True)
class Recount:
    """Recomputes the figures of an hour, a day or a week with the current scorers."""

    lake: LakeResource
    scorers: list[ConfiguredScorer]
    changes: Mapping[str, list[Change]]
    settings: Settings
    tracking: TrackingResource

    @classmethod
    def of(cls, settings: Settings, lake: LakeResource, tracking: TrackingResource) -> Recount:
        """Return a Recount for the scorers of `settings` with their current states in MLflow.

        Raises:
            MonitoringError: a scorer cannot be loaded, or MLflow cannot be reached.
        """
        scorers, log = load_scorers(settings.scorers), ScorerLog(tracking, settings.scoring.experiment)
        changes = log.read().changes if any(map(is_managed, scorers)) else {}
        return cls(lake, effective(scorers, log), changes, settings, tracking)

    def hour(self, window: Window) -> None:
        """Recompute performance, ledger and quality of an hour, each only if its table has rows of the hour."""
        lake = self.lake
        for derivation in (PERFORMANCE_OF_HOURS, PROFILE_OF_SPANS, USAGE_OF_MODELS):
            if _has_rows(lake, derivation.table, window):
                derivation.derive(lake, window)
        if _has_rows(lake, SCORER_COVERAGE, window):
            self._ledger(window)
        if _has_rows(lake, HOURLY_QUALITY, window):
            derive_quality(lake, window, self.scorers)

    def agreement(self, window: Window) -> None:
        """Recompute the agreement of a day, if it has rows."""
        if _has_rows(self.lake, SCORER_AGREEMENT, window):
            derive_agreement(self.lake, window, self.scorers)

    def report(self, period: Period) -> list[Path]:
        """Rewrite the report of a day or week, if it exists, and its copy in MLflow; returns its folder.

        Raises:
            TrackingError: the copy in MLflow could not be replaced.
        """
        from monitoring_pipeline.reports.files import write_report
        from monitoring_pipeline.reports.in_mlflow import log_report
        from monitoring_pipeline.reports.links import mlflow_ui
        from monitoring_pipeline.reports.reading import report_data
        from monitoring_pipeline.reports.report import Report

        reports = self.settings.reports
        if not (Path(reports.location) / period.name).is_dir():
            return []
        report = Report(report_data(self.lake, self.scorers, period, mlflow_ui(self.settings)))
        folder = write_report(report, Path(reports.location))
        if reports.log_to_experiment:
            log_report(self.tracking, reports.log_to_experiment, report, folder)
        return [folder]

    def datasets(self, digests: Collection[str]) -> list[Path]:
        """Rewrite the files of configured datasets without the deleted traces; returns the changed folders.

        Raises:
            MonitoringError: a dataset cannot be read or written.
        """
        from monitoring_pipeline.datasets.files import forget

        return [
            changed
            for entry in self.settings.datasets
            for changed in forget(Path(entry.location) / entry.name, digests)
        ]

    def datasets_in_mlflow(self, digests: Collection[str]) -> int:
        """Delete the records of deleted traces from the configured datasets in MLflow; returns how many.

        Raises:
            TrackingError: MLflow cannot be reached, or rejects the request.
        """
        from monitoring_pipeline.datasets.managed import forget_in_mlflow

        names = {entry.mlflow_name or entry.name for entry in self.settings.datasets if entry.mlflow}
        return sum(forget_in_mlflow(self.tracking, name, digests) for name in sorted(names))

    def _ledger(self, window: Window) -> None:
        lake = self.lake
        lines = lake.read_columns(SCORER_COVERAGE, window, "scorer", "scorer_digest").to_pylist()
        recorded = {(line["scorer"], line["scorer_digest"]) for line in lines}
        current = [scorer for scorer in self.scorers if (scorer.name, scorer.digest) in recorded]
        derive_coverage(lake, window, current, self.changes)
        lines = lake.read_columns(SCORER_COVERAGE, window, *SCORER_COVERAGE.columns.names).to_pylist()
        kept = [settled for line in lines if (settled := self._settled(line, window))["archived"]]
        if kept != lines:
            lake.replace(SCORER_COVERAGE, window, from_dicts(SCORER_COVERAGE, kept))

    def _settled(self, line: Line, window: Window) -> Line:
        hour, experiment = line["hour"], line["experiment_id"]
        is_here = (pc.field("trace_hour") == hour) & (
            pc.field("experiment_id").is_null() if experiment is None else pc.field("experiment_id") == experiment
        )
        is_of = is_here & (pc.field("scorer") == line["scorer"]) & (pc.field("scorer_digest") == line["scorer_digest"])
        place, digest = ("trace_hour", "experiment_id"), ("scorer", "scorer_digest")
        archived = self.lake.read_columns(AGENT_TRACES, window, *place).filter(is_here).num_rows
        results = self.lake.read_columns(ASSESSMENTS, window, *place, *digest, "error_code").filter(is_of)
        declined = self.lake.read_columns(NOT_APPLICABLE, window, *place, *digest).filter(is_of).num_rows
        return settled(
            line, archived, results["error_code"].null_count, len(results) - results["error_code"].null_count, declined
        )


def settled(line: Line, archived: int, scored: int, failed: int, not_applicable: int) -> Line:
    """Return the row of the ledger with counts that add up for the remaining traces.

    `archived` is the number of remaining traces; `scored`, `failed` and `not_applicable` are the scorer's counts for
    them. It is unknown to which columns the deleted traces without a result belonged, so the columns of
    `WITHOUT_RESULT` are reduced in turn.
    """
    new = {**line, "archived": min(line["archived"], archived), "scored": scored, "failed": failed}
    new["not_applicable"] = not_applicable
    new["filtered_out"] = max(line["filtered_out"] - line["not_applicable"], 0)
    excess = scored + failed + not_applicable + sum(new[name] for name in WITHOUT_RESULT) - new["archived"]
    for name in WITHOUT_RESULT:
        taken = min(max(excess, 0), new[name])
        new[name], excess = new[name] - taken, excess - taken
    new["filtered_out"] += not_applicable
    new["eligible"] = scored + failed + new["over_budget"] + new["pending"]
    new["archived"] = new["eligible"] + new["filtered_out"] + new["unsampled"]
    return new


def _has_rows(lake: LakeResource, table: Table, window: Window) -> bool:
    return lake.read_columns(table, window, table.hour).num_rows > 0


def hour_window(hour: datetime) -> Window:
    """Return the one-hour window that starts at `hour`."""
    return next(Window.covering([hour]).by_hour())
