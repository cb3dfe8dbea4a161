"""The sections of monitoring.toml, with their defaults and bounds."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from monitoring_pipeline.settings.base import Section, hours_of_text
from monitoring_pipeline.settings.redaction import RedactSettings
from monitoring_pipeline.windows import floor_hour, parse_utc

if TYPE_CHECKING:
    from monitoring_pipeline.keys import Names

EMBEDDED_STORE = "sqlite:///data/mlflow.db"
SHIPPED_SCORERS = "monitoring_pipeline.scoring.scorers"
SCORER_REFERENCE = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


def _expand_home(location: str) -> str:
    try:
        # All else stays unchanged: `./a.b` is a folder only because of its `./`, and `a.b` a schema.
        return str(Path(location).expanduser()) if location.startswith("~") else location
    except RuntimeError:
        raise ValueError(f"{location!r} starts from an unknown home folder; write the path from /") from None


Location = Annotated[str, Field(min_length=1), AfterValidator(_expand_home)]
EXAMPLE_VOLUME = "/Volumes/main/monitoring/pipeline"
NAME_PART = r"^[A-Za-z_][A-Za-z0-9_]*$"
TAG_PART = r"[A-Za-z0-9_.-]"
IDENTIFIER = r"[A-Za-z_][A-Za-z0-9_]{0,254}"


def in_catalog(location: str) -> bool:
    """Whether `location` is a name in a catalog (catalog.schema or catalog.schema.table), not a folder or address."""
    return re.fullmatch(rf"{IDENTIFIER}(\.{IDENTIFIER}){{1,2}}", location) is not None


class MlflowSettings(Section):
    tracking_uri: str = Field(
        default=EMBEDDED_STORE, min_length=1, description="MLflow store or server to read traces from"
    )
    experiments: list[str] = Field(default=[], description="names of the experiments to archive; empty: all")


class PythonSettings(Section):
    path: list[str] = Field(
        default=[],
        description="folders to import scorers from, besides the folder of monitoring.toml, which is always one; "
        "installed packages come first",
    )


class LakeSettings(Section):
    location: Location = Field(
        default="data/lake",
        description="folder or object store address of the Delta tables, or catalog.schema of [spark] remote",
    )


class ArchiveSettings(Section):
    start: datetime = Field(default=datetime(2026, 1, 1, tzinfo=UTC), description="first hour that has a partition")
    source: Literal["mlflow", "mlflow-sql", "delta", "otel"] = Field(
        default="mlflow", description="kind of source to read traces from"
    )
    location: str | None = Field(
        default=None,
        min_length=1,
        description="location of the source: its database (mlflow-sql; default [mlflow] tracking_uri), its table of "
        "archived traces (delta) or the prefix of its OpenTelemetry tables (otel), as catalog.schema.name or a folder",
    )
    redact: RedactSettings = Field(
        default_factory=RedactSettings, description="values to remove from traces before they are written"
    )

    @property
    def location_is_database(self) -> bool:
        """Whether `location` is the address of a database, which may hold a password, rather than of tables."""
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
        description="address of a Spark Connect server, sc://host:port; none: Sail, inside the process",
        pattern=r"^sc://",
    )


class ScorerSettings(Section):
    """A scorer, your own (`scorer`) or one of MLflow's (`builtin`), with its sample and its limits."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$", description="name in tables and commands")
    scorer: str | None = Field(
        default=None, pattern=SCORER_REFERENCE, description="your own scorer, as module:attribute"
    )
    builtin: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_]\w*$",
        description="a class of mlflow.genai.scorers, such as Safety, or make_judge",
    )
    model: str | None = Field(
        default=None,
        pattern=r"^([a-z][\w-]*:/.+|databricks)$",
        description="model of a judge, or `databricks` for the model that Databricks provides for judges",
    )
    params: dict[str, Any] = Field(default={}, description="keyword arguments of the scorer")
    state: Literal["active", "stopped", "registered"] = Field(
        default="active", description="state that `scorers apply` brings it to; only active scorers score new traces"
    )
    sample_rate: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of the traces that pass the filter; default by kind: safety and code 1.0, relevance 0.2, "
        "guidelines 0.1, other judges 0.05",
    )
    filter: str | None = Field(default=None, description="MLflow trace filter")
    pass_if: str | None = Field(
        default=None,
        pattern=r"^(<|<=|>|>=|==) *-?\d+(\.\d+)?$",
        description="scores that pass; default: 1 for pass rates of scores that are all 0 or 1, the upper half for "
        "agreement",
    )
    score_range: tuple[float, float] | None = Field(
        default=None,
        description="lowest and highest possible score, such as [1, 5]; default: 0 to 1 where no score lies outside. "
        "Intervals of the mean stay within it",
    )
    compare_with: list[str] = Field(
        default=[], description="names of human feedback to compare the scorer with; default: the name of the scorer"
    )
    concurrency: int | None = Field(default=None, ge=1, description="concurrent calls; default: judges 8, code 1")
    requests_per_minute: int | None = Field(
        default=None, ge=1, description="limit of requests to the model; none: no limit"
    )
    timeout_seconds: float = Field(
        default=60.0, gt=0, description="time limit of a judge's request, or of a code scorer's run on one trace"
    )
    memory_limit_mb: int = Field(
        default=4096, ge=64, description="memory limit of a process that runs a code scorer, on Linux"
    )
    max_attempts: int = Field(
        default=5, ge=1, description="attempts of one request, after status 429, 5xx and time-outs"
    )
    usd_per_million_input_tokens: float | None = Field(
        default=None, ge=0, description="price of input tokens; default: MLflow's price list"
    )
    usd_per_million_output_tokens: float | None = Field(
        default=None, ge=0, description="price of output tokens; default: MLflow's price list"
    )
    max_usd_per_day: float | None = Field(
        default=None, gt=0, description="spending limit in one UTC day; none: no limit"
    )
    max_traces_per_hour: int | None = Field(
        default=None, ge=1, description="limit of traces scored in one clock hour; none: no limit"
    )
    managed: Literal["databricks"] | None = Field(
        default=None, description="service that runs the scorer, for new traces and backfills; none: this pipeline"
    )
    session_idle_minutes: int = Field(
        default=30, ge=0, description="quiet minutes after which a session is scored, for scorers of whole sessions"
    )
    reads: list[Literal["tags", "feedback", "expectations"]] = Field(
        default=[],
        description="what the scorer reads of a trace besides its spans: a change of it makes the result stale; "
        "expectations are included for scorers that take them",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.scorer is None) == (self.builtin is None):
            given = "neither" if self.scorer is None else "both"
            raise ValueError(f"{given} of scorer and builtin given; give exactly one")
        if self.model is not None and self.builtin is None:
            raise ValueError(f"model = {self.model!r} is for a builtin; your own scorer chooses its model in its code")
        return self

    @model_validator(mode="after")
    def _range_in_order(self) -> Self:
        if self.score_range and not self.score_range[0] < self.score_range[1]:
            raise ValueError(f"score_range = {list(self.score_range)}: the first number must be less than the second")
        return self

    @model_validator(mode="after")
    def _limits_that_hold(self) -> Self:
        limits = {"concurrency", "requests_per_minute", "max_usd_per_day", "max_traces_per_hour"}
        given = sorted(name for name in limits if getattr(self, name) is not None)
        if self.managed and given:
            raise ValueError(
                f"{', '.join(given)} cannot be enforced with managed = {self.managed!r}, which calls the model itself; "
                "lower sample_rate"
            )
        return self

    @property
    def reference(self) -> str:
        """The scorer as configured: module:attribute, or the name of MLflow's class."""
        return self.scorer or self.builtin or ""


