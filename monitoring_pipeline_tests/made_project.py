"""A small configured pipeline: a store, and a lake of 40 traces in four hours of 2026-01-01, not scored yet."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
from mlflow.entities import Trace

from monitoring_pipeline.resources.build import build_resources
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.settings import (
    SHIPPED_SCORERS,
    BackfillSettings,
    LakeSettings,
    MlflowSettings,
    ReportSettings,
    ScorerSettings,
    Settings,
)
from monitoring_pipeline.tables import ASSESSMENTS, TABLES, Table
from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests.scoring.made import archive_traces, made_trace
from monitoring_pipeline_tests.sources.stores import START, Store, trace_id

HOURS = 4
PER_HOUR = 10
WINDOW = Window(START, START + timedelta(hours=HOURS))
FROM, TO = "2026-01-01T05:00Z", "2026-01-01T09:00Z"
FIRST, LAST = "2026-01-01-05:00", "2026-01-01-08:00"
IDS = [trace_id(number) for number in range(HOURS * PER_HOUR)]
SAMPLES = "monitoring_pipeline_tests.scoring.sample_scorers"
PRICE: dict[str, Any] = {"usd_per_million_input_tokens": 1000, "usd_per_million_output_tokens": 4000}


def scorer(name: str, reference: str | None = None, **values: Any) -> ScorerSettings:
    """The shipped scorer of that name, or the one at `reference`."""
    return ScorerSettings(name=name, scorer=reference or f"{SHIPPED_SCORERS}:{name}", **values)


QUALITY, LATENCY = scorer("response_quality"), scorer("stage_latency")
JUDGE = ScorerSettings(name="safety", builtin="Safety", model="openai:/gpt-4o-mini", sample_rate=1.0, **PRICE)


def traces() -> list[Trace]:
    """Trace n starts n * 6 minutes after START; even ones are tagged `prod`, the first six are in sessions a and b."""
    return [
        made_trace(
            number,
            START + number * timedelta(minutes=6),
            session="ab"[number // 3] if number < 6 else None,
            tags={"env": "dev" if number % 2 else "prod"},
        )
        for number in range(len(IDS))
    ]


def make(folder: Path) -> None:
    """Fill the folder with a store and a lake."""
    Store.create(folder)
    archive_traces(LakeResource(location=str(folder / "lake"), spark=SparkResource()), WINDOW, traces())


@dataclass(frozen=True)
class MadeProject:
    """Settings for a store and a lake in the test's own folder."""

    folder: Path
    settings: Settings

    @classmethod
    def copy(cls, made: Path, folder: Path) -> MadeProject:
        shutil.copytree(made, folder)
        settings = Settings(
            mlflow=MlflowSettings(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}", experiments=["made"]),
            lake=LakeSettings(location=str(folder / "lake")),
            reports=ReportSettings(location=str(folder / "reports")),
            scorers=[QUALITY, LATENCY],
        )
        return cls(folder, settings)

    @property
    def lake(self) -> LakeResource:
        return build_resources(self.settings)["lake"]

    def having(self, *scorers: ScorerSettings, **backfill: Any) -> MadeProject:
        """The same store and lake with these scorers and backfill settings."""
        changes = {"scorers": [*scorers], "backfill": BackfillSettings(**backfill)}
        return MadeProject(self.folder, self.settings.model_copy(update=changes))

    def configure(self) -> Path:
        """Write the settings of store, lake and scorers to a file, and return it."""
        file = self.folder / "monitoring.toml"
        entries = [entry.model_dump(exclude_unset=True) for entry in self.settings.scorers]
        scorers = "".join(
            "[[scorers]]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in entry.items()) for entry in entries
        )
        file.write_text(
            f'[mlflow]\ntracking_uri = "{self.settings.mlflow.tracking_uri}"\nexperiments = ["made"]\n'
            f'[lake]\nlocation = "{self.settings.lake.location}"\n{scorers}',
            encoding="utf-8",
        )
        return file

    def rows(self, table: Table = ASSESSMENTS, scorer: str | None = None) -> list[dict[str, Any]]:
        """The rows of the table in order of their keys; only rows of `scorer`, if given."""
        found: pa.Table = self.lake.read(table).drop("date").toArrow()
        rows = [row for row in found.to_pylist() if scorer is None or row["scorer"] == scorer]
        return sorted(rows, key=lambda row: str([row[name] for name in table.key]))

    def scored(self, scorer: str) -> list[str]:
        """The ids of the traces that have a result of the scorer, oldest first."""
        return sorted(row["trace_id"] for row in self.rows(scorer=scorer))

    def versions(self) -> dict[str, int]:
        """The latest commit of every table."""
        return {table.name: self.lake.version(table) for table in TABLES}


def fails_at_once(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Make the asset of the scorer raise."""
    from monitoring_pipeline.orchestration.assets import assessments

    score_window = assessments.score_window

    def score(lake: Any, scorer: Any, *arguments: Any, **named: Any) -> Any:
        if scorer.name == name:
            raise RuntimeError("no disk")
        return score_window(lake, scorer, *arguments, **named)

    monkeypatch.setattr(assessments, "score_window", score)


def config_fields(job: dg.JobDefinition, step: str) -> Mapping[str, dg.Field]:
    """The fields of a step's configuration, as the Launchpad shows them."""
    schema: Any = job.graph.node_named(step).definition.config_schema
    return schema.as_field().config_type.fields


def _toml(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
