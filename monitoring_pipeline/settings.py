"""Settings: monitoring.toml over environment variables over defaults, as one typed value.

The file is the one given, else the one that MONITORING_CONFIG names, else ./monitoring.toml where it exists. A setting
may also come from the environment, as MONITORING_<SECTION>__<KEY>; MLFLOW_TRACKING_URI and SPARK_REMOTE keep their
usual names. Relative paths start from the folder of the file, or from the working folder where there is no file.
"""

from __future__ import annotations

import importlib.util
import os
import re
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from monitoring_pipeline.errors import SettingsError
from monitoring_pipeline.windows import floor_hour

CONFIG_NAME = "monitoring.toml"
EMBEDDED_STORE = "sqlite:///data/mlflow.db"
M = TypeVar("M", bound=BaseModel)
SHIPPED_SCORERS = "monitoring_pipeline.scoring.scorers"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MlflowSettings(Section):
    tracking_uri: str = Field(
        default_factory=lambda: os.environ.get("MLFLOW_TRACKING_URI") or EMBEDDED_STORE,
        description="the MLflow store or server that traces are read from",
    )
    experiments: list[str] = Field(default=[], description="names of the experiments to archive; empty: all of them")


class LakeSettings(Section):
    location: str = Field(default="data/lake", description="folder or object store address of the Delta tables")


class ArchiveSettings(Section):
    start: AwareDatetime = Field(
        default=datetime(2026, 1, 1, tzinfo=UTC), description="the first hour that has a partition"
    )
    source: Literal["mlflow"] = Field(default="mlflow", description="where traces are read from")

    @field_validator("start")
    @classmethod
    def _whole_hour(cls, start: datetime) -> datetime:
        return floor_hour(start)


class SparkSettings(Section):
    remote: str | None = Field(
        default_factory=lambda: os.environ.get("SPARK_REMOTE"),
        description="address of a Spark Connect server, sc://host:port; none: an engine inside the process",
        pattern=r"^sc://",
    )


class ScorerSettings(Section):
    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")
    scorer: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="module:attribute")
    sample_rate: float = Field(default=1.0, ge=0, le=1, description="share of the traces that pass the filter")
    filter: str | None = Field(default=None, description="MLflow trace filter")
    params: dict[str, Any] = Field(default={}, description="keyword arguments of the scorer")


class BackfillSettings(Section):
    max_partitions_per_run: int = Field(default=168, ge=1, description="hours that one run of a backfill takes")


class ReportSettings(Section):
    location: str = Field(default="data/reports", description="folder of the daily reports")


class DagsterSettings(Section):
    executor: Literal["in_process", "multiprocess"] = Field(
        default="in_process", description="one process for all steps of a run (0.1 s each), or one each (3 s each)"
    )


def _default_scorers() -> list[ScorerSettings]:
    names = ("response_quality", "tool_errors", "stage_latency")
    return [ScorerSettings(name=name, scorer=f"{SHIPPED_SCORERS}:{name}") for name in names]


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix="MONITORING_", env_nested_delimiter="__", toml_file=None
    )

    mlflow: MlflowSettings = Field(default_factory=MlflowSettings)
    lake: LakeSettings = Field(default_factory=LakeSettings)
    archive: ArchiveSettings = Field(default_factory=ArchiveSettings)
    spark: SparkSettings = Field(default_factory=SparkSettings)
    scorers: list[ScorerSettings] = Field(default_factory=_default_scorers)
    backfill: BackfillSettings = Field(default_factory=BackfillSettings)
    reports: ReportSettings = Field(default_factory=ReportSettings)
    dagster: DagsterSettings = Field(default_factory=DagsterSettings)

    @property
    def uses_embedded_store(self) -> bool:
        """Whether no store is configured, so that the embedded one with its sample traffic is used."""
        configured = "tracking_uri" in self.mlflow.model_fields_set or os.environ.get("MLFLOW_TRACKING_URI")
        return not configured

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, TomlConfigSettingsSource(settings_cls), env_settings


def config_path(config: Path | None = None) -> Path | None:
    """The configuration file in use: the one given, the one MONITORING_CONFIG names, ./monitoring.toml, or none.

    Raises:
        SettingsError: a file was named and is not there.
    """
    named = config or (Path(os.environ["MONITORING_CONFIG"]) if os.environ.get("MONITORING_CONFIG") else None)
    if named is None:
        here = Path(CONFIG_NAME).absolute()
        return here if here.is_file() else None
    if not named.is_file():
        raise SettingsError([f"{named}: no such file; name an existing one with --config or MONITORING_CONFIG"])
    return named.absolute()


