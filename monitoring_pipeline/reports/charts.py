"""The charts of a report: one measure over the hours of a day or the days of a week, as matplotlib figures.

Charts contain no text from traces, scorers or experiments: names belong in the document around a chart, which escapes
them. Every function takes rows indexed by the start of their slot (a slot without a row is a gap), the slots of the
period, and the slots to shade.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from monitoring_pipeline import text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, whose colours remain distinct under the common forms of colour blindness
BLUE, SKY, VERMILLION, GREEN, PURPLE = "#0072b2", "#56b4e9", "#d55e00", "#009e73", "#8d5b80"
PALE_BLUE, PALE_GREEN, SHADE, GRID, INK = "#a9cce3", "#bfe3d7", "#fdebd8", "#e3e6ea", "#444b54"
DPI = 200  # two pixels of the image for each of the page
COLOURS = 64  # of the palette: the few of a chart, and their edges
Slots = Sequence[datetime]


def volume_chart(rows: pd.DataFrame, slots: Slots, shaded: Collection[datetime]) -> Figure:
    """Traces, from trace_count and error_count: bars of traces without an error and, on top, with an error."""
    figure, axes = _axes(slots, shaded)
    counts = _by_slot(rows, slots, "trace_count"), _by_slot(rows, slots, "error_count")
    traces, errors = (np.nan_to_num(values) for values in counts)
    places = np.arange(len(slots))
    axes.bar(places, traces - errors, width=0.8, color=PALE_BLUE, label="ok")
    axes.bar(places, errors, bottom=traces - errors, width=0.8, color=VERMILLION, label="error")
    _scale(axes, text.count, whole=True)
    return _with_legend(figure, axes)


def error_rate_chart(rows: pd.DataFrame, slots: Slots, shaded: Collection[datetime]) -> Figure:
    """Error rate, from error_rate (a share)."""
    figure, axes = _axes(slots, shaded)
    rate = _by_slot(rows, slots, "error_rate")
    axes.plot(rate, color=VERMILLION, linewidth=1.6, marker="o", markersize=3)
    axes.set_ylim(0, max(0.05, min(1.05, 1.15 * _highest(rate))))
    _scale(axes, lambda share: f"{100 * share:.3g} %")
    return figure


def latency_chart(rows: pd.DataFrame, slots: Slots, shaded: Collection[datetime]) -> Figure:
    """Latency, from p50_duration_ms, p95_duration_ms and p99_duration_ms."""
    figure, axes = _axes(slots, shaded)
    highest = 0.0
    for name, colour, style in (("p99", SKY, ":"), ("p95", BLUE, "-"), ("p50", INK, "--")):
        values = _by_slot(rows, slots, f"{name}_duration_ms")
        highest = max(highest, _highest(values))
        axes.plot(values, style, color=colour, linewidth=1.6, marker="o", markersize=2.5, label=name)
    axes.set_ylim(0, 1.1 * highest or 1)
    _scale(axes, lambda ms: f"{ms / 1000:g} s" if highest >= 1000 else f"{ms:g} ms")
    return _with_legend(figure, axes)


def cost_chart(rows: pd.DataFrame, slots: Slots, shaded: Collection[datetime]) -> Figure:
    """Cost, from cost_usd, as bars."""
    figure, axes = _axes(slots, shaded)
    axes.bar(np.arange(len(slots)), np.nan_to_num(_by_slot(rows, slots, "cost_usd")), width=0.8, color=PURPLE)
    _scale(axes, lambda usd: f"${usd:g}")
    return figure


def quality_chart(rows: pd.DataFrame, slots: Slots, shaded: Collection[datetime]) -> Figure:
    """A scorer's mean score, from mean_score, with the band from ci_low to ci_high."""
    figure, axes = _axes(slots, shaded)
    mean, low, high = (_by_slot(rows, slots, column) for column in ("mean_score", "ci_low", "ci_high"))
    # bars, not a filled curve: a slot between two gaps has no neighbour to fill to
    axes.bar(np.arange(len(slots)), high - low, bottom=low, width=1, color=PALE_GREEN, linewidth=0, antialiased=False)
    axes.plot(mean, color=GREEN, linewidth=1.6, marker="o", markersize=3)
    lowest, highest = np.nanmin([0, *mean]), np.nanmax([1, *mean])
    if lowest == 0 and highest == 1:
        axes.set_ylim(-0.02, 1.02)
    _scale(axes, lambda score: f"{score:g}")
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG image with a palette, a third as large as one without; the same figure returns the same."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = Image.frombuffer("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba())).convert("RGB")
    image = io.BytesIO()
    drawn.quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(image, "png")
    return image.getvalue()


def _by_slot(rows: pd.DataFrame, slots: Slots, column: str) -> np.ndarray:
    """One finite number or NaN for each slot."""
    numbers = rows.reindex(pd.DatetimeIndex(slots))[column].to_numpy(float)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _highest(values: np.ndarray) -> float:
    return float(np.nanmax(values, initial=0.0, where=np.isfinite(values)))


def _axes(slots: Slots, shaded: Collection[datetime]) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    # Fixed margins: a layout that fits them to the labels draws each figure twice.
    figure = Figure(figsize=(3.8, 1.8), facecolor="white")
    axes = figure.add_subplot()
    figure.subplots_adjust(left=0.145, right=0.985, bottom=0.12, top=0.89)
    axes.set_xlim(-0.5, len(slots) - 0.5)
    by_day = slots[1] - slots[0] >= timedelta(days=1)
    ticks = range(0, len(slots), 1 if by_day else 3)
    axes.set_xticks(ticks, [f"{slot:%a} {slot.day}" if by_day else f"{slot:%H}" for slot in slots[:: ticks.step]])
    axes.tick_params(labelsize=7.5, colors=INK, length=0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    for place, slot in enumerate(slots):
        if slot in shaded:
            axes.axvspan(place - 0.5, place + 0.5, color=SHADE, linewidth=0, zorder=0)
    return figure, axes


def _scale(axes: Axes, label: Callable[[float], str], whole: bool = False) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(4, integer=whole, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: label(value)))


def _with_legend(figure: Figure, axes: Axes) -> Figure:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="upper right",
        bbox_to_anchor=(1, 1.02),
        ncols=3,
        frameon=False,
        fontsize=7.5,
        borderpad=0.3,
    )
    return figure
