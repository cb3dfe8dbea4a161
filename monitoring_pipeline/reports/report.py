"""A report as one value: its data, and the figures and charts that all of its formats share."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from monitoring_pipeline.reports import charts
from monitoring_pipeline.reports.data import ReportData
from monitoring_pipeline.reports.figures import figures
from monitoring_pipeline.reports.scorers import as_floats

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CHARTED_EXPERIMENTS = 6


@dataclass(frozen=True)
class Chart:
    """A chart of an experiment; `subject` is the scorer of a chart of scores, "" for other charts."""

    title: str
    subject: str
    figure: Figure

    @cached_property
    def image(self) -> str:
        """The chart as a data: address of a PNG image; drawn on first use and then cached."""
        return "data:image/png;base64," + base64.b64encode(charts.png(self.figure)).decode()


@dataclass(frozen=True)
class Report:
    """The report of `data`. Its figures and charts are computed on first use and then cached."""

    data: ReportData

    @cached_property
    def figures(self) -> dict[str, Any]:
        """The content of the report, as returned by `monitoring_pipeline.reports.figures.figures`."""
        return figures(self.data)

    @cached_property
    def charts(self) -> list[list[Chart]]:
        """The charts of each of the first `CHARTED_EXPERIMENTS` experiments, in the order of the figures."""
        return [
            list(_charts(self.data, row["experiment_id"])) for row in self.figures["experiments"][:CHARTED_EXPERIMENTS]
        ]


def _charts(data: ReportData, experiment_id: str) -> Iterator[Chart]:
    slots = data.period.slots
    step = slots[1] - slots[0]
    times = [(i.start, i.end) for i in data.incidents if i.experiment_id == experiment_id]
    shaded = {slot for slot in slots if any(start < slot + step and slot < end for start, end in times)}
    rows = _of(as_floats(data.trend), experiment_id)
    yield Chart("Traces", "", charts.volume_chart(rows, slots, shaded))
    yield Chart("Error rate", "", charts.error_rate_chart(rows, slots, shaded))
    yield Chart("Latency", "", charts.latency_chart(rows, slots, shaded))
    if rows["cost_usd"].notna().any():
        yield Chart("Cost", "", charts.cost_chart(rows, slots, shaded))
    quality = as_floats(data.quality_trend)
    scored = quality[(quality["experiment_id"] == experiment_id) & quality["mean_score"].notna()]
    for scorer, of_scorer in scored.groupby("scorer"):
        yield Chart("Mean score", str(scorer), charts.quality_chart(of_scorer.set_index("hour"), slots, shaded))


def _of(trend: pd.DataFrame, experiment_id: str) -> pd.DataFrame:
    return trend[trend["experiment_id"].fillna("") == experiment_id].set_index("hour")
