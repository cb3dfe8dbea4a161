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
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
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
from monitoring_pipeline.windows import floor_hour, parse_utc

CONFIG_NAME = "monitoring.toml"
EMBEDDED_STORE = "sqlite:///data/mlflow.db"
M = TypeVar("M", bound=BaseModel)
SHIPPED_SCORERS = "monitoring_pipeline.scoring.scorers"
SCORER_REFERENCE = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


def _expand_home(location: str) -> str:
    try:
        return location if "://" in location else str(Path(location).expanduser())
    except RuntimeError:
        raise ValueError(f"{location!r} starts from a home folder that is not known; write it from /") from None


Location = Annotated[str, Field(min_length=1), AfterValidator(_expand_home)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MlflowSettings(Section):
    tracking_uri: str = Field(
        default=EMBEDDED_STORE, min_length=1, description="the MLflow store or server that traces are read from"
    )
    experiments: list[str] = Field(default=[], description="names of the experiments to archive; empty: all of them")


class LakeSettings(Section):
    location: Location = Field(default="data/lake", description="folder or object store address of the Delta tables")


class ArchiveSettings(Section):
    start: datetime = Field(default=datetime(2026, 1, 1, tzinfo=UTC), description="the first hour that has a partition")
    source: Literal["mlflow"] = Field(default="mlflow", description="where traces are read from")

    @field_validator("start", mode="before")
    @classmethod
    def _whole_hour(cls, start: object) -> datetime:
        return floor_hour(parse_utc(str(start)))


class SparkSettings(Section):
    remote: str | None = Field(
        default=None,
        description="address of a Spark Connect server, sc://host:port; none: an engine inside the process",
        pattern=r"^sc://",
    )


class ScorerSettings(Section):
    """A scorer: the user's own (`scorer`) or one of MLflow's (`builtin`), how much it sees, and what it may use."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")
    scorer: str | None = Field(default=None, pattern=SCORER_REFERENCE, description="module:attribute")
    builtin: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_]\w*$",
        description="a class of mlflow.genai.scorers, such as Safety, or make_judge",
    )
    model: str | None = Field(default=None, pattern=r"^[a-z][\w-]*:/.+$", description="the judge's model")
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
        description="the scores that pass, for pass rates and agreement; default: 1 of scores that are 0 or 1, and "
        "for agreement the upper half",
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
    location: Location = Field(default="data/reports", description="folder of the daily reports")


class DagsterSettings(Section):
    executor: Literal["in_process", "multiprocess"] = Field(
        default="in_process", description="one process for all steps of a run (0.1 s each), or one each (3 s each)"
    )


def _default_scorers() -> list[ScorerSettings]:
    names = ("response_quality", "tool_errors", "stage_latency")
    return [ScorerSettings(name=name, scorer=f"{SHIPPED_SCORERS}:{name}") for name in names]


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
    scorers: list[ScorerSettings] = Field(default_factory=_default_scorers)
    scoring: ScoringSettings = Field(default_factory=ScoringSettings)
    backfill: BackfillSettings = Field(default_factory=BackfillSettings)
    reports: ReportSettings = Field(default_factory=ReportSettings)
    dagster: DagsterSettings = Field(default_factory=DagsterSettings)

    @property
    def uses_embedded_store(self) -> bool:
        """Whether no store is configured, so that the embedded one with its sample traffic is used."""
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
            InitSettingsSource(settings_cls, _usual_names()),
        )


class _Environment(EnvSettingsSource):
    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:  # not JSON: refused later, by the validation, which names the key
            return value


def _usual_names() -> dict[str, dict[str, str]]:
    names = {"mlflow": ("tracking_uri", "MLFLOW_TRACKING_URI"), "spark": ("remote", "SPARK_REMOTE")}
    return {
        section: {key: os.environ[variable]} for section, (key, variable) in names.items() if os.environ.get(variable)
    }


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


def config_folder() -> Path:
    """The folder of the configuration file in use, else the working folder: where data/ is kept."""
    path = config_path()
    return path.parent if path else Path.cwd()


def load_settings(config: Path | None = None) -> Settings:
    """The settings in force, with absolute paths.

    Raises:
        SettingsError: with a line for every unknown key, wrong value and scorer that is not there, all at once.
    """
    path = config_path(config)
    problems: list[str] = []
    try:
        settings = _read(path)
        entries = [(scorer.name, scorer.scorer) for scorer in settings.scorers]
    except tomllib.TOMLDecodeError as error:
        raise SettingsError([f"{path}: not valid TOML: {error}"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([f"{path}: cannot be read as UTF-8 text: {error}"]) from None
    except ValidationError as error:
        settings = None
        raw = tomllib.loads(path.read_text(encoding="utf-8")) if path else {}
        problems = [_line(path, raw, detail) for detail in error.errors()]
        scorers = raw.get("scorers")
        entries = [
            (entry.get("name"), entry.get("scorer"))
            for entry in (scorers if isinstance(scorers, list) else [])
            if isinstance(entry, dict)
        ]
    problems += [f"{path or 'environment'}: {problem}" for problem in _scorer_problems(entries)]
    if problems or settings is None:
        raise SettingsError(problems)
    return _absolute(settings, path.parent if path else Path.cwd())


def _read(path: Path | None) -> Settings:
    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=path)

    found = FromFile()
    # A class of this function's own could not be handed to another process.
    return Settings.model_construct(_fields_set=set(found.model_fields_set), **dict(found))


def _line(path: Path | None, raw: dict[str, Any], detail: Any) -> str:
    """One error of the validation as a line; `raw` is what the file holds, to tell it from the environment."""
    location, kind, context = detail["loc"], detail["type"], detail.get("ctx", {})
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    where = f"{path if _holds(raw, location[:-1] if kind == 'missing' else location) else 'environment'}: {key}"
    given = detail["input"]
    value = without_password(repr(given) if isinstance(given, str) else str(given))
    match kind:
        case "extra_forbidden":
            return f"{where}: unknown key; known here: {', '.join(_known_keys(location))}"
        case "missing":
            return f"{where}: missing; add it"
        case "value_error":
            return f"{where}: {context['error']}"
        case "string_pattern_mismatch":
            return f"{where} = {value}: must look like {_EXAMPLES[str(location[-1])]}"
        case "greater_than_equal" | "less_than_equal" | "greater_than":
            words = {"ge": "at least", "le": "at most", "gt": "more than"}
            bound = next(f"{words[name]} {limit}" for name, limit in context.items() if name in words)
            return f"{where} = {value}: must be {bound}"
        case "model_type":
            return f"{where} = {value}: must be a table, [[scorers]] or [section], with keys of its own"
        case "list_type":
            return f"{where} = {value}: must be a list, such as {_EXAMPLES[str(location[-1])]}"
        case _:
            return f"{where} = {value}: {detail['msg'][0].lower()}{detail['msg'][1:]}"


def _holds(raw: Any, location: tuple[str | int, ...]) -> bool:
    for part in location:
        if isinstance(part, str) and isinstance(raw, dict):  # sections are found whatever their case
            raw = {key.lower(): value for key, value in raw.items()}
            part = part.lower()
        try:
            raw = raw[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True


_EXAMPLES = {
    "name": "my_scorer (letters, digits and _)",
    "scorer": "package.module:attribute",
    "builtin": "Safety",
    "model": "openai:/gpt-4.1-mini",
    "pass_if": ">= 0.5",
    "remote": "sc://host:15002",
    "experiments": '["my-agent"]',
    "compare_with": '["thumbs_up"]',
    "scorers": "a [[scorers]] table for each",
}


def _known_keys(location: tuple[str | int, ...]) -> list[str]:
    model: type[BaseModel] = Settings
    for part in location[:-1]:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            model = ScorerSettings if part == "scorers" else annotation  # type: ignore[assignment]
    return list(model.model_fields)


def _scorer_problems(entries: list[tuple[Any, Any]]) -> list[str]:
    """What is wrong with the scorers (name, reference) beyond their types; importing them would take seconds."""
    names = [name for name, _ in entries if isinstance(name, str)]
    problems = [
        f"scorers: name {name!r} is used {names.count(name)} times; give each scorer its own name"
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    for index, (name, reference) in enumerate(entries):
        is_reference = isinstance(reference, str) and re.search(SCORER_REFERENCE, reference)
        reason = _missing_reference(reference) if is_reference else None
        if reason:
            problems.append(f"scorers[{index}].scorer = {reference!r} (scorer {name!r}): {reason}")
    return problems


def _missing_reference(reference: str) -> str | None:
    module, attribute = reference.split(":", 1)
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    except Exception as error:  # noqa: BLE001 - finding a module runs its packages, which may raise anything
        return f"importing the package of {module!r} failed: {type(error).__name__}: {error}"
    if spec is None:
        return f"no module named {module!r}; check the spelling, or install it where the pipeline runs"
    source = (
        Path(spec.origin).read_text(encoding="utf-8", errors="replace")
        if spec.origin and spec.origin.endswith(".py")
        else ""
    )
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
    return location if "://" in location else str(base / location)


def without_password(uri: str) -> str:
    """`uri` fit for a message: user and password of its authority, and secrets among its parameters, become ***."""
    # Up to the last @: a password that was not percent-encoded may hold any character of its own.
    uri = re.sub(r"://\S*@", "://***@", uri)
    return re.sub(r"(?i)([?&;][\w-]*(?:password|passwd|pwd|secret|token|key)=)[^&;\s'\"]*", r"\1***", uri)
