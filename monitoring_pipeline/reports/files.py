"""The files of a report."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from monitoring_pipeline.reports.data import ReportData
from monitoring_pipeline.reports.rendering import render_html, render_json, render_markdown

HTML, MARKDOWN, JSON = "report.html", "report.md", "report.json"


def write_report(data: ReportData, folder: Path) -> Path:
    """Writes report.html, report.md and report.json into `folder`/<name of the period>/, which is returned.

    All are rendered and on the disk before the first takes its place; each replaces an older one in one step. The
    Markdown file refers to the HTML file for the charts.

    Raises:
        OSError: a file or folder could not be written; the older files are still there.
    """
    pages = {HTML: render_html(data), MARKDOWN: render_markdown(data, images=False), JSON: render_json(data)}
    target = folder / data.period.name
    target.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex
    written = {target / f".{name}.{mark}.tmp": target / name for name in pages}
    try:
        for temporary, page in zip(written, pages.values(), strict=True):
            _write(temporary, page)
        for temporary, path in written.items():
            temporary.replace(path)
    finally:
        for temporary in written:
            temporary.unlink(missing_ok=True)
    return target


def _write(path: Path, page: str) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(page)
        file.flush()
        os.fsync(file.fileno())
