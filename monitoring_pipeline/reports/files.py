"""The files of a report."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from monitoring_pipeline.reports.rendering import render_html, render_json, render_markdown
from monitoring_pipeline.reports.report import Report

HTML, MARKDOWN, JSON = "report.html", "report.md", "report.json"


def write_report(report: Report, folder: Path) -> Path:
    """Write report.html, report.md and report.json to `folder`/<name of the period>/ and return that folder.

    All three files are rendered and on disk before the first is moved into place; each move replaces an older file
    atomically. The Markdown file refers to the HTML file for the charts.

    Raises:
        OSError: a file or folder cannot be written; the older files are kept.
    """
    pages = {HTML: render_html(report), MARKDOWN: render_markdown(report, images=False), JSON: render_json(report)}
    target = folder / report.data.period.name
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


def remove_unfinished(folder: Path) -> None:
    """Delete the temporary files that killed writes left in the folders below `folder`; none may be written meanwhile.

    Raises:
        OSError: a file cannot be deleted.
    """
    for name in (HTML, MARKDOWN, JSON):
        for file in folder.glob(f"*/.{name}.*.tmp"):
            file.unlink()


def _write(path: Path, page: str) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(page)
        file.flush()
        os.fsync(file.fileno())
