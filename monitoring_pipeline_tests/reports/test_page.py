"""The page in Chromium: it loads and runs nothing, fits wide and narrow screens, and is accessible."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Trace
from playwright.sync_api import Browser, Page

from monitoring_pipeline.reports.links import trace_url
from monitoring_pipeline.reports.rendering import render_html
from monitoring_pipeline.reports.report import Report
from monitoring_pipeline_tests.reports.frames import empty_day, incident_day
from monitoring_pipeline_tests.reports.hostile import UI, hostile_day
from monitoring_pipeline_tests.ui.conftest import browser, chromium  # noqa: F401  fixtures

# The contrast that WCAG 2.2 requires (1.4.3), by its definition of luminance, of each text with its background.
CONTRASTS = """() => {
  const channels = color => color.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = element => {
    for (let e = element; e; e = e.parentElement) {
      const c = channels(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const texts = [...document.body.querySelectorAll('*')].filter(
    e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()));
  return texts.map(e => {
    const [one, two] = [luminance(channels(getComputedStyle(e).color)), luminance(ground(e))].sort((a, b) => b - a);
    return [e.tagName + '.' + e.className, (one + 0.05) / (two + 0.05)];
  });
}"""


DAYS = {"incident": lambda: replace(incident_day(), mlflow_ui=UI), "hostile": hostile_day, "empty": empty_day}


@cache
def html_of(day: str) -> str:
    """The page of one of `DAYS`."""
    return render_html(Report(DAYS[day]()))


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Any:  # noqa: F811
    """Opens a report's page from disk, at a given width; collects its requests and console messages."""
    contexts = []

    def open_page(day: str, width: int = 1200) -> tuple[Page, list[str], list[str]]:
        file = tmp_path / "report.html"
        file.write_text(html_of(day), encoding="utf-8")
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}))
        page = contexts[-1].new_page()
        requests: list[str] = []
        complaints: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.goto(file.as_uri(), wait_until="networkidle")
        return page, [url for url in requests if not url.startswith("data:")], complaints

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("day", DAYS)
def test_nothing_is_requested_or_run_and_the_security_policy_is_kept(opened: Any, day: str) -> None:
    page, requests, complaints = opened(day)
    assert requests == [page.url]
    assert complaints == []
    assert page.evaluate("getComputedStyle(document.body).maxWidth") == "1160px"  # the style is applied
    images = "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
    assert page.evaluate(images)


@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_is_no_wider_than_the_screen(opened: Any, width: int) -> None:
    page, _, _ = opened("hostile", width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page, _, _ = opened("incident", width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_verdict_is_visible_first(opened: Any) -> None:
    page, _, _ = opened("incident", 390)
    box = page.locator(".headline").bounding_box()
    assert box is not None
    assert box["y"] + box["height"] < 450
    assert page.locator(".verdict .state").inner_text().lower() == "trouble"


def test_headings_image_texts_and_language_are_accessible(opened: Any) -> None:
    page, _, _ = opened("incident")
    levels = page.eval_on_selector_all("h1, h2, h3", "all => all.map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.get_attribute("html", "lang") == "en"
    assert page.locator("main").count() == 1
    assert all(page.eval_on_selector_all("img", "all => all.map(image => image.alt)"))
    assert all(page.eval_on_selector_all("a", "all => all.map(link => link.innerText.trim())"))
    assert page.locator("table").count() == page.locator("table:has(thead th)").count() > 5


@pytest.mark.parametrize("day", ["incident", "empty"])
def test_every_text_has_enough_contrast(opened: Any, day: str) -> None:
    page, _, _ = opened(day)
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 3
    assert [(where, round(ratio, 2)) for where, ratio in contrasts if ratio < 4.5] == []


def test_a_link_opens_the_trace_in_mlflow(browser: Browser, recorded_server: str, recorded_traces: list[Trace]) -> None:  # noqa: F811
    trace = next(trace for trace in recorded_traces if trace.info.state == "ERROR")
    url = trace_url(recorded_server, trace.info.experiment_id, trace.info.trace_id)
    assert url is not None
    failed = next(span for span in trace.data.spans if span.status.status_code.value == "ERROR" and span.parent_id)
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    try:
        page.goto(url)
        spans = page.get_by_text(failed.name, exact=True)
        spans.first.wait_for(timeout=60_000)
        assert spans.count() >= 1
        assert page.get_by_text("Inputs / Outputs").first.is_visible()
    finally:
        page.close()
