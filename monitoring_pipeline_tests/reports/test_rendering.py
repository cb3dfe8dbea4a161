from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
from markdown_it import MarkdownIt

from monitoring_pipeline import text
from monitoring_pipeline.reports.data import ReportData
from monitoring_pipeline.reports.figures import figures
from monitoring_pipeline.reports.period import Period
from monitoring_pipeline.reports.rendering import render_html, render_json, render_markdown
from monitoring_pipeline.reports.report import Report
from monitoring_pipeline.tables import HOURLY_PERFORMANCE, HOURLY_QUALITY
from monitoring_pipeline_tests.reports.frames import (
    DAY,
    day_of,
    empty_day,
    frame,
    incident_day,
    performance_row,
    quality_row,
)
from monitoring_pipeline_tests.reports.hostile import ATTACK, UI, hostile_day

Render = Callable[[ReportData], str]


def html_of(data: ReportData) -> str:
    return render_html(Report(data))


def json_of(data: ReportData) -> str:
    return render_json(Report(data))


EITHER = pytest.mark.parametrize("render", [html_of, lambda data: render_markdown(Report(data), images=False)])


def incident_week() -> ReportData:
    """The incident's hours on the Wednesday of a week, 100 quiet hours on the days around it."""
    day = incident_day()
    quiet = [performance_row(hour, "1", 100, 2, 2200.0) for hour in (*range(-48, 0), *range(24, 76))]
    rows = [row for row in day.hours.to_dict("records") if row["experiment_id"] == "1"]
    days = [performance_row(24 * n, "1", 2400, 160 if n == 0 else 48, 2200.0) for n in range(-2, 3)]
    week = day_of([*quiet, *rows], trend=frame(HOURLY_PERFORMANCE, days))
    names = {"period": Period.week_of(DAY), "experiment_names": {"1": "support-agent"}}
    totals = week.totals.assign(period=names["period"].name)
    return replace(week, totals=totals, **names)


class Page(HTMLParser):
    """The elements, attributes and texts of a page; `cells` are the texts of its dt, dd, th and td elements."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("dt", "dd", "th", "td"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.cells and data.strip():
            self.cells[-1] += data.strip()

    def row(self, first: str, columns: int) -> list[str]:
        """The cell with the text `first` and the cells after it."""
        start = self.cells.index(first)
        return self.cells[start : start + columns]


@pytest.fixture(scope="module")
def incident_html() -> str:
    return render_html(Report(incident_day()))


@pytest.fixture(scope="module")
def incident_page(incident_html: str) -> Page:
    return Page(incident_html)


def markdown_rows(markdown: str) -> list[list[str]]:
    """The cells of all table rows."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    rows: list[list[str]] = []
    for at, token in enumerate(tokens):
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("td_open", "th_open"):
            rows[-1].append("".join(child.content for child in tokens[at + 1].children or []))
    return rows


def test_the_figures_equal_those_of_the_frames(incident_page: Page) -> None:
    rows = incident_day().hours.to_dict("records")
    traces, errors = sum(row["trace_count"] for row in rows), sum(row["error_count"] for row in rows)
    assert incident_page.row("Traces", 3) == ["Traces", f"{traces:,}", "in 24 of 24 hours"]
    rate = errors / traces
    assert incident_page.row("Error rate", 3) == [
        *("Error rate", f"{100 * rate:.1f} %", f"{errors} failed, {100 * (1 - rate):.1f} % ok")
    ]
    assert incident_page.row("Latency p95", 3) == ["Latency p95", "9.1 s", "p50 3.6 s, p99 13.7 s"]
    assert incident_page.row("Cost", 3) == ["Cost", f"${0.004 * traces:.2f}", "$0.0040 per trace; scoring $8.38"]
    assert incident_page.row("Tokens", 2) == ["Tokens", f"{traces / 1000:.1f} M"]


def test_a_change_shows_its_size_its_baseline_and_whether_it_is_noise(incident_page: Page) -> None:
    assert incident_page.row("Traces", 4)[3] == "+0 % against 4,057 the day before:within noise"
    assert incident_page.row("Error rate", 4)[3] == "+3.5 points against 1.1 % the day before:worse"
    assert incident_page.row("Latency p95", 4)[3] == "+314 % against 2.2 s the day before:worse"


def test_markdown_has_the_same_figures() -> None:
    rows = markdown_rows(render_markdown(Report(incident_day()), images=False))
    assert rows[1] == ["4,057", "4.7 %", "3.6 s", "9.1 s", "13.7 s", "$16.23", "$8.38", "4.1 M"]
    assert ["Error rate", "4.7 %", "1.1 %", "the day before", "+3.5 points", "worse"] in rows
    assert ["26", "answer", "ValueError: no documents", "09:05", "tr-09-000"] in rows


