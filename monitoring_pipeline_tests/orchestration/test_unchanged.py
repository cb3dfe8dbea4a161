"""A command runs only the hours and days whose results would change."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import pytest
from mlflow.entities import TraceState

from monitoring_pipeline import lifecycle
from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.orchestration.runs import ChainResult, run_chain
from monitoring_pipeline.orchestration.unchanged import Work, work_left
from monitoring_pipeline.settings import DagsterSettings, LakeSettings, MlflowSettings, ReportSettings, Settings
from monitoring_pipeline.tables import HOURLY_PERFORMANCE
from monitoring_pipeline.windows import HOUR, Window
from monitoring_pipeline_tests.conftest import MakeOnce
from monitoring_pipeline_tests.made_project import LATENCY, QUALITY, fails_at_once, scorer
from monitoring_pipeline_tests.sources.stores import START, Store, span_json

WINDOW = Window(START, START + 3 * HOUR)  # the last hour has no traces
DAY = date(2026, 1, 1)
NOTHING: tuple[list[int], list[date]] = ([], [])
ALL = ([0, 1, 2], [DAY])


@dataclass(frozen=True)
class Place:
    """Store, lake, reports and Dagster instance of a folder."""

    folder: Path
    settings: Settings
    instance: dg.DagsterInstance

    @classmethod
    def of(cls, folder: Path) -> Place:
        settings = Settings(
            mlflow=MlflowSettings(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}", experiments=["made"]),
            lake=LakeSettings(location=str(folder / "lake")),
            reports=ReportSettings(location=str(folder / "reports")),
            scorers=[QUALITY, LATENCY],
        )
        return cls(folder, settings, dg.DagsterInstance.from_config(str(folder)))

    @property
    def store(self) -> Store:
        return Store.open(self.folder / "mlflow.db")

    def having(self, **sections: object) -> Place:
        """The same place with other settings."""
        return Place(self.folder, self.settings.model_copy(update=sections), self.instance)

    def left(self) -> tuple[list[int], list[date]]:
        """The hours of the window to run, counted from 0, and the days to report on."""
        work = work_left(self.settings, WINDOW, self.instance)
        return [(hour - START) // HOUR for window in work.hours for hour in window.hours()], work.days

    def run(self, scorers: list[str] | None = None, work: Work | None = None) -> ChainResult:
        """Run what is left, or `work`."""
        work = work or work_left(self.settings, WINDOW, self.instance)
        definitions = build_definitions(self.settings)
        return run_chain(definitions, self.settings, work, scorers, self.instance, lambda event: None)


def fill(folder: Path) -> None:
    """A store with traces in the first two hours, and a whole run over the window."""
    store = Store.create(folder)
    for number in range(4):
        store.log(number, started=START + number * timedelta(minutes=20))
    (folder / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    place = Place.of(folder)
    assert place.left() == ALL
    assert place.run().succeeded
    place.instance.dispose()


@pytest.fixture
def place(make_once: MakeOnce, tmp_path: Path) -> Iterator[Place]:
    folder = tmp_path / "place"
    shutil.copytree(make_once("unchanged", fill), folder)
    place = Place.of(folder)
    yield place
    place.instance.dispose()


def test_nothing_is_left_after_a_run(place: Place) -> None:
    assert place.left() == NOTHING


def test_hours_that_the_source_has_changed_are_left_and_after_a_run_those_in_which_a_trace_waits(place: Place) -> None:
    place.store.log(8, started=START + HOUR + timedelta(minutes=59))
    child = span_json(9, 2, parent=1, started=START + timedelta(minutes=59))
    place.store.log(9, [child], state=TraceState.IN_PROGRESS, started=START + timedelta(minutes=59))
    assert place.left() == ([0, 1], [DAY])
    assert place.run().succeeded
    assert place.left() == ([0], [DAY])


def test_other_settings_leave_everything(place: Place) -> None:
    strict = QUALITY.model_copy(update={"params": {"min_characters": 100}})
    assert place.having(scorers=[strict, LATENCY]).left() == ALL
    assert place.having(scorers=[QUALITY.model_copy(update={"sample_rate": 0.5}), LATENCY]).left() == ALL
    assert place.having(scorers=[QUALITY]).left() == ALL


def test_another_state_of_a_scorer_leaves_everything(place: Place) -> None:
    lifecycle.handle(QUALITY.name, settings=place.settings).register().start(sample_rate=0.5)
    assert place.left() == ALL


def test_a_later_run_of_one_asset_leaves_its_hours(place: Place) -> None:
    first = Window(START, START + HOUR)
    assert place.run([QUALITY.name], Work([first], [])).succeeded
    assert place.left() == ([0], [DAY])


def test_hours_of_a_run_that_failed_are_left(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.store.log(9, started=START + timedelta(minutes=59))
    with monkeypatch.context() as broken:
        fails_at_once(broken, QUALITY.name)
        assert not place.run().succeeded
    assert place.left() == ([0], [DAY])


def test_hours_of_a_run_whose_check_failed_are_left(place: Place) -> None:
    always = place.having(scorers=[scorer("always", "monitoring_pipeline_tests.odd_scorers:broken")])
    assert not always.run().succeeded
    assert always.left() == ALL


def test_hours_without_their_figures_are_left(place: Place) -> None:
    shutil.rmtree(place.folder / "lake" / HOURLY_PERFORMANCE.name)
    assert place.left() == ([0, 1], [DAY])


def test_a_report_that_is_missing_leaves_its_day_alone(place: Place) -> None:
    shutil.rmtree(place.folder / "reports")
    assert place.left() == ([], [DAY])


def test_a_report_is_left_until_a_run_has_written_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError("no space left on device")

    place.store.log(9, started=START + timedelta(minutes=59))
    with monkeypatch.context() as broken:
        broken.setattr("monitoring_pipeline.reports.files.write_report", fail)
        assert not place.run().succeeded
    assert place.left() == ([], [DAY])


def test_runs_of_another_pipeline_do_not_count(place: Place) -> None:
    assert place.having(dagster=DagsterSettings(key_prefix=["other"])).left() == ALL
