"""The charts of a report: one measure over the 24 hours of a day, as matplotlib figures.

No text from traces, scorers or experiments is drawn: names belong in the document around a chart, where they can be
escaped. Every function takes rows indexed by hour of day (0 to 23; an hour without a row is a gap) and the hours to
shade.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from monitoring_pipeline.reports import text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which keeps apart under the common forms of colour blindness
BLUE, SKY, VERMILLION, GREEN = "#0072b2", "#56b4e9", "#d55e00", "#009e73"
PALE_BLUE, PALE_GREEN, SHADE, GRID, INK = "#a9cce3", "#bfe3d7", "#fdebd8", "#e3e6ea", "#444b54"
_HOURS = np.arange(24)


def volume_chart(hours: pd.DataFrame, shaded: Iterable[int]) -> Figure:
    """Traces by hour, from trace_count and error_count: bars of those without and, on top, with an error."""
    figure, axes = _day_axes(shaded)
    rows = hours.reindex(_HOURS).fillna({"trace_count": 0, "error_count": 0})
    ok = (rows["trace_count"] - rows["error_count"]).to_numpy(float)
    axes.bar(_HOURS, ok, width=0.8, color=PALE_BLUE, label="ok")
    axes.bar(_HOURS, rows["error_count"].to_numpy(float), bottom=ok, width=0.8, color=VERMILLION, label="error")
    _scale(axes, text.count, whole=True)
    return _with_legend(figure, axes)


def error_rate_chart(hours: pd.DataFrame, shaded: Iterable[int]) -> Figure:
    """Error rate by hour, from error_rate (a share)."""
    figure, axes = _day_axes(shaded)
    rate = _by_hour(hours, "error_rate")
    axes.plot(_HOURS, rate, color=VERMILLION, linewidth=1.6, marker="o", markersize=3)
    axes.set_ylim(0, max(0.05, min(1.05, 1.15 * _highest(rate))))
    _scale(axes, lambda share: f"{100 * share:.3g} %")
    return figure


def latency_chart(hours: pd.DataFrame, shaded: Iterable[int]) -> Figure:
    """Latency by hour, from p50_duration_ms, p95_duration_ms and p99_duration_ms."""
    figure, axes = _day_axes(shaded)
    highest = 0.0
    for name, colour, style in (("p99", SKY, ":"), ("p95", BLUE, "-"), ("p50", INK, "--")):
        values = _by_hour(hours, f"{name}_duration_ms")
        highest = max(highest, _highest(values))
        axes.plot(_HOURS, values, style, color=colour, linewidth=1.6, marker="o", markersize=2.5, label=name)
    axes.set_ylim(0, 1.1 * highest or 1)
    _scale(axes, lambda ms: f"{ms / 1000:g} s" if highest >= 1000 else f"{ms:g} ms")
    return _with_legend(figure, axes)


def quality_chart(hours: pd.DataFrame, shaded: Iterable[int]) -> Figure:
    """A scorer's mean score by hour, from mean_score, with the band from ci_low to ci_high."""
    figure, axes = _day_axes(shaded)
    mean, low, high = (_by_hour(hours, column) for column in ("mean_score", "ci_low", "ci_high"))
    # bars, not a filled curve: an hour between two gaps has no neighbour to fill to
    axes.bar(_HOURS, high - low, bottom=low, width=1, color=PALE_GREEN, linewidth=0, antialiased=False)
    axes.plot(_HOURS, mean, color=GREEN, linewidth=1.6, marker="o", markersize=3)
    lowest, highest = np.nanmin([0, *mean]), np.nanmax([1, *mean])
    if lowest == 0 and highest == 1:
        axes.set_ylim(-0.02, 1.02)
    _scale(axes, lambda score: f"{score:g}")
    return figure


def png(figure: Figure, dpi: int) -> bytes:
    """The figure as a PNG image; the same figure gives the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    image = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(image, format="png", dpi=dpi, metadata={"Software": None})
    return image.getvalue()


def _by_hour(hours: pd.DataFrame, column: str) -> np.ndarray:
    """One finite number or NaN for each hour of the day."""
    numbers = hours.reindex(_HOURS)[column].to_numpy(float)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _highest(values: np.ndarray) -> float:
    return float(np.nanmax(values, initial=0.0, where=np.isfinite(values)))


def _day_axes(shaded: Iterable[int]) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.8, 1.8), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.set_xlim(-0.5, 23.5)
    axes.set_xticks(range(0, 24, 3), [f"{hour:02d}" for hour in range(0, 24, 3)])
    axes.tick_params(labelsize=7.5, colors=INK, length=0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    for hour in shaded:
        axes.axvspan(hour - 0.5, hour + 0.5, color=SHADE, linewidth=0, zorder=0)
    return figure, axes


def _scale(axes: Axes, label: Callable[[float], str], whole: bool = False) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(4, integer=whole, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: label(value)))


def _with_legend(figure: Figure, axes: Axes) -> Figure:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False, fontsize=7.5)
    return figure
