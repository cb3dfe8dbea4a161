from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from markdown_it import MarkdownIt

from monitoring_pipeline.reports import daily, text
from monitoring_pipeline.tables import (
    HOURLY_PERFORMANCE,
    HOURLY_QUALITY,
    SCORER_AGREEMENT,
    SCORER_COVERAGE,
    TRACE_ERRORS,
)
from monitoring_pipeline_tests.reports.frames import (
    agreement_row,
    coverage_row,
    daily_quality,
    empty_day,
    errors_at,
    frame,
    incident_day,
    moment,
    performance_row,
    quality_row,
)

ATTACK = (
    "\x00\u202e<script>alert(1)</script><img src=x onerror=alert(1)><a href='javascript:alert(1)'>x</a>\" onload=\"x\n"
    "![i](http://evil.example/i.png) [l](http://evil.example) | a | `c` **b** www.evil.example $x^2$ \\"
)


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
        """The cell that reads `first` and those after it."""
        start = self.cells.index(first)
        return self.cells[start : start + columns]


@pytest.fixture(scope="module")
def incident_page() -> Page:
    return Page(daily.render_html(incident_day()))


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


def test_the_figures_are_those_of_the_frames(incident_page: Page) -> None:
    rows = [row for row in incident_day().performance.to_dict("records") if row["trace_name"] is None]
    traces, errors = sum(row["trace_count"] for row in rows), sum(row["error_count"] for row in rows)
    p95 = sorted(row["p95_duration_ms"] for row in rows)
    assert len(p95) == 46
    assert incident_page.row("Traces", 3) == ["Traces", f"{traces:,}", "in 24 of 24 hours"]
    assert incident_page.row("Error rate", 3) == ["Error rate", f"{100 * errors / traces:.1f} %", f"{errors} traces"]
    assert incident_page.row("Latency p95", 3) == [
        *("Latency p95", f"{(p95[22] + p95[23]) / 2000:.1f} s", "median of the hours")
    ]
    assert incident_page.row("Cost", 2) == ["Cost", f"${0.004 * traces:.2f}"]
    assert incident_page.row("Tokens", 2) == ["Tokens", f"{traces / 1000:.1f} M"]


def test_markdown_has_the_same_figures() -> None:
    rows = markdown_rows(daily.render_markdown(incident_day(), images=False))
    assert rows[1] == ["4,057", "4.7 %", "873 ms", "2.2 s", "3.3 s", "$16.23", "$8.38", "4.1 M"]
    assert ["76", "retrieve", "TimeoutError: vector index did not answer within 8 s", "09:00", "tr-09-000"] in rows


def test_percentiles_of_all_traces_are_shown_when_given() -> None:
    data = replace(incident_day(), day_percentiles={"p50": 810.0, "p95": 2345.0, "p99": 61_000.0})
    page = Page(daily.render_html(data))
    assert page.row("Latency p50", 3) == ["Latency p50", "810 ms", "all traces"]
    assert page.row("Latency p99", 3) == ["Latency p99", "1 min 01 s", "all traces"]
    assert "those of all traces" in daily.render_markdown(data, images=False)
    assert "medians of the hours' percentiles" in daily.render_markdown(incident_day(), images=False)


def test_tables_and_summary_are_on_the_page(incident_page: Page) -> None:
    assert "14:00 UTC, support-agent: error rate 41 % against" in incident_page.text
    assert "An hour stands out against the median" in incident_page.text
    assert incident_page.row("76", 3) == ["76", "retrieve", "TimeoutError: vector index did not answer within 8 s"]
    assert incident_page.row("6.3 s", 2) == ["6.3 s", f"tr-{9:032x}"]
    scorer = incident_page.row("has_sources", 11)
    archived = sum(
        row["archived"]
        for row in incident_day().coverage.to_dict("records")
        if (row["experiment_id"], row["scorer"]) == ("1", "has_sources")
    )
    assert scorer[:6] == ["has_sources", "support-agent", f"{archived:,}", "0", "0", f"{archived:,}"]
    assert scorer[6:11] == [f"{archived - 22:,}", "22", "0", "0", "99.3 %"]


AGREEMENT = [
    ["correctness", "support-agent", "feedback correctness", "86", "88 %", "0.67", "0.49 to 0.86"],
    ["correctness", "support-agent", "digest 3f9c51aa02b7d416", "486", "95.7 %", "0.81", "0.74 to 0.89"],
    ["is_polite", "2", "feedback thumbs_up", "9", "89 %", text.MISSING, text.MISSING],
]