def test_verdict_findings_and_tables_are_on_the_page(incident_page: Page) -> None:
    assert "14:00 to 15:00 UTC, support-agent: 82 of 200 traces failed" in incident_page.text
    assert "correctness (support-agent) failed on 22 of 296 traces" in incident_page.text
    assert "is compared with the other hours of its experiment" in incident_page.text
    assert incident_page.row("70", 3) == ["70", "retrieve", "newTimeoutError: vector index did not answer within 8 s"]
    assert incident_page.row("retrieve", 1) == ["retrieve"]
    assert "new" not in incident_page.row("26", 3)[2]
    ledger = incident_page.cells[incident_page.cells.index("Pending") :]
    archived = sum(
        row["archived"]
        for row in incident_day().coverage.to_dict("records")
        if (row["experiment_id"], row["scorer"]) == ("1", "has_sources")
    )
    start = ledger.index("has_sources")
    assert ledger[start : start + 10] == [
        *(
            "has_sources",
            "support-agent",
            f"{archived:,}",
            "0",
            "0",
            f"{archived:,}",
            f"{archived - 22:,}",
            "22",
            "0",
            "0",
        )
    ]


def test_the_worst_traces_are_listed_by_kind(incident_page: Page) -> None:
    for title in ("Failed, most failed spans first", "Failed by most scorers", "Slowest", "Most expensive"):
        assert title in incident_page.text
    cells = incident_page.cells
    low = next(cell for cell in cells if "has_sources 0.00, is_polite 0.25" in cell)
    assert low.startswith(f"tr-{3:032x}")
    assert cells[cells.index("6.7 s") - 3].startswith(f"tr-{8:032x}")


AGREEMENT = [
    ["correctness", "support-agent", "feedback correctness", "86", "88 %", "0.67", "0.49 to 0.86"],
    ["correctness", "support-agent", "digest 3f9c51aa02b7d416", "486", "95.7 %", "0.81", "0.74 to 0.89"],
    ["is_polite", "2", "feedback thumbs_up", "9", "89 %", text.MISSING, text.MISSING],
]


def test_agreement_is_computed_from_the_sum_of_days(incident_page: Page) -> None:
    counts = [["61", "4", "6", "15"], ["410", "12", "9", "55"], ["8", "0", "1", "0"]]
    expected = [row + numbers for row, numbers in zip(AGREEMENT, counts, strict=True)]
    cells = incident_page.row("Both fail", 33)[1:]  # all but the last, which includes the text after the table
    assert cells == [cell for row in expected for cell in row][:32]
    rows = markdown_rows(render_markdown(Report(incident_day()), images=False))
    assert [row for row in rows if len(row) == 11][1:] == expected
    assert "Kappa is agreement beyond chance" in incident_page.text
    assert "Agreement with people's feedback and earlier digests, last 28 days" in incident_page.text


@EITHER
def test_without_comparisons_agreement_is_not_mentioned(render: Render) -> None:
    page = render(replace(incident_day(), agreement=empty_day().agreement))
    assert "greement" not in page
    assert "Kappa" not in page


def test_each_experiment_has_its_charts(incident_page: Page) -> None:
    alts = [attributes["alt"] for tag, attributes in incident_page.elements if tag == "img"]
    measures = ["Traces by hour", "Error rate by hour", "Latency by hour", "Cost by hour"]
    assert alts == 2 * [
        *measures,
        *(f"Mean score of {name} by hour" for name in ("correctness", "has_sources", "is_polite")),
    ]


def test_experiments_with_incidents_are_charted_first() -> None:
    rows = [performance_row(hour, str(n), 100 + n, 1, 100) for n in range(9) for hour in range(5)]
    html = render_html(Report(day_of([*rows, performance_row(7, "0", 100, 90, 100)])))
    assert re.findall(r"<h2>(\d) <small>", html) == ["0", "8", "7", "6", "5", "4"]
    assert "Charts are shown for 6 of 9 experiments" in html
    assert Page(html).row("1", 2) == ["1", "505"]


