from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from monitoring_pipeline_tests.cli.calling import Call, calling
from monitoring_pipeline_tests.made_project import MadeProject


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], dagster_home: Path) -> Call:
    """A function that calls `monitoring-pipeline report` with arguments."""
    return calling(monkeypatch, capsys, "report")


def configured(made: MadeProject) -> Path:
    file = made.configure()
    file.write_text(file.read_text(encoding="utf-8") + '[reports]\nlocation = "reports"\n', encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("option", "name"), [(("--day", "2026-01-01"), "2026-01-01"), (("--week", "2026-01-03"), "2026-W01")]
)
def test_the_report_is_written_and_its_path_printed(
    report: Call, made: MadeProject, option: tuple[str, str], name: str
) -> None:
    called = report(*option, "--config", f"{configured(made)}")
    path = made.folder / "reports" / name / "report.html"
    assert (called.code, called.error) == (0, "")
    assert called.out.splitlines()[-1] == f"{path}"
    assert path.is_file()
    assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["name"] == name


def test_the_default_day_is_yesterday(report: Call, made: MadeProject) -> None:
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    called = report("--config", f"{configured(made)}")
    assert called.out.splitlines()[-1] == f"{made.folder / 'reports' / f'{yesterday}' / 'report.html'}"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--day", "yesterday"), "'yesterday' is not a date: write it as 2026-01-14"),
        (("--week", "2026-02-30"), "'2026-02-30' is not a date"),
        (("--day", "2025-12-31"), "2025-12-31 is before the archive, which starts on 2026-01-01"),
        (("--day", "2999-01-01"), "2999-01-01 is in the future"),
        (("--day", "2026-01-01", "--week", "2026-01-01"), "give either --day or --week"),
    ],
)
def test_an_invalid_day_or_week_is_wrong_usage(
    report: Call, made: MadeProject, arguments: tuple[str, ...], reason: str
) -> None:
    called = report(*arguments, "--config", f"{configured(made)}")
    assert called.code == 2
    assert reason in called.error


def test_a_day_that_is_no_longer_kept_is_refused_in_one_line(report: Call, made: MadeProject) -> None:
    file = configured(made)
    file.write_text(file.read_text(encoding="utf-8") + "[upkeep]\nkeep_archive_days = 30\n", encoding="utf-8")
    called = report("--week", "2026-01-01", "--config", f"{file}")
    assert called.code == 1
    assert called.error.startswith("error: weekly_report: ")
    assert "is before" in called.error
    assert not (made.folder / "reports").exists()