class ScoringSettings(Section):
    experiment: str | None = Field(
        default=None,
        description="MLflow experiment that stores the states of scorers; default: the first of [mlflow] experiments, "
        "else MLflow's default experiment",
    )
    write_back: bool = Field(default=False, description="log results to MLflow as feedback on their traces")
    unfinished_after: str = Field(
        default="6h",
        description="time without news after which a trace that is still IN_PROGRESS is scored as it is, such as 6h or "
        "2d",
    )

    @property
    def unfinished_after_hours(self) -> int:
        """`unfinished_after` in hours."""
        return hours_of_text(self.unfinished_after)

    @field_validator("unfinished_after")
    @classmethod
    def _is_a_time(cls, unfinished_after: str) -> str:
        hours_of_text(unfinished_after)
        return unfinished_after


class BackfillSettings(Section):
    max_partitions_per_run: int = Field(default=168, ge=1, description="hours in one run of a scorer's backfill")
    max_scorers_at_once: int = Field(
        default=4, ge=1, description="processes of a backfill that runs without a Dagster daemon"
    )


class ReportSettings(Section):
    location: Location = Field(default="data/reports", description="folder of the reports")
    mlflow_ui: str | None = Field(
        default=None,
        description="address of the MLflow UI, for links; default: [mlflow] tracking_uri if it is http(s)",
    )
    log_to_experiment: str | None = Field(
        default=None, min_length=1, description="MLflow experiment to log each report to; none: not logged"
    )

    @field_validator("mlflow_ui")
    @classmethod
    def _is_a_page(cls, mlflow_ui: str | None) -> str | None:
        if mlflow_ui is not None and not re.match(r"https?://[^/\s]", mlflow_ui):
            raise ValueError(f"mlflow_ui = {mlflow_ui!r} is not an address; write it as http://127.0.0.1:5000")
        return mlflow_ui