def test_a_week_is_shown_by_day_and_its_incident_by_hour() -> None:
    html = render_html(Report(incident_week()))
    page = Page(html)
    assert "<title>Weekly quality report, 2026-W03</title>" in html
    assert "Wed 2026-01-14 14:00 to 15:00 UTC, support-agent: 82 of 200 traces failed" in page.text
    assert page.row("Wed 2026-01-14", 7) == ["Wed 2026-01-14", "2,400", "160", "6.7 %", "2.2 s", "$9.60", "1"]
    assert page.row("Thu 2026-01-15", 7)[-1] == "0"
    alts = [attributes["alt"] for tag, attributes in page.elements if tag == "img"]
    assert alts == ["Traces by day", "Error rate by day", "Latency by day", "Cost by day"]
    report = figures(incident_week())
    assert report["daily_volume"] == {f"2026-01-{day}": 2400 for day in range(12, 17)}
    assert report["worst_days"] == [DAY]
    markdown = render_markdown(Report(incident_week()), images=False)
    assert "# Weekly quality report, 2026-W03" in markdown
    assert ["Wednesday 2026-01-14", "2,400", "160", "6.7 %", "2.2 s", "$9.60", "1"] in markdown_rows(markdown)


@EITHER
def test_an_unfinished_period_is_marked(render: Render) -> None:
    data = day_of([performance_row(5, "1", 3, 0, 100)])
    assert "was not over when this report was created" in render(replace(data, is_complete=False))
    assert "was not over" not in render(data)


# --- no external resources, no markup from data ---


def test_the_page_loads_no_external_resources(incident_page: Page, incident_html: str) -> None:
    assert {tag for tag, _ in incident_page.elements}.isdisjoint({"script", "a", "link", "iframe", "object", "form"})
    for tag, attributes in incident_page.elements:
        assert attributes.keys().isdisjoint({"style", "href", "srcset", "background"}), tag
        assert (attributes.get("src") or "data:image/png;base64,").startswith("data:image/png;base64,")
    assert "url(" not in incident_html
    assert "@import" not in incident_html


def test_traces_are_linked_to_mlflow_if_its_address_is_known() -> None:
    data = replace(incident_day(), mlflow_ui=UI)
    links = [attributes for tag, attributes in Page(render_html(Report(data))).elements if tag == "a"]
    trace = f"tr-{9:032x}"
    assert {link["href"] for link in links} >= {
        f"{UI}/#/experiments/1/traces?selectedEvaluationId={trace}&traceId={trace}"
    }
    assert all(link["rel"] == "noreferrer" for link in links)
    assert f"[{trace}]({UI}/#/experiments/1/traces?" in render_markdown(Report(data), images=False)
    urls = {trace["url"] for kind in figures(data)["worst_traces"].values() for trace in kind}
    assert all((url or "").startswith(f"{UI}/#/experiments/1/traces?") for url in urls)


def test_the_security_policy_allows_only_this_style(incident_page: Page, incident_html: str) -> None:
    metas = [attributes for tag, attributes in incident_page.elements if tag == "meta"]
    policy = next(meta["content"] or "" for meta in metas if meta.get("http-equiv") == "Content-Security-Policy")
    style = incident_html.split("<style>")[1].split("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.split("; ") == [
        *(
            "default-src 'none'",
            "img-src data:",
            f"style-src 'sha256-{digest}'",
            "base-uri 'none'",
            "form-action 'none'",
        )
    ]


def hostile_week() -> ReportData:
    data, week = hostile_day(), Period.week_of(DAY)
    totals = data.totals.assign(period=data.totals["period"].replace(data.period.name, week.name))
    stages = data.stages.assign(period=week.name)
    return replace(data, period=week, totals=totals, stages=stages)


@pytest.mark.parametrize("data", [hostile_day(), hostile_week()], ids=["day", "week"])
def test_no_element_of_the_page_comes_from_the_data(data: ReportData) -> None:
    page = Page(render_html(Report(data)))
    assert "<script>alert(1)</script>" in page.text
    assert "script" not in {tag for tag, _ in page.elements}
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(images) == 5
    assert all(image.keys() == {"src", "alt"} and (image["src"] or "").startswith("data:") for image in images)
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert not re.search("[\x00\u202e\ud800]", page.text)
    links = [attributes for tag, attributes in page.elements if tag == "a"]
    assert links
    assert all(link.keys() == {"href", "rel"} for link in links)
    assert all(re.fullmatch(rf"{UI}/#/experiments/[\w%.~-]+/traces\?[\w%.~&=-]+", link["href"] or "") for link in links)


