"""What can be set: the sections of monitoring.toml, with their defaults and bounds."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from monitoring_pipeline.settings.base import Section
from monitoring_pipeline.settings.redaction import RedactSettings
from monitoring_pipeline.windows import floor_hour, parse_utc

EMBEDDED_STORE = "sqlite:///data/mlflow.db"
SHIPPED_SCORERS = "monitoring_pipeline.scoring.scorers"
SCORER_REFERENCE = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


def _expand_home(location: str) -> str:
    try:
        # Any other stays as it is: `./a.b` says that it is a folder and no schema.
        return str(Path(location).expanduser()) if location.startswith("~") else location
    except RuntimeError:
        raise ValueError(f"{location!r} starts from a home folder that is not known; write it from /") from None


Location = Annotated[str, Field(min_length=1), AfterValidator(_expand_home)]
EXAMPLE_VOLUME = "/Volumes/main/monitoring/pipeline"
IDENTIFIER = r"[A-Za-z_][A-Za-z0-9_]{0,254}"


def in_catalog(location: str) -> bool:
    """Whether it names something in a catalog (catalog.schema, catalog.schema.table), and no folder or address."""
    return re.fullmatch(rf"{IDENTIFIER}(\.{IDENTIFIER}){{1,2}}", location) is not None


class MlflowSettings(Section):
    tracking_uri: str = Field(
        default=EMBEDDED_STORE, min_length=1, description="the MLflow store or server that traces are read from"
    )
    experiments: list[str] = Field(default=[], description="names of the experiments to archive; empty: all of them")


class LakeSettings(Section):
    location: Location = Field(
        default="data/lake",
        description="folder or object store address of the Delta tables, or catalog.schema of [spark] remote",
    )


class ArchiveSettings(Section):
    start: datetime = Field(default=datetime(2026, 1, 1, tzinfo=UTC), description="the first hour that has a partition")
    source: Literal["mlflow", "mlflow-sql", "delta", "otel"] = Field(
        default="mlflow", description="where traces are read from"
    )
    location: str | None = Field(
        default=None,
        min_length=1,
        description="of the source: the database (mlflow-sql; default [mlflow] tracking_uri), the table of archived "
        "traces (delta) or the prefix of the OpenTelemetry tables (otel), as catalog.schema.name or a folder",
    )
    redact: RedactSettings = Field(
        default_factory=RedactSettings, description="what is taken out of traces before they are written"
    )

    @property
    def location_is_database(self) -> bool:
        """Whether `location` is the address of a database, which may hold a password, and not that of tables."""
        return self.source == "mlflow-sql"

    @property
    def reads_databricks_archive(self) -> bool:
        """Whether traces come from the table that Databricks' trace archival writes."""
        return self.source == "delta"

    @field_validator("start", mode="before")
    @classmethod
    def _whole_hour(cls, start: object) -> datetime:
        return floor_hour(parse_utc(str(start)))

    @model_validator(mode="after")
    def _has_its_location(self) -> Self:
        if self.source in ("delta", "otel") and self.location is None:
            raise ValueError(f"source = {self.source!r} needs location: the catalog.schema.name, or folder, to read")
        if self.source == "mlflow" and self.location is not None:
            raise ValueError(f"location = {self.location!r} is for other sources; set [mlflow] tracking_uri")
        return self


class SparkSettings(Section):
    remote: str | None = Field(
        default=None,
        description="address of a Spark Connect server, sc://host:port; none: an engine inside the process",
        pattern=r"^sc://",
    )