def load_settings(config: Path | None = None) -> Settings:
    """The settings in force, with absolute paths.

    Raises:
        SettingsError: with a line for every unknown key, wrong value and scorer that is not there, all at once.
    """
    path = config_path(config)
    try:
        settings = _read(path)
        problems: list[str] = []
    except tomllib.TOMLDecodeError as error:
        raise SettingsError([f"{path}: not valid TOML: {error}"]) from None
    except ValidationError as error:
        settings = None
        problems = [_line(path, detail) for detail in error.errors()]
    problems += [f"{path or 'settings'}: {problem}" for problem in _scorer_problems(settings, path)]
    if problems or settings is None:
        raise SettingsError(problems)
    return _absolute(settings, path.parent if path else Path.cwd())


def _read(path: Path | None) -> Settings:
    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=path)

    return FromFile()


def _line(path: Path | None, detail: Any) -> str:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]).lstrip(".")
    kind, context = detail["type"], detail.get("ctx", {})
    value = without_password(str(detail["input"]))
    if kind == "extra_forbidden":
        return f"{path or 'environment'}: {where}: unknown key; known here: {', '.join(_known_keys(detail['loc']))}"
    if kind == "missing":
        return f"{path or 'environment'}: {where}: missing; add it"
    if kind == "timezone_aware":
        return f"{path or 'environment'}: {where} = {value}: no time zone; add an offset, such as {value}Z"
    if kind == "string_pattern_mismatch":
        return f"{path or 'environment'}: {where} = {value!r}: must look like {_EXAMPLES[str(detail['loc'][-1])]}"
    if kind in ("greater_than_equal", "less_than_equal"):
        bound = f"at least {context['ge']}" if "ge" in context else f"at most {context['le']}"
        return f"{path or 'environment'}: {where} = {value}: must be {bound}"
    return f"{path or 'environment'}: {where} = {value!r}: {detail['msg'][0].lower()}{detail['msg'][1:]}"


_EXAMPLES = {
    "name": "my_scorer (letters, digits and _)",
    "scorer": "package.module:attribute",
    "remote": "sc://host:15002",
}


def _known_keys(location: tuple[str | int, ...]) -> list[str]:
    model: type[BaseModel] = Settings
    for part in location[:-1]:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            model = ScorerSettings if part == "scorers" else annotation  # type: ignore[assignment]
    return list(model.model_fields)


def _scorer_problems(settings: Settings | None, path: Path | None) -> list[str]:
    """What is wrong with the scorers beyond their types; told without importing them, as that takes seconds."""
    if settings is not None:
        entries = [(scorer.name, scorer.scorer) for scorer in settings.scorers]
    elif path is not None:
        raw = tomllib.loads(path.read_text(encoding="utf-8")).get("scorers", [])
        entries = [(entry.get("name"), entry.get("scorer")) for entry in raw if isinstance(entry, dict)]
    else:
        entries = []
    names = [name for name, _ in entries]
    problems = [
        f"scorers: name {name!r} is used {names.count(name)} times; give each scorer its own name"
        for name in sorted({name for name in names if isinstance(name, str) and names.count(name) > 1})
    ]
    for index, (name, reference) in enumerate(entries):
        reason = _missing_reference(reference) if isinstance(reference, str) and ":" in reference else None
        if reason:
            problems.append(f"scorers[{index}].scorer = {reference!r} (scorer {name!r}): {reason}")
    return problems


def _missing_reference(reference: str) -> str | None:
    module, attribute = reference.split(":", 1)
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return f"no module named {module!r}; check the spelling, or install it where the pipeline runs"
    source = Path(spec.origin).read_text(encoding="utf-8") if spec.origin and spec.origin.endswith(".py") else ""
    defined_elsewhere = not source or "import *" in source or "__getattr__" in source
    if not defined_elsewhere and not re.search(rf"\b{re.escape(attribute)}\b", source):
        return f"module {module!r} has no {attribute!r}"
    return None


def _absolute(settings: Settings, base: Path) -> Settings:
    uri = settings.mlflow.tracking_uri
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        uri = f"sqlite:///{base / uri.removeprefix('sqlite:///')}"
    return _with(
        settings,
        mlflow=_with(settings.mlflow, tracking_uri=uri),
        lake=_with(settings.lake, location=_absolute_path(settings.lake.location, base)),
        reports=_with(settings.reports, location=_absolute_path(settings.reports.location, base)),
    )


def _with(model: M, **changes: Any) -> M:
    # Unlike model_copy, this does not mark what changed as set by the user.
    return model.model_construct(_fields_set=set(model.model_fields_set), **{**dict(model), **changes})


def _absolute_path(location: str, base: Path) -> str:
    return location if "://" in location else str(base / Path(location).expanduser())


def without_password(uri: str) -> str:
    """`uri` with the user and password of its authority replaced by ***, fit for a message."""
    return re.sub(r"://[^/@\s]*@", "://***@", uri)
