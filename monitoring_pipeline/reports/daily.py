"""The daily quality report: one day's frames as a self-contained HTML page and as Markdown."""

from __future__ import annotations

import base64
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from monitoring_pipeline.reports import charts, findings, text

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure

CHARTED_EXPERIMENTS = 6
AGREEMENT_DAYS = 28
HTML_DPI = 200
MARKDOWN_DPI = 100
MARKDOWN_IMAGE_BYTES = 280_000
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class DailyReportData:
    """What a report is made of. Frames have the columns of the tables they come from, even when they have no rows.

    performance: the day's rows of hourly_performance.
    quality: the day's rows of hourly_quality, of the scorers' current digests.
    daily_quality: hourly_quality's columns without the hour, one row an experiment and scorer for the whole day.
    coverage: the day's rows of scorer_coverage.
    slowest: the slowest rows of trace_performance, slowest first: trace_id, trace_hour, experiment_id, trace_name,
        status, span_count, duration_ms.
    errors: the day's rows of trace_errors, or the first few thousand of them.
    agreement: the rows of scorer_agreement of `AGREEMENT_DAYS` days up to this one, of the scorers' current digests.
    experiment_names: names by experiment id; an id without a name is shown itself.
    day_percentiles: p50, p95 and p99 of all traces of the day in milliseconds, where the caller has computed them.
    """

    day: date
    performance: pd.DataFrame
    quality: pd.DataFrame
    daily_quality: pd.DataFrame
    coverage: pd.DataFrame
    slowest: pd.DataFrame
    errors: pd.DataFrame
    agreement: pd.DataFrame
    experiment_names: dict[str, str]
    day_percentiles: dict[str, float] | None = None


@dataclass(frozen=True)
class _Chart:
    title: str
    subject: str
    figure: Figure