def test_agreement_is_that_of_the_days_added_up(incident_page: Page) -> None:
    counts = [["61", "4", "6", "15"], ["410", "12", "9", "55"], ["8", "0", "1", "0"]]
    expected = [row + numbers for row, numbers in zip(AGREEMENT, counts, strict=True)]
    cells = incident_page.row("Both fail", 33)[1:]  # all but the last, to which the text after the table is added
    assert cells == [cell for row in expected for cell in row][:32]
    rows = markdown_rows(daily.render_markdown(incident_day(), images=False))
    assert [row for row in rows if len(row) == 11][1:] == expected
    assert "Kappa is agreement beyond chance" in incident_page.text
    assert "Agreement last 28 days" in incident_page.text


@pytest.mark.parametrize("render", [daily.render_html, lambda data: daily.render_markdown(data, images=False)])
def test_without_anything_to_compare_agreement_is_not_mentioned(render) -> None:
    page = render(replace(incident_day(), agreement=empty_day().agreement))
    assert "greement" not in page
    assert "Kappa" not in page


def test_each_experiment_has_its_charts(incident_page: Page) -> None:
    alts = [attributes["alt"] for tag, attributes in incident_page.elements if tag == "img"]
    assert alts == 2 * ["Traces by hour", "Error rate by hour", "Latency by hour", *3 * ["Mean score by hour"]]


def test_experiments_with_incidents_are_charted_first() -> None:
    rows = [performance_row(hour, str(n), None, 100 + n, 1, 100) for n in range(9) for hour in range(5)]
    rows.append(performance_row(7, "0", None, 100, 90, 100))
    data = replace(empty_day(), performance=frame(HOURLY_PERFORMANCE, rows))
    html = daily.render_html(data)
    assert re.findall(r"<h2>(\d) <small>", html) == ["0", "8", "7", "6", "5", "4"]
    assert "Charts are shown for 6 of 9 experiments" in html
    assert Page(html).row("1", 2) == ["1", "505"]


def test_the_page_needs_nothing_from_elsewhere(incident_page: Page) -> None:
    html = daily.render_html(incident_day())
    assert {tag for tag, _ in incident_page.elements}.isdisjoint({"script", "a", "link", "iframe", "object", "form"})
    for tag, attributes in incident_page.elements:
        assert attributes.keys().isdisjoint({"style", "href", "srcset", "background"}), tag
        assert (attributes.get("src") or "data:image/png;base64,").startswith("data:image/png;base64,")
    assert "url(" not in html
    assert "@import" not in html


def test_the_security_policy_allows_only_this_style(incident_page: Page) -> None:
    metas = [attributes for tag, attributes in incident_page.elements if tag == "meta"]
    policy = next(meta["content"] or "" for meta in metas if meta.get("http-equiv") == "Content-Security-Policy")
    style = daily.render_html(incident_day()).split("<style>")[1].split("</style>")[0]
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


def hostile_day() -> daily.DailyReportData:
    """Every text of the frames is an attack."""
    performance = [performance_row(hour, ATTACK, None, 100, 90 if hour == 9 else 1, 100) for hour in range(12)]
    quality = [quality_row(hour, ATTACK, ATTACK, 50, 0.1 if hour == 9 else 0.9) for hour in range(12)]
    error = errors_at(9, 1)[0] | {"trace_id": ATTACK, "experiment_id": ATTACK, "trace_name": ATTACK, "status": ATTACK}
    spans = [{"span_id": ATTACK, "name": ATTACK, "span_type": ATTACK, "status_message": ATTACK}]
    spans.append(spans[0] | {"name": "\ud800", "status_message": "x" * 1_000_000})
    errors = frame(TRACE_ERRORS, [error])
    errors["error_spans"] = [spans]
    slowest = pd.DataFrame([[ATTACK, moment(9), ATTACK, ATTACK, ATTACK, 3, 1e9]], columns=empty_day().slowest.columns)
    return replace(
        empty_day(),
        performance=frame(HOURLY_PERFORMANCE, performance),
        quality=frame(HOURLY_QUALITY, quality),
        daily_quality=daily_quality(quality),
        coverage=frame(SCORER_COVERAGE, [coverage_row(9, ATTACK, ATTACK, 100, 50, 50, 0)]),
        slowest=slowest,
        errors=errors,
        agreement=frame(SCORER_AGREEMENT, [agreement_row(0, ATTACK, ATTACK, "human", ATTACK, (5, 1, 2, 3))]),
        experiment_names={ATTACK: ATTACK},
    )


def test_no_element_of_the_page_comes_from_the_data() -> None:
    page = Page(daily.render_html(hostile_day()))
    assert "<script>alert(1)</script>" in page.text
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "a"})
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(images) == 4
    assert all(image.keys() == {"src", "alt"} and (image["src"] or "").startswith("data:") for image in images)
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert not re.search("[\x00\u202e\ud800]", page.text)


