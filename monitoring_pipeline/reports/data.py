"""The data of a report: frames whose size does not depend on the number of traces."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from monitoring_pipeline.reports.period import Period
from monitoring_pipeline.reports.standouts import Incident

AGREEMENT_DAYS = 28
KNOWN_ERROR_DAYS = 7
EXPLAINED_INCIDENTS = 3


@dataclass(frozen=True)
class ReportData:
    """Frames have the columns of their source tables, also without rows; times are UTC.

    A column `period` holds the name of a period: the report's own, or an earlier one to compare with.

    hours: the period's rows of hourly_performance that total an experiment.
    trend: the same by `period.slots`, so for a day the same rows; `hour` is the start of the slot.
    totals: `analysis.summaries.totals` by period; for a period no longer in the archive, sums of its hours.
    quality_trend: hourly_quality by slot, for the scorers' current digests.
    quality_total: hourly_quality's columns without the hour, one row per experiment and scorer for the whole period.
    scores: `analysis.summaries.score_moments` by period, for the current digests.
    coverage: the period's rows of scorer_coverage, for the current digests.
    errors: `analysis.errors.error_groups` of the period, with the experiment_id of the first sample trace.
    known_errors: the same for the `KNOWN_ERROR_DAYS` previous days; None if the archive has no traces of them.
    known_error_days: the number of these days that have traces in the archive.
    error_traces: the number of traces with `errors`.
    incidents: the times that stand out, most standouts first.
    incident_errors: `error_groups` of the first `EXPLAINED_INCIDENTS`; the column `incident` holds the position.
    stages: `analysis.summaries.stage_sums` by period.
    stage_hours: the period's rows of span_profile for the stages with most self time.
    worst: the worst traces, with the columns of trace_performance and: kind ("failed", "low_scores", "slowest",
        "most_expensive"), scores (for low_scores: a list of scorer and score).
    agreement: the rows of scorer_agreement for the `AGREEMENT_DAYS` days up to the period's end and current digests.
    experiment_names: names by experiment id; an experiment without a name is shown by its id.
    mlflow_ui: the base address of links to traces; None: no links.
    is_complete: whether the period was over when the data was read.
    unread: trace_id and reason of the traces that could not be read, and are in quarantine.
    """

    period: Period
    hours: pd.DataFrame
    trend: pd.DataFrame
    totals: pd.DataFrame
    quality_trend: pd.DataFrame
    quality_total: pd.DataFrame
    scores: pd.DataFrame
    coverage: pd.DataFrame
    errors: pd.DataFrame
    known_errors: pd.DataFrame | None
    known_error_days: int
    error_traces: int
    incidents: list[Incident]
    incident_errors: pd.DataFrame
    stages: pd.DataFrame
    stage_hours: pd.DataFrame
    worst: pd.DataFrame
    agreement: pd.DataFrame
    experiment_names: dict[str, str]
    mlflow_ui: str | None = None
    is_complete: bool = True
    unread: list[dict[str, Any]] = field(default_factory=list)

    def name_of(self, experiment_id: str | None) -> str:
        """The experiment's name, else its id."""
        return self.experiment_names.get(experiment_id or "") or experiment_id or ""
