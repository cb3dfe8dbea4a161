"""`[[datasets]]`: evaluation datasets that are built from the archive each day."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from monitoring_pipeline.settings.base import Section
from monitoring_pipeline.settings.sections import Location

Kind = Literal["traces", "expectations", "tagged", "failures", "regression", "diverse"]
Format = Literal["jsonl", "parquet"]

KINDS_OF: dict[str, tuple[Kind, ...]] = {
    "scorer": ("failures", "regression"),
    "threshold": ("regression",),
    "tag": ("tagged",),
    "tag_value": ("tagged",),
    "sample_size": ("diverse",),
    "seed": ("diverse",),
    "max_records": ("traces", "expectations", "tagged", "failures", "regression"),
}
NEEDS: dict[Kind, str] = {"tagged": "tag", "failures": "scorer", "regression": "scorer"}


class Choice(Section):
    """The choice of finished traces that become the records of a dataset.

    Kinds: `traces` takes all; `expectations` those with logged expectations, which become the record's own; `tagged`
    those with a tag; `failures` those that do not pass a scorer; `regression` those that score below a threshold;
    `diverse` a sample across status, latency and the order of tools.
    """

    kind: Kind = Field(description="which traces become records")
    filter: str | None = Field(default=None, description="MLflow trace filter")
    with_outputs: bool = Field(
        default=True, description="whether records have outputs; without them, an evaluation runs the inputs again"
    )
    max_records: int | None = Field(
        default=None, ge=1, description="limit, which keeps the newest records; none: no limit"
    )
    scorer: str | None = Field(
        default=None, min_length=1, description="for failures and regression: name of a scorer or of feedback"
    )
    threshold: float | None = Field(
        default=None, allow_inf_nan=False, description="for regression: scores below it count; default 0.5"
    )
    tag: str | None = Field(default=None, min_length=1, description="for tagged: key of the tag")
    tag_value: str | None = Field(default=None, description="for tagged: value of the tag; none: any value")
    sample_size: int | None = Field(
        default=None, ge=1, description="for diverse: highest number of records; default 50"
    )
    seed: int | None = Field(default=None, description="for diverse: seed of the sample; default 0")

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        needed = NEEDS.get(self.kind)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"kind = {self.kind!r} needs {needed}; add it")
        for name, kinds in KINDS_OF.items():
            if getattr(self, name) is not None and self.kind not in kinds:
                raise ValueError(
                    f"{name} does not apply to kind = {self.kind!r}, only to {', '.join(kinds)}; remove it"
                )
        return self


class DatasetSettings(Choice):
    """A dataset that is built each day: its traces, and where it is written."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$", description="name in folders and commands")
    days: int = Field(default=1, ge=1, description="days of traces in each dataset, up to and including its own day")
    formats: list[Format] = Field(default=["jsonl"], min_length=1, description="file formats: jsonl, parquet or both")
    location: Location = Field(default="data/datasets", description="folder that holds a folder for each dataset")
    mlflow: bool = Field(default=False, description="also add the records to the MLflow dataset of the same name")
    mlflow_name: str | None = Field(
        default=None,
        min_length=1,
        description="another name for the MLflow dataset, such as catalog.schema.table on Databricks",
    )

    @field_validator("location")
    @classmethod
    def _is_a_folder(cls, location: str) -> str:
        if "://" in location:
            raise ValueError(f"location = {location!r} must be a folder on this machine")
        return location

    @model_validator(mode="after")
    def _mlflow_name_is_used(self) -> Self:
        if self.mlflow_name and not self.mlflow:
            raise ValueError(f"mlflow_name = {self.mlflow_name!r} needs mlflow = true; add it")
        return self


def dataset_problems(datasets: Sequence[DatasetSettings]) -> list[str]:
    """Problems across datasets, a line each."""
    names = [entry.name for entry in datasets]
    return [
        f"datasets: name {name!r} is used {names.count(name)} times; give each dataset its own name"
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