@pytest.mark.parametrize("data", [hostile_day(), hostile_week()], ids=["day", "week"])
def test_no_markup_of_the_markdown_comes_from_the_data(data: ReportData) -> None:
    markdown = render_markdown(Report(data), images=True)
    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    tokens = [token for block in parser.parse(markdown) for token in (block, *(block.children or []))]
    assert {token.type for token in tokens}.isdisjoint({"html_block", "html_inline", "code_inline", "em_open"})
    bold = [after.content for token, after in pairwise(tokens) if token.type == "strong_open"]
    assert {word.rstrip(".") for word in bold} <= {
        *("Trouble", "critical", "warning", "info", "better", "worse", "changed", "new"),
        *("Traces", "Error rate", "Latency", "Cost", "Mean score"),
    }
    links = [str(token.attrs["href"]) for token in tokens if token.type == "link_open"]
    assert links
    assert all(link.startswith(f"{UI}/#/experiments/") for link in links)
    images = [str(token.attrs["src"]) for token in tokens if token.type == "image"]
    assert len(images) == 5
    assert all(source.startswith("data:image/png;base64,") for source in images)
    widths = {len(row) for row in markdown_rows(markdown)}
    earlier = 2 if data.period.kind == "day" else 1
    assert widths == {5, 6, 7, 8, 10, 11, 15 + earlier} - (set() if data.period.kind == "day" else {6})
    assert "evil.example" in markdown
    assert "http://evil" not in markdown
    assert "www." not in re.sub(r"\]\([^)]*\)", "", markdown)


def test_json_is_ascii_and_preserves_the_text() -> None:
    written = render_json(Report(hostile_day()))
    assert written.isascii()
    report = json.loads(written)
    assert report["errors"][0]["span_name"] == ATTACK
    assert report["worst_traces"]["slowest"][0]["trace_id"] == ATTACK
    assert report["errors"][1]["span_name"] == "\ud800"


# --- formats ---


def test_json_has_the_figures_unrounded_and_times_in_utc() -> None:
    report, written = figures(incident_day()), json.loads(render_json(Report(incident_day())))
    assert written["start"] == "2026-01-14T00:00:00Z"
    assert written["date"] == "2026-01-14"
    assert written["findings"][0]["start"] == "2026-01-14T14:00:00Z"
    assert written["error_rate"] == report["error_rate"] == report["error_count"] / report["total_requests"]
    assert written["hourly_volume"] == {str(hour): count for hour, count in report["hourly_volume"].items()}
    assert sum(report["hourly_volume"].values()) == report["total_requests"]
    assert {"mean", "p50", "p95", "p99"} == report["latency"].keys()


def test_figures_contain_only_plain_python_values() -> None:
    def types(value: Any) -> set[type]:
        if isinstance(value, dict):
            return set().union(*map(types, value.values()), *map(types, value))
        return set().union(*map(types, value)) if isinstance(value, list) else {type(value)}

    for data in (incident_day(), empty_day(), hostile_day(), incident_week()):
        kinds = types(figures(data))
        assert {kind.__module__ for kind in kinds} <= {"builtins", "datetime"}
        numbers = json.loads(render_json(Report(data)), parse_constant=pytest.fail)
        assert math.isfinite(numbers["total_requests"])


@pytest.mark.parametrize("render", [html_of, lambda data: render_markdown(Report(data), images=True)])
def test_a_day_without_traces_is_marked(render: Render) -> None:
    page = render(empty_day())
    assert "No traces were archived for this day" in page
    assert "2026-01-14" in page
    assert "data:image" not in page


@EITHER
def test_a_report_works_without_scorers_or_errors(render: Render) -> None:
    page = render(day_of([performance_row(5, "1", 3, 0, 100)]))
    assert "Nothing stands out: 3 traces, none failed." in page
    assert "No scorer ran on this day's traces." in page
    assert "No errors were recorded." in page
    assert "No spans were recorded." in page


@pytest.mark.parametrize("render", [html_of, lambda data: render_markdown(Report(data), images=True), json_of])
def test_the_same_data_yields_the_same_bytes(render: Render) -> None:
    assert render(hostile_day()) == render(hostile_day())


def test_embedded_images_stay_small() -> None:
    many = frame(
        HOURLY_QUALITY, [quality_row(hour, "1", f"scorer {n}", 50, 0.9) for n in range(60) for hour in range(24)]
    )
    markdown = render_markdown(Report(replace(incident_day(), quality_trend=many)), images=True)
    embedded = markdown.count("data:image/png")
    assert 20 < embedded < 68
    assert len(markdown) < 310_000
    assert f"{68 - embedded} charts are only in report.html." in markdown
    assert "report.html" not in render_markdown(Report(incident_day()), images=True)
    assert "14 charts are only in report.html." in render_markdown(Report(incident_day()), images=False)
