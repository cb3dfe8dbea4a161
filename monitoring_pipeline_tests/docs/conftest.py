"""The recorded conversations, archived, measured and scored: the data that the documentation describes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from monitoring_pipeline.keys import DAILY_REPORT, MONITORING, NO_PREFIX, partition_key
from monitoring_pipeline.orchestration.build import build_definitions
from monitoring_pipeline.orchestration.runs import execute, failures
from monitoring_pipeline.resources.build import build_resources
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.settings import (
    SHIPPED_SCORERS,
    LakeSettings,
    MlflowSettings,
    ReportSettings,
    ScorerSettings,
    Settings,
)
from monitoring_pipeline.windows import HOUR, Window
from monitoring_pipeline_tests.conftest import RECORDED_WINDOW, MakeOnce

CHANGED = Window(datetime(2026, 1, 2, 18, tzinfo=UTC), RECORDED_WINDOW.end)
CHANGED_ASSETS = [
    dg.AssetKey(key) for key in (["assessments", "response_quality"], "scorer_coverage", "hourly_quality")
]


@dataclass(frozen=True)
class RecordedProject:
    """The settings and the lake of the recorded 48 hours, to read only."""

    settings: Settings

    @property
    def lake(self) -> LakeResource:
        return build_resources(self.settings)["lake"]


def scorers(min_characters: int) -> list[ScorerSettings]:
    """Two shipped scorers, one that fails on some traces, and one that soon reaches its hourly budget."""
    own = "monitoring_pipeline_tests.odd_scorers"
    return [
        ScorerSettings(
            name="response_quality",
            scorer=f"{SHIPPED_SCORERS}:response_quality",
            params={"min_characters": min_characters},
            pass_if=">= 0.8",
            compare_with=["task_success"],
            sample_rate=0.5,
        ),
        ScorerSettings(name="tool_selection_accuracy", scorer=f"{SHIPPED_SCORERS}:tool_selection_accuracy"),
        ScorerSettings(name="even", scorer=f"{own}:even", sample_rate=0.6, compare_with=["task_success"]),
        ScorerSettings(name="limited", scorer=f"{SHIPPED_SCORERS}:stage_latency", max_traces_per_hour=100),
    ]


@pytest.fixture(scope="session")
def recorded_project(recorded_store: str, make_once: MakeOnce) -> RecordedProject:
    """The recorded 48 hours, run once; then response_quality changed and ran again over the last six hours."""

    def settings(folder: Path, min_characters: int) -> Settings:
        return Settings(
            mlflow=MlflowSettings(tracking_uri=recorded_store, experiments=["airline"]),
            lake=LakeSettings(location=str(folder / "lake")),
            reports=ReportSettings(location=str(folder / "reports")),
            scorers=scorers(min_characters),
        )

    def make(folder: Path) -> None:
        for min_characters, window, hourly in ((40, RECORDED_WINDOW, None), (200, CHANGED, CHANGED_ASSETS)):
            run(settings(folder, min_characters), window, hourly)

    return RecordedProject(settings(make_once("recorded-project", make), 200))


def run(settings: Settings, window: Window, hourly: list[dg.AssetKey] | None) -> None:
    """Run the hourly assets (None: all of them) and the days' agreement and reports over the window."""
    definitions, days, instance = build_definitions(settings), window.days(), dg.DagsterInstance.ephemeral()
    hours = (partition_key(window.start), partition_key(window.end - HOUR))
    by_day = [dg.AssetKey("scorer_agreement")]
    for job, selection, keys in ((MONITORING, hourly, hours), (DAILY_REPORT, by_day, (f"{days[0]}", f"{days[-1]}"))):
        result = execute(definitions, NO_PREFIX, job, selection, keys, instance, lambda event: None)
        assert result.success, failures(result)


def documentation() -> Path:
    """The folder of the pages."""
    return Path(__file__).parents[2] / "docs"
