"""The hourly figures that alert rules evaluate; each is read from the lake once per check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from monitoring_pipeline.alerts.detection import Floats
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.settings import ScopeSettings
from monitoring_pipeline.tables import (
    AGENT_TRACES,
    HOURLY_PERFORMANCE,
    HOURLY_QUALITY,
    SCORER_COVERAGE,
    TRACE_PERFORMANCE,
    Table,
)
from monitoring_pipeline.windows import HOUR, Window, floor_hour

if TYPE_CHECKING:
    import pandas as pd

TOTALS = {"cost_usd_per_hour": "cost_usd", "tokens_per_hour": "total_tokens"}
NAMES_LOOK_BACK = (timedelta(days=2), timedelta(days=28))  # to look up experiment ids in, tried in order


@dataclass(frozen=True)
class Figures:
    """The figures at `now`; `digests` are the current digests of the configured scorers, by name.

    Only results of a scorer's current digest count: results of another digest are not comparable.
    """

    lake: LakeResource
    digests: Mapping[str, str]
    now: datetime
    _read_before: dict[tuple[str, Window, tuple[str, ...]], pd.DataFrame] = field(default_factory=dict, repr=False)
    _ids: dict[str, frozenset[str]] = field(default_factory=dict, repr=False)

    def rate(self, metric: str, scope: ScopeSettings, window: Window) -> tuple[Floats, Floats]:
        """Numerator and denominator of the rate for each hour of the window, as numbers of traces."""
        if metric == "error_rate":
            rows = self._performance(scope, window)
            return _by_hour(window, rows, "error_count"), _by_hour(window, rows, "trace_count")
        if metric == "pass_rate":
            rows = self._of_scorer(HOURLY_QUALITY, scope, window, "scored", "pass_rate")
            rows = rows[rows["pass_rate"].notna()]
            rows = rows.assign(passed=(rows["pass_rate"] * rows["scored"]).round())
            return _by_hour(window, rows, "passed"), _by_hour(window, rows, "scored")
        rows = self._of_scorer(SCORER_COVERAGE, scope, window, "eligible", "scored", "failed")
        scored, failed = _by_hour(window, rows, "scored"), _by_hour(window, rows, "failed")
        if metric == "coverage":
            return scored, _by_hour(window, rows, "eligible")
        return failed, scored + failed

    def total(self, metric: str, scope: ScopeSettings, window: Window) -> Floats:
        """Dollars or tokens of each hour of the window; 0 for an hour without any."""
        return _by_hour(window, self._performance(scope, window), TOTALS[metric])

    def p95_by_hour(self, scope: ScopeSettings, window: Window) -> Floats:
        """The 95th percentile of each hour's durations in milliseconds; NaN for an hour without any.

        Several experiments are combined as a geometric mean weighted by traces, because the percentile of the whole
        cannot be computed from the percentiles of its parts.
        """
        rows = self._performance(scope, window)
        rows = rows[rows["p95_duration_ms"] > 0]
        logs = np.log(rows["p95_duration_ms"]) * rows["trace_count"]
        weights = _by_hour(window, rows, "trace_count")
        sums = _by_hour(window, rows.assign(logs=logs), "logs")
        return np.where(weights > 0, np.exp(sums / np.maximum(weights, 1)), np.nan)

    def durations_ms(self, scope: ScopeSettings, window: Window) -> Floats:
        """The durations of the traces in the window, in milliseconds; traces without an end are left out."""
        rows = self._read(TRACE_PERFORMANCE, window, "experiment_id", "trace_name", "duration_ms")
        if scope.trace_name is not None:
            rows = rows[rows["trace_name"] == scope.trace_name]
        durations = self._of_experiment(rows, scope)["duration_ms"].to_numpy(float)
        return durations[~np.isnan(durations)]

    def newest_hour(self, scope: ScopeSettings, window: Window) -> datetime | None:
        """The start of the latest hour in the window with traces."""
        rows = self._performance(scope, window)
        return None if rows.empty else rows["hour"].max().to_pydatetime()

    def knows(self, scope: ScopeSettings) -> bool:
        """Whether the archive has traces of the scope's experiment in the last four weeks."""
        return scope.experiment is None or bool(self._experiment_ids(scope.experiment))

    def _performance(self, scope: ScopeSettings, window: Window) -> pd.DataFrame:
        columns = ("trace_count", "error_count", "p95_duration_ms", "total_tokens", "cost_usd")
        rows = self._read(HOURLY_PERFORMANCE, window, "hour", "experiment_id", "trace_name", *columns)
        name = rows["trace_name"]
        rows = rows[name.isna() if scope.trace_name is None else name == scope.trace_name]
        return self._of_experiment(rows, scope)

    def _of_scorer(self, table: Table, scope: ScopeSettings, window: Window, *columns: str) -> pd.DataFrame:
        rows = self._read(table, window, "hour", "experiment_id", "scorer", "scorer_digest", *columns)
        digest = self.digests.get(scope.scorer or "")
        return self._of_experiment(rows[(rows["scorer"] == scope.scorer) & (rows["scorer_digest"] == digest)], scope)

    def _of_experiment(self, rows: pd.DataFrame, scope: ScopeSettings) -> pd.DataFrame:
        return (
            rows
            if scope.experiment is None
            else rows[rows["experiment_id"].isin(self._experiment_ids(scope.experiment))]
        )

    def _experiment_ids(self, name: str) -> frozenset[str]:
        # Read from the archive: a check must not depend on the MLflow server or add load to it.
        for span in NAMES_LOOK_BACK:
            if not self._ids.get(name):
                window = Window(floor_hour(self.now) - span, floor_hour(self.now) + HOUR)
                rows = self._read(AGENT_TRACES, window, "experiment_id", "experiment_name")
                self._ids[name] = frozenset(rows.loc[rows["experiment_name"] == name, "experiment_id"].dropna())
        return self._ids[name]

    def _read(self, table: Table, window: Window, *columns: str) -> pd.DataFrame:
        key = (table.name, window, columns)
        if key not in self._read_before:
            self._read_before[key] = self.lake.read_columns(table, window, *columns).to_pandas()
        return self._read_before[key]


def _by_hour(window: Window, rows: pd.DataFrame, column: str) -> Floats:
    """The sums of a column for each hour of a window of whole hours, in order; 0 for an hour without rows."""
    hours = np.zeros(len(list(window.hours())))
    positions = ((rows["hour"] - window.start) // HOUR).to_numpy(int)
    np.add.at(hours, positions, rows[column].fillna(0).to_numpy(float))
    return hours
