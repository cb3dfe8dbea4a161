from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from monitoring_pipeline.reports import charts, files
from monitoring_pipeline.reports.files import write_report
from monitoring_pipeline.reports.period import Period
from monitoring_pipeline.reports.rendering import render_html, render_json, render_markdown
from monitoring_pipeline.reports.report import Report
from monitoring_pipeline_tests.reports.frames import DAY, empty_day, incident_day
from monitoring_pipeline_tests.reports.hostile import hostile_day

NAMES = ["report.html", "report.json", "report.md"]


@pytest.fixture(autouse=True)
def no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces charts by empty images: files are handled in the same way, and drawing takes most of the time."""
    monkeypatch.setattr(charts, "png", lambda figure: b"")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_three_files_are_written_into_the_folder_of_the_period(tmp_path: Path) -> None:
    folder = write_report(Report(incident_day()), tmp_path / "new")
    assert folder == tmp_path / "new" / "2026-01-14"
    assert contents(folder) == {
        "report.html": render_html(Report(incident_day())).encode(),
        "report.json": render_json(Report(incident_day())).encode(),
        "report.md": render_markdown(Report(incident_day()), images=False).encode(),
    }
    write_report(Report(empty_day()), tmp_path / "new")
    assert (folder / "report.html").read_text(encoding="utf-8") == render_html(Report(empty_day()))
    assert sorted(contents(folder)) == NAMES


def test_a_week_has_its_own_folder(tmp_path: Path) -> None:
    assert write_report(Report(replace(empty_day(), period=Period.week_of(DAY))), tmp_path) == tmp_path / "2026-W03"


def test_hostile_text_can_be_written(tmp_path: Path) -> None:
    folder = write_report(Report(hostile_day()), tmp_path)
    assert "&lt;script&gt;" in (folder / "report.html").read_text(encoding="utf-8")
    assert json.loads((folder / "report.json").read_text(encoding="ascii"))["total_requests"] == 1200


def test_a_failing_render_leaves_the_old_files(tmp_path: Path) -> None:
    folder = write_report(Report(empty_day()), tmp_path)
    before = contents(folder)
    broken = replace(incident_day(), worst=incident_day().worst.drop(columns="duration_ms"))
    with pytest.raises(KeyError, match="duration_ms"):
        write_report(Report(broken), tmp_path)
    assert contents(folder) == before


def test_a_reader_with_the_old_file_open_reads_it_to_the_end(tmp_path: Path) -> None:
    folder = write_report(Report(empty_day()), tmp_path)
    with (folder / "report.html").open(encoding="utf-8") as old:
        write_report(Report(incident_day()), tmp_path)
        assert old.read() == render_html(Report(empty_day()))


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_a_failing_disk_leaves_only_the_old_files(
    fails_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_report(Report(empty_day()), tmp_path)
    before, calls = contents(folder), []
    fsync = files.os.fsync

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == fails_at:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(Report(incident_day()), tmp_path)
    assert contents(folder) == before


def test_a_folder_that_cannot_be_created_raises_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_report(Report(empty_day()), tmp_path / "file")
