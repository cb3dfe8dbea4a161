"""Settings: monitoring.toml over environment variables over defaults, as one typed value."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from monitoring_pipeline.errors import SettingsError
from monitoring_pipeline.settings.alerts import AlertSettings, NotifierSettings, NotifySettings, alert_problems
from monitoring_pipeline.settings.datasets import DatasetSettings, dataset_problems
from monitoring_pipeline.settings.importing import make_importable
from monitoring_pipeline.settings.problems import problem_line, scorer_problems
from monitoring_pipeline.settings.sections import (
    ArchiveSettings,
    AutomationSettings,
    BackfillSettings,
    DagsterSettings,
    DatabricksSettings,
    LakeSettings,
    MlflowSettings,
    PythonSettings,
    ReportSettings,
    ScorerSettings,
    ScoringSettings,
    SensorSettings,
    SparkSettings,
    default_scorers,
    in_catalog,
)
from monitoring_pipeline.settings.upkeep import UpkeepSettings

CONFIG_NAME = "monitoring.toml"
M = TypeVar("M", bound=BaseModel)


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix="MONITORING_",
        env_nested_delimiter="__",
        env_ignore_empty=True,
        toml_file=None,
    )

    mlflow: MlflowSettings = Field(default_factory=MlflowSettings)
    lake: LakeSettings = Field(default_factory=LakeSettings)
    archive: ArchiveSettings = Field(default_factory=ArchiveSettings)
    spark: SparkSettings = Field(default_factory=SparkSettings)
    scorers: list[ScorerSettings] = Field(default_factory=default_scorers)
    scoring: ScoringSettings = Field(default_factory=ScoringSettings)
    backfill: BackfillSettings = Field(default_factory=BackfillSettings)
    sensor: SensorSettings = Field(default_factory=SensorSettings)
    reports: ReportSettings = Field(default_factory=ReportSettings)
    datasets: list[DatasetSettings] = Field(default=[])
    dagster: DagsterSettings = Field(default_factory=DagsterSettings)
    databricks: DatabricksSettings = Field(default_factory=DatabricksSettings)
    alerts: list[AlertSettings] = Field(default=[])
    notifiers: list[NotifierSettings] = Field(default=[])
    notify: NotifySettings = Field(default_factory=NotifySettings)
    upkeep: UpkeepSettings = Field(default_factory=UpkeepSettings)
    automation: AutomationSettings = Field(default_factory=AutomationSettings)
    python: PythonSettings = Field(default_factory=PythonSettings)

    @property
    def uses_embedded_store(self) -> bool:
        """Whether no store is configured, so that the embedded store with sample traffic is used."""
        return "tracking_uri" not in self.mlflow.model_fields_set

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (
            init_settings,
            TomlConfigSettingsSource(settings_cls),
            _Environment(settings_cls),
            InitSettingsSource(settings_cls, _common_variables()),
        )


class _Environment(EnvSettingsSource):
    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:  # not JSON: validation rejects it later and names the key
            return value


def _common_variables() -> dict[str, dict[str, str]]:
    names = {"mlflow": ("tracking_uri", "MLFLOW_TRACKING_URI"), "spark": ("remote", "SPARK_REMOTE")}
    return {
        section: {key: os.environ[variable]} for section, (key, variable) in names.items() if os.environ.get(variable)
    }


def config_path(config: Path | None = None) -> Path | None:
    """The configuration file in use: the one given, the one MONITORING_CONFIG names, ./monitoring.toml, or none.

    Raises:
        SettingsError: a named file does not exist.
    """
    named = config or (Path(os.environ["MONITORING_CONFIG"]) if os.environ.get("MONITORING_CONFIG") else None)
    if named is None:
        here = Path(CONFIG_NAME).absolute()
        return here if here.is_file() else None
    if not named.is_file():
        raise SettingsError([f"{named}: no such file; name an existing one with --config or MONITORING_CONFIG"])
    return named.absolute()


def config_folder() -> Path:
    """The folder of the configuration file in use, else the working folder; it holds data/."""
    path = config_path()
    return path.parent if path else Path.cwd()


def load_settings(config: Path | None = None) -> Settings:
    """The settings in force, with absolute paths. Makes the folders of `[python] path` importable.

    Raises:
        SettingsError: with a line for each unknown key, wrong value and missing scorer, all at once.
    """
    path = config_path(config)
    base = path.parent if path else Path.cwd()
    problems: list[str] = []
    try:
        settings = _read(path)
        settings = _absolute(settings, base)
        entries = [(scorer.name, scorer.scorer) for scorer in settings.scorers]
        across = [
            *alert_problems(settings.alerts, settings.notifiers, settings.scorers),
            *dataset_problems(settings.datasets),
        ]
        problems = [f"{path or 'environment'}: {problem}" for problem in across]
    except tomllib.TOMLDecodeError as error:
        raise SettingsError([f"{path}: not valid TOML: {error}"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([f"{path}: cannot be read as UTF-8 text: {error}"]) from None
    except ValidationError as error:
        settings = None
        raw = tomllib.loads(path.read_text(encoding="utf-8")) if path else {}
        problems = [problem_line(Settings, path, raw, detail) for detail in error.errors()]
        scorers = raw.get("scorers")
        entries = [
            (entry.get("name"), entry.get("scorer"))
            for entry in (scorers if isinstance(scorers, list) else [])
            if isinstance(entry, dict)
        ]
    make_importable(settings.python.path if settings else [str(base)])
    problems += [f"{path or 'environment'}: {problem}" for problem in scorer_problems(entries)]
    if problems or settings is None:
        raise SettingsError(problems)
    return settings


def _read(path: Path | None) -> Settings:
    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=path)

    found = FromFile()
    # An instance of a local class cannot be pickled for another process.
    return Settings.model_construct(_fields_set=set(found.model_fields_set), **dict(found))


def _absolute(settings: Settings, base: Path) -> Settings:
    return _with(
        settings,
        mlflow=_with(settings.mlflow, tracking_uri=_absolute_database(settings.mlflow.tracking_uri, base)),
        lake=_with(settings.lake, location=_absolute_path(settings.lake.location, base)),
        archive=_with(settings.archive, location=_absolute_source(settings.archive, base)),
        reports=_with(settings.reports, location=_absolute_path(settings.reports.location, base)),
        datasets=[_with(entry, location=_absolute_path(entry.location, base)) for entry in settings.datasets],
        python=_with(settings.python, path=[str(base), *(str(base / folder) for folder in settings.python.path)]),
    )


def _with(model: M, **changes: Any) -> M:
    # Unlike model_copy, this does not mark what changed as set by the user.
    return model.model_construct(_fields_set=set(model.model_fields_set), **{**dict(model), **changes})


def _absolute_source(archive: ArchiveSettings, base: Path) -> str | None:
    if archive.location is None:
        return None
    absolute = _absolute_database if archive.location_is_database else _absolute_path
    return absolute(archive.location, base)


def _absolute_database(uri: str, base: Path) -> str:
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        return f"sqlite:///{base / uri.removeprefix('sqlite:///')}"
    return uri


def _absolute_path(location: str, base: Path) -> str:
    is_elsewhere = "://" in location or in_catalog(location)
    return location if is_elsewhere else str(base / location)