class DagsterSettings(Section):
    """How jobs run, and prefixes that tell our definitions apart from others in one code location."""

    executor: Literal["in_process", "multiprocess"] = Field(
        default="in_process", description="one process for all steps of a run (0.1 s each), or one each (3 s each)"
    )
    key_prefix: list[Annotated[str, Field(pattern=NAME_PART)]] = Field(
        default=[],
        description="prefix of asset keys, and of the names of jobs, sensors and schedules: a list, or parts joined "
        "by /",
    )
    group_prefix: str | None = Field(default=None, pattern=NAME_PART, description="prefix of the groups of assets")
    resource_prefix: str | None = Field(default=None, pattern=NAME_PART, description="prefix of the resource keys")
    owners: list[str] = Field(
        default=[], description="owners of all assets: e-mail addresses, or teams such as team:support"
    )
    tags: dict[str, str] = Field(default={}, description="tags on all assets")

    @field_validator("key_prefix", mode="before")
    @classmethod
    def _parts(cls, key_prefix: object) -> object:
        return key_prefix.split("/") if isinstance(key_prefix, str) else key_prefix

    @field_validator("owners")
    @classmethod
    def _are_owners(cls, owners: list[str]) -> list[str]:
        for owner in owners:
            if not re.fullmatch(r"team:.+|[^@\s]+@[^@\s]+\.[^@\s]+", owner):
                raise ValueError(f"owner {owner!r}: write an e-mail address, or a team such as team:support")
        return owners

    @field_validator("tags")
    @classmethod
    def _are_tags(cls, tags: dict[str, str]) -> dict[str, str]:
        for key, value in tags.items():
            if key.startswith(("monitoring/", "dagster/")):
                raise ValueError(f"tag {key!r}: monitoring/ and dagster/ are reserved; use another name")
            if not re.fullmatch(rf"({TAG_PART}{{1,63}}/)?{TAG_PART}{{1,63}}", key):
                raise ValueError(f"tag {key!r}: use letters, digits, _, - and ., at most 63 characters")
            if not re.fullmatch(rf"{TAG_PART}{{0,63}}", value):
                raise ValueError(f"tag {key} = {value!r}: use letters, digits, _, - and ., at most 63 characters")
        return tags

    @property
    def names(self) -> Names:
        """The names of our definitions in the code location."""
        from monitoring_pipeline.keys import Names

        return Names(tuple(self.key_prefix), self.group_prefix, self.resource_prefix)


class DatabricksSettings(Section):
    """Databricks; its address and credentials come from the environment, as for Databricks' own tools."""

    jobs: Literal["serverless", "cluster"] | None = Field(
        default=None, description="run the heavy assets as Databricks jobs; none: run them where Dagster runs"
    )
    cluster_id: str | None = Field(default=None, min_length=1, description="existing cluster for jobs")
    new_cluster: dict[str, Any] | None = Field(
        default=None, description="cluster to create for each job, as new_cluster of the Jobs API"
    )
    volume: str | None = Field(
        default=None, description="folder of a Unity Catalog volume for messages between jobs and Dagster"
    )
    packages: list[str] = Field(
        default=[],
        description="packages that a job installs: the wheel of this package in a volume, and those of your scorers",
    )
    monitoring_frequency_minutes: int = Field(
        default=15, ge=1, le=60, description="interval at which Databricks runs its managed scorers"
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
    """The scorers of a configuration without any: shipped ones that need no API key."""
    names = ("response_quality", "tool_errors", "stage_latency")
    return [ScorerSettings(name=name, scorer=f"{SHIPPED_SCORERS}:{name}") for name in names]


class AutomationSettings(Section):
    enabled: bool = Field(
        default=False,
        description="whether sensors and schedules start with Dagster; otherwise enable each in the UI",
    )
    rescore_changed: bool = Field(
        default=False, description="score the latest hours again when a scorer's digest changes"
    )
    rescore_look_back_hours: int = Field(
        default=168, ge=1, description="latest hours that a changed scorer scores again"
    )


class SensorSettings(Section):
    interval_seconds: int = Field(default=60, ge=10, description="interval between comparisons with the source")
    look_back_hours: int = Field(
        default=48,
        ge=1,
        le=744,
        description="latest hours in each comparison; earlier days take turns, as many as fit into a second",
    )
    current_hour_refresh_minutes: int = Field(
        default=5, ge=1, le=60, description="highest age of the current hour's archive while traces arrive"
    )
    max_attempts: int = Field(
        default=3, ge=1, le=20, description="failed runs per UTC day after which an unchanged hour is given up"
    )