class ScorerSettings(Section):
    """A scorer: the user's own (`scorer`) or one of MLflow's (`builtin`), how much it sees, and what it may use."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$", description="what tables and commands call it")
    scorer: str | None = Field(default=None, pattern=SCORER_REFERENCE, description="module:attribute")
    builtin: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_]\w*$",
        description="a class of mlflow.genai.scorers, such as Safety, or make_judge",
    )
    model: str | None = Field(
        default=None,
        pattern=r"^([a-z][\w-]*:/.+|databricks)$",
        description="the judge's model, or `databricks` for the one that Databricks has for judges",
    )
    params: dict[str, Any] = Field(default={}, description="keyword arguments of the scorer")
    state: Literal["active", "stopped", "registered"] = Field(
        default="active", description="the state that `scorers apply` brings it to; only an active one runs by itself"
    )
    sample_rate: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of the traces that pass the filter; default by kind: safety 1.0, relevance 0.2, "
        "guidelines 0.1, other judges 0.05, code 1.0",
    )
    filter: str | None = Field(default=None, description="MLflow trace filter")
    pass_if: str | None = Field(
        default=None,
        pattern=r"^(<|<=|>|>=|==) *-?\d+(\.\d+)?$",
        description="the scores that pass; default: for agreement the upper half, for pass rates the 1 of scores that "
        "are all 0 or 1",
    )
    compare_with: list[str] = Field(
        default=[], description="names of people's feedback that the scorer is compared with; default: its own name"
    )
    concurrency: int | None = Field(default=None, ge=1, description="calls at a time; default: judges 8, code 1")
    requests_per_minute: int | None = Field(default=None, ge=1, description="requests to the model; none: no limit")
    timeout_seconds: float = Field(default=60.0, gt=0, description="of one request to the model")
    max_attempts: int = Field(default=5, ge=1, description="of one request, on 429, 5xx and time-outs")
    usd_per_million_input_tokens: float | None = Field(
        default=None, ge=0, description="price of the model; default: MLflow's price list"
    )
    usd_per_million_output_tokens: float | None = Field(
        default=None, ge=0, description="price of the model; default: MLflow's price list"
    )
    max_usd_per_day: float | None = Field(default=None, gt=0, description="spent in one UTC day; none: no limit")
    max_traces_per_hour: int | None = Field(
        default=None, ge=1, description="traces scored in one hour of the clock; none: no limit"
    )
    managed: Literal["databricks"] | None = Field(
        default=None, description="who runs the scorer, by itself and in backfills; none: this pipeline"
    )
    session_idle_minutes: int = Field(
        default=30, ge=0, description="how long a session must be quiet before a scorer of sessions sees it"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.scorer is None) == (self.builtin is None):
            given = "neither" if self.scorer is None else "both"
            raise ValueError(f"{given} of scorer and builtin given; a scorer needs one of them")
        if self.model is not None and self.builtin is None:
            raise ValueError(f"model = {self.model!r} is for a builtin; a scorer of your own names its model itself")
        return self

    @model_validator(mode="after")
    def _limits_that_hold(self) -> Self:
        limits = {"concurrency", "requests_per_minute", "max_usd_per_day", "max_traces_per_hour"}
        given = sorted(name for name in limits if getattr(self, name) is not None)
        if self.managed and given:
            raise ValueError(
                f"{', '.join(given)} cannot be held for managed = {self.managed!r}, which asks the model by itself; "
                "lower sample_rate"
            )
        return self

    @property
    def reference(self) -> str:
        """What the scorer is, in the user's words: module:attribute, or the name of MLflow's."""
        return self.scorer or self.builtin or ""


class ScoringSettings(Section):
    experiment: str | None = Field(
        default=None,
        description="name of the experiment that keeps the scorers' states; default: the first of [mlflow] "
        "experiments, else MLflow's default experiment",
    )
    write_back: bool = Field(default=False, description="log results to MLflow as feedback on their traces")


class BackfillSettings(Section):
    max_partitions_per_run: int = Field(default=168, ge=1, description="hours that one run of a backfill takes")
    max_scorers_at_once: int = Field(default=4, ge=1, description="scorers that a backfill in one process runs at once")


class ReportSettings(Section):
    location: Location = Field(default="data/reports", description="folder of the reports")
    mlflow_ui: str | None = Field(
        default=None,
        description="address of MLflow's pages, for links; default: [mlflow] tracking_uri where it is http(s)",
    )
    log_to_experiment: str | None = Field(
        default=None, min_length=1, description="MLflow experiment that each report is also logged to; none: not logged"
    )

    @field_validator("mlflow_ui")
    @classmethod
    def _is_a_page(cls, mlflow_ui: str | None) -> str | None:
        if mlflow_ui is not None and not re.match(r"https?://[^/\s]", mlflow_ui):
            raise ValueError(f"mlflow_ui = {mlflow_ui!r} is no page; write its address, such as http://127.0.0.1:5000")
        return mlflow_ui


class DagsterSettings(Section):
    executor: Literal["in_process", "multiprocess"] = Field(
        default="in_process", description="one process for all steps of a run (0.1 s each), or one each (3 s each)"
    )


class DatabricksSettings(Section):
    """Databricks; its address and credentials come from the environment, as for Databricks' own tools."""

    jobs: Literal["serverless", "cluster"] | None = Field(
        default=None, description="run the heavy assets as Databricks jobs; none: where Dagster runs"
    )
    cluster_id: str | None = Field(default=None, min_length=1, description="of jobs on a cluster that is there")
    new_cluster: dict[str, Any] | None = Field(
        default=None, description="of jobs on a cluster of their own: the Jobs API's new_cluster"
    )
    volume: str | None = Field(
        default=None, description="folder of a Unity Catalog volume that jobs and Dagster exchange messages through"
    )
    packages: list[str] = Field(
        default=[], description="what a job installs: this package's wheel in a volume, and those of your scorers"
    )
    monitoring_frequency_minutes: int = Field(
        default=15, ge=1, le=60, description="how often Databricks runs the scorers that it manages"
    )

    @field_validator("volume")
    @classmethod
    def _below_volumes(cls, volume: str | None) -> str | None:
        if volume is not None and not re.fullmatch(r"/Volumes(/[^/]+){3,}/?", volume):
            raise ValueError(f"volume = {volume!r} must look like {EXAMPLE_VOLUME}")
        return volume and volume.rstrip("/")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.jobs and not self.volume:
            raise ValueError(f"jobs = {self.jobs!r} needs volume, such as {EXAMPLE_VOLUME}")
        if self.jobs == "serverless" and not self.packages:
            raise ValueError(f"jobs = 'serverless' needs packages: this package's wheel, {EXAMPLE_VOLUME}/….whl")
        if self.jobs == "serverless" and (self.cluster_id or self.new_cluster):
            given = "cluster_id" if self.cluster_id else "new_cluster"
            raise ValueError(f"{given} is for jobs = 'cluster'; jobs is 'serverless'")
        if self.jobs == "cluster" and (self.cluster_id is None) == (self.new_cluster is None):
            given = "neither" if self.cluster_id is None else "both"
            raise ValueError(f"jobs = 'cluster' needs one of cluster_id and new_cluster; {given} given")
        return self


def default_scorers() -> list[ScorerSettings]:
    """The scorers of a configuration that names none: shipped ones that need no key."""
    names = ("response_quality", "tool_errors", "stage_latency")
    return [ScorerSettings(name=name, scorer=f"{SHIPPED_SCORERS}:{name}") for name in names]


class AutomationSettings(Section):
    enabled: bool = Field(
        default=False,
        description="whether sensors and schedules start with Dagster; else each is switched on in the UI",
    )
    rescore_changed: bool = Field(
        default=False, description="score the latest hours again, by itself, when a scorer's digest changes"
    )
    rescore_look_back_hours: int = Field(
        default=168, ge=1, description="how many of the latest hours a changed scorer scores again"
    )


class SensorSettings(Section):
    interval_seconds: int = Field(default=60, ge=10, description="from one look at the source to the next")
    look_back_hours: int = Field(
        default=48, ge=1, le=744, description="hours that are compared at each look; of the days before, one a look"
    )
    current_hour_refresh_minutes: int = Field(
        default=5, ge=1, le=60, description="how old the archive of the current hour may become while traces arrive"
    )
    max_attempts: int = Field(
        default=3, ge=1, le=20, description="runs a UTC day for one state of an hour before it is given up"
    )
