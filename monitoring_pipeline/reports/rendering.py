"""Renders a report as a self-contained HTML page, as Markdown and as JSON, from the same figures."""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import json
import math
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monitoring_pipeline import text
from monitoring_pipeline.reports import changes, standouts
from monitoring_pipeline.reports.findings import shown
from monitoring_pipeline.reports.report import Chart, Report
from monitoring_pipeline.reports.scorers import KAPPA_EXPLAINED

if TYPE_CHECKING:
    from jinja2 import Environment, Template

MARKDOWN_IMAGE_BYTES = 280_000
STATES = {"trouble": "Trouble", "watch": "Needs a look", "good": "All well", "empty": "No traces"}
WORST = {
    "failed": "Failed, most failed spans first",
    "low_scores": "Failed by most scorers",
    "slowest": "Slowest",
    "most_expensive": "Most expensive",
}
_HERE = Path(__file__).parent


def render_html(report: Report) -> str:
    """The report as one HTML page, without scripts and external resources, and with links only to MLflow's UI."""
    from markupsafe import Markup

    style = (_HERE / "style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = _template("report.html.j2")
    # Markup is only for text from this package; everything else is escaped
    return page.render(
        **_context(report, image=lambda chart: chart.image), style=Markup(style), style_digest=Markup(digest)
    )


def render_markdown(report: Report, images: bool) -> str:
    """The report as GitHub-flavoured Markdown.

    With `images`, charts are embedded as data: images, as many as fit into `MARKDOWN_IMAGE_BYTES`; without, the text
    refers to report.html.
    """
    left = MARKDOWN_IMAGE_BYTES if images else 0

    def image(chart: Chart) -> str:
        nonlocal left
        if left <= 0:
            return ""
        left -= len(chart.image)
        return chart.image if left >= 0 else ""

    page = _template("report.md.j2")
    return page.render(**_context(report, image))


def render_json(report: Report) -> str:
    """The figures of the report as JSON in ASCII, times in ISO 8601."""
    return json.dumps(report.figures, default=_as_iso, allow_nan=False, indent=1) + "\n"


def _as_iso(moment: date | datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


@functools.cache
def _template(name: str) -> Template:
    """The template, which escapes every value for its kind of document."""
    of_html = name.endswith(".html.j2")
    return _environment(text.escape_html if of_html else text.escape_markdown, autoescape=of_html).get_template(name)


def _environment(escape: Callable[..., str], autoescape: bool) -> Environment:
    """A template environment that passes every value through `escape`, so that no template can forget it."""
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
    numbers = {
        name: _of_number(function)
        for name, function in {
            "count": text.count,
            "millions": text.millions,
            "percent": text.percent,
            "duration": text.duration,
            "cost": text.cost,
            "score": text.score,
        }.items()
    }
    environment.filters |= numbers | {
        "sentence": lambda sentence: Markup(escape(sentence, limit=1500)),
        "pass_interval": lambda row: text.interval(_number(row["pass_low"]), _number(row["pass_high"]), text.percent),
        "interval": lambda row: text.interval(_number(row["ci_low"]), _number(row["ci_high"])),
        "known": lambda value: text.MISSING if value is None or value == "" else value,
        "time": lambda moment, kind: f"{moment:%H:%M}" if kind == "day" else f"{moment:%a %H:%M}",
        # trace_url has already percent-encoded the address, and it must not be cut
        "href": lambda url: Markup(html.escape(url)),
        "amount": _amount,
        "shown": lambda change, value: shown(change["measure"], _number(value)),
    }
    return environment


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _of_number(function: Callable[[float], str]) -> Callable[[float | None], str]:
    return lambda value: function(_number(value))


def _amount(change: dict[str, Any]) -> str:
    """The size of a change, with its sign."""
    amount = _number(change["amount"])
    if not math.isfinite(amount):
        return text.MISSING
    if change["measure"] in changes.RATIOS:
        return f"{100 * (amount - 1):+z,.0f} %"
    return f"{amount:+z.2f}" if change["measure"] == "mean_score" else f"{100 * amount:+z.1f} points"


def _context(report: Report, image: Callable[[Chart], str]) -> dict[str, Any]:
    """The values for both templates; `image` returns the address of a chart, or "" to leave the chart out."""
    from markupsafe import Markup

    data, figures = report.data, report.figures
    state = STATES[figures["verdict"]["state"]]
    if not figures["total_requests"]:
        return {"report": figures, "period": data.period, "state": state}
    experiments = figures["experiments"]
    sections = [
        {
            "experiment": row["experiment"],
            # base64 text, which needs no escaping
            "charts": [(chart.title, chart.subject, Markup(image(chart))) for chart in of_experiment],
        }
        for row, of_experiment in zip(experiments, report.charts, strict=False)  # only the first have charts
    ]
    own = [change for change in figures["changes"] if change["experiment_id"] is None]
    return {
        "report": figures,
        "period": data.period,
        "state": state,
        "sections": sections,
        "several": len(experiments) > 1,
        "changes": {measure: [c for c in own if c["measure"] == measure] for measure in changes.MEASURES},
        "score_changes": _score_changes(figures["changes"]),
        "earlier": [label for label, _ in data.period.earlier()],
        "hours": data.hours["hour"].nunique(),
        "charts_left_out": sum(not address for section in sections for *_, address in section["charts"]),
        "worst": WORST,
        "rules": [standouts.RULE, changes.RULE],
        "kappa_explained": KAPPA_EXPLAINED,
    }


def _score_changes(of_all: list[dict[str, Any]]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The change of a scorer's pass rate, else mean score, by experiment, scorer and label of the earlier period."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for change in of_all:
        if change["scorer"]:
            found.setdefault((change["experiment_id"], change["scorer"], change["against_label"]), change)
    return found
