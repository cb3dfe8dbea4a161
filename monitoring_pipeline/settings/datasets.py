"""`[[datasets]]`: what is made of the archive for evaluation, each day."""

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
    """Which traces, of those that are finished, make the records of a dataset.

    By kind: `traces`, all; `expectations`, those with expectations logged on them, which become the record's own;
    `tagged`, those with a tag; `failures`, those that do not pass a scorer; `regression`, those that score below a
    threshold; `diverse`, a sample over status, latency and the order of tools.
    """

    kind: Kind = Field(description="which traces")
    filter: str | None = Field(default=None, description="MLflow trace filter")
    with_outputs: bool = Field(default=True, description="whether records have outputs; without, to be run again")
    max_records: int | None = Field(default=None, ge=1, description="of more, the newest are taken; none: all")
    scorer: str | None = Field(
        default=None, min_length=1, description="of failures and regression: name of a scorer, or of feedback"
    )
    threshold: float | None = Field(
        default=None, allow_inf_nan=False, description="of regression: scores below it are taken; default 0.5"
    )
    tag: str | None = Field(default=None, min_length=1, description="of tagged: key of the tag")
    tag_value: str | None = Field(default=None, description="of tagged: its value; none: any")
    sample_size: int | None = Field(default=None, ge=1, description="of diverse: records at most; default 50")
    seed: int | None = Field(default=None, description="of diverse: another one draws another sample; default 0")

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        needed = NEEDS.get(self.kind)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"kind = {self.kind!r} needs {needed}; add it")
        for name, kinds in KINDS_OF.items():
            if getattr(self, name) is not None and self.kind not in kinds:
                raise ValueError(f"{name} is not for kind = {self.kind!r}, only for {', '.join(kinds)}; take it out")
        return self


class DatasetSettings(Choice):
    """A dataset that is made by the day: of which traces, and where it goes."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$", description="what folders and commands call it")
    days: int = Field(default=1, ge=1, description="of traces that a day's dataset looks at, up to and with that day")
    formats: list[Format] = Field(default=["jsonl"], min_length=1, description="of the files: jsonl, parquet or both")
    location: Location = Field(default="data/datasets", description="folder of the files")
    mlflow: bool = Field(default=False, description="also add the records to the MLflow dataset of that name")
    mlflow_name: str | None = Field(
        default=None, min_length=1, description="another name of it, such as catalog.schema.table at Databricks"
    )

    @field_validator("location")
    @classmethod
    def _is_a_folder(cls, location: str) -> str:
        if "://" in location:
            raise ValueError(f"location = {location!r} must be a folder of this machine")
        return location

    @model_validator(mode="after")
    def _named_where_it_goes(self) -> Self:
        if self.mlflow_name and not self.mlflow:
            raise ValueError(f"mlflow_name = {self.mlflow_name!r} needs mlflow = true; add it")
        return self


def dataset_problems(datasets: Sequence[DatasetSettings]) -> list[str]:
    """What is wrong with the datasets together."""
    names = [entry.name for entry in datasets]
    return [
        f"datasets: name {name!r} is used {names.count(name)} times; give each dataset its own name"
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