def test_no_markup_of_the_markdown_comes_from_the_data() -> None:
    markdown = daily.render_markdown(hostile_day(), images=True)
    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    tokens = [token for block in parser.parse(markdown) for token in (block, *(block.children or []))]
    assert {token.type for token in tokens}.isdisjoint(
        {"html_block", "html_inline", "link_open", "code_inline", "em_open"}
    )
    images = [str(token.attrs["src"]) for token in tokens if token.type == "image"]
    assert len(images) == 4
    assert all(source.startswith("data:image/png;base64,") for source in images)
    assert [len(row) for row in markdown_rows(markdown)] == [8] * 2 + [5] * 3 + [14] * 2 + [11] * 2 + [7] * 2
    assert "http://" not in markdown
    assert "www." not in markdown


@pytest.mark.parametrize("render", [daily.render_html, lambda data: daily.render_markdown(data, images=True)])
def test_a_day_without_traces_says_so(render) -> None:
    page = render(empty_day())
    assert "No traces were archived for this day" in page
    assert "2026-01-14" in page
    assert "data:image" not in page


def test_traces_without_scorers_or_errors_make_a_report() -> None:
    data = replace(empty_day(), performance=frame(HOURLY_PERFORMANCE, [performance_row(5, "1", None, 3, 0, 100)]))
    for page in (daily.render_html(data), daily.render_markdown(data, images=False)):
        assert "No hour stands out." in page
        assert "3 traces, of which none failed." in page
        assert "No scorer ran on this day's traces." in page
        assert "No errors were recorded." in page


def test_the_same_data_gives_the_same_bytes() -> None:
    assert daily.render_html(incident_day()) == daily.render_html(incident_day())
    assert daily.render_markdown(incident_day(), images=True) == daily.render_markdown(incident_day(), images=True)


def test_embedded_images_stay_small() -> None:
    many = [quality_row(hour, "1", f"scorer {n}", 50, 0.9) for n in range(40) for hour in range(24)]
    markdown = daily.render_markdown(replace(incident_day(), quality=frame(HOURLY_QUALITY, many)), images=True)
    embedded = markdown.count("data:image/png")
    assert 10 < embedded < 46
    assert len(markdown) < 300_000
    assert f"{46 - embedded} charts are in report.html only." in markdown
    assert "report.html" not in daily.render_markdown(incident_day(), images=True)
    assert "12 charts are in report.html only." in daily.render_markdown(incident_day(), images=False)


def test_both_files_are_written_into_the_folder_of_the_day(tmp_path: Path) -> None:
    html, markdown = daily.write_daily_report(incident_day(), tmp_path / "new")
    assert (html, markdown) == (tmp_path / "new/2026-01-14/report.html", tmp_path / "new/2026-01-14/report.md")
    assert html.read_text(encoding="utf-8") == daily.render_html(incident_day())
    assert markdown.read_text(encoding="utf-8") == daily.render_markdown(incident_day(), images=False)
    daily.write_daily_report(empty_day(), tmp_path / "new")
    assert html.read_text(encoding="utf-8") == daily.render_html(empty_day())
    assert sorted(path.name for path in html.parent.iterdir()) == ["report.html", "report.md"]


def test_hostile_text_can_be_written(tmp_path: Path) -> None:
    html, _ = daily.write_daily_report(hostile_day(), tmp_path)
    assert "&lt;script&gt;" in html.read_text(encoding="utf-8")


def test_a_failing_render_leaves_the_old_files(tmp_path: Path) -> None:
    html, markdown = daily.write_daily_report(empty_day(), tmp_path)
    before = html.read_bytes(), markdown.read_bytes()
    broken = replace(incident_day(), slowest=incident_day().slowest.drop(columns="duration_ms"))
    with pytest.raises(KeyError, match="duration_ms"):
        daily.write_daily_report(broken, tmp_path)
    assert (html.read_bytes(), markdown.read_bytes()) == before


def test_who_has_the_old_file_open_reads_it_to_its_end(tmp_path: Path) -> None:
    html, _ = daily.write_daily_report(empty_day(), tmp_path)
    with html.open(encoding="utf-8") as old:
        daily.write_daily_report(incident_day(), tmp_path)
        assert old.read() == daily.render_html(empty_day())


def test_a_failing_disk_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    html, _ = daily.write_daily_report(empty_day(), tmp_path)
    before = html.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(daily.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        daily.write_daily_report(incident_day(), tmp_path)
    assert html.read_bytes() == before
    assert sorted(path.name for path in html.parent.iterdir()) == ["report.html", "report.md"]


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        daily.write_daily_report(empty_day(), tmp_path / "file")