def render_html(data: DailyReportData) -> str:
    """The report as one HTML page: no script, no link, nothing loaded from elsewhere."""
    from markupsafe import Markup

    style = (_HERE / "style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = _environment(text.escape_html, autoescape=True).get_template("daily.html.j2")
    # Markup is for what this package wrote itself; all else is escaped
    return page.render(
        **_context(data, image=partial(_data_uri, dpi=HTML_DPI)), style=Markup(style), style_digest=Markup(digest)
    )


def render_markdown(data: DailyReportData, images: bool) -> str:
    """The report as GitHub-flavoured Markdown.

    With `images` the charts are embedded as data: images, as many as fit into `MARKDOWN_IMAGE_BYTES`; without, the
    text refers to report.html.
    """
    left = MARKDOWN_IMAGE_BYTES if images else 0

    def image(figure: Figure) -> str:
        nonlocal left
        if left <= 0:
            return ""
        uri = _data_uri(figure, MARKDOWN_DPI)
        left -= len(uri)
        return uri if left >= 0 else ""

    page = _environment(text.escape_markdown, autoescape=False).get_template("daily.md.j2")
    return page.render(**_context(data, image))


def write_daily_report(data: DailyReportData, folder: Path) -> tuple[Path, Path]:
    """Writes report.html and report.md into `folder`/<YYYY-MM-DD>/ and returns their paths.

    Both are rendered before either is written, and each replaces an older one in one step. The Markdown file refers to
    the HTML file for the charts.

    Raises:
        OSError: a file or folder could not be written; the older file is still there.
    """
    pages = {"report.html": render_html(data), "report.md": render_markdown(data, images=False)}
    target = folder / data.day.isoformat()
    target.mkdir(parents=True, exist_ok=True)
    for name, page in pages.items():
        _replace(target / name, page)
    return target / "report.html", target / "report.md"


def _replace(path: Path, page: str) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _data_uri(figure: Figure, dpi: int) -> str:
    from markupsafe import Markup

    return Markup("data:image/png;base64," + base64.b64encode(charts.png(figure, dpi)).decode())


def _environment(escape: Callable[..., str], autoescape: bool) -> Environment:
    """Templates in which every value goes through `escape`, so that none has to remember it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else Markup(escape(str(value))),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "sentence": lambda sentence: Markup(escape(sentence, limit=1500)),
        "count": text.count,
        "millions": text.millions,
        "percent": text.percent,
        "duration": text.duration,
        "cost": text.cost,
        "score": text.score,
        "interval": lambda row: text.interval(row["ci_low"], row["ci_high"]),
        "known": lambda value: text.MISSING if pd.isna(value) or value == "" else value,
        "time": lambda moment: f"{pd.Timestamp(moment):%H:%M}",
    }
    return environment


def _context(data: DailyReportData, image: Callable[[Figure], str]) -> dict[str, Any]:
    """What both templates show; `image` makes the address of a chart, empty where it is left out."""
    performance = findings.all_names(data.performance)
    names = data.experiment_names
    context: dict[str, Any] = {"day": data.day, "weekday": f"{data.day:%A}", "names": names}
    if performance["trace_count"].sum() == 0:
        return context | {"total": None}
    quality = findings.as_floats(data.quality)
    found = findings.standouts(performance, quality)
    total = findings.totals(performance)
    scorers = findings.scorer_rows(data.daily_quality, data.coverage)
    experiments = _experiments(performance, found)
    sections = [
        {
            "id": row["id"],
            "charts": [(c.title, c.subject, image(c.figure)) for c in _charts(row["id"], performance, quality, found)],
        }
        for row in experiments[:CHARTED_EXPERIMENTS]
    ]
    return context | {
        "total": total,
        "hours": performance["hour"].nunique(),
        "percentiles": _percentiles(data, performance),
        "exact_percentiles": data.day_percentiles is not None,
        "summary": findings.summary(total, findings.incidents(found), scorers, names),
        "alarm": bool(found),
        "rule": findings.RULE,
        "experiments": experiments,
        "sections": sections,
        "charts_left_out": sum(not address for section in sections for *_, address in section["charts"]),
        "scorers": scorers.to_dict("records"),
        "agreement": findings.agreement_rows(data.agreement).to_dict("records"),
        "agreement_days": AGREEMENT_DAYS,
        "kappa_explained": findings.KAPPA_EXPLAINED,
        "scoring_cost_usd": scorers["scoring_cost_usd"].sum(min_count=1),
        "causes": findings.top_errors(data.errors),
        "error_traces": len(data.errors),
        "slowest": data.slowest.astype({"duration_ms": "float64", "span_count": "float64"}).to_dict("records"),
    }


def _percentiles(data: DailyReportData, performance: pd.DataFrame) -> dict[str, float]:
    if data.day_percentiles is not None:
        return data.day_percentiles
    return {name: float(performance[f"{name}_duration_ms"].median()) for name in ("p50", "p95", "p99")}


def _experiments(performance: pd.DataFrame, found: list[findings.Standout]) -> list[dict[str, Any]]:
    """An experiment's totals, those with hours that stand out first, then those with most traces."""
    troubled = {standout.experiment_id for standout in found}
    rows = [
        {"id": str(experiment_id), "highest_p95": float(hours["p95_duration_ms"].max()), **findings.totals(hours)}
        for experiment_id, hours in performance.groupby("experiment_id")
    ]
    return sorted(rows, key=lambda row: (row["id"] not in troubled, -row["trace_count"], row["id"]))


def _charts(
    experiment_id: str, performance: pd.DataFrame, quality: pd.DataFrame, found: list[findings.Standout]
) -> Iterator[_Chart]:
    shaded = sorted({standout.hour for standout in found if standout.experiment_id == experiment_id})
    hours = findings.by_hour(performance.loc[performance["experiment_id"] == experiment_id])
    yield _Chart("Traces", "", charts.volume_chart(hours, shaded))
    yield _Chart("Error rate", "", charts.error_rate_chart(hours, shaded))
    yield _Chart("Latency", "", charts.latency_chart(hours, shaded))
    scored = quality.loc[(quality["experiment_id"] == experiment_id) & quality["mean_score"].notna()]
    for scorer, rows in scored.groupby("scorer"):
        yield _Chart("Mean score", str(scorer), charts.quality_chart(findings.by_hour(rows), shaded))
