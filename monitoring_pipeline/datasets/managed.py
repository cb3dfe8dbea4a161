"""Adds records to MLflow datasets, found by name or created."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow.utils.uri import is_databricks_uri

from monitoring_pipeline.datasets.records import Record
from monitoring_pipeline.datasets.schema import ready_for_evaluate
from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.resources.tombstones import trace_digest
from monitoring_pipeline.settings import in_catalog

if TYPE_CHECKING:
    from mlflow.genai.datasets import EvaluationDataset

    from monitoring_pipeline.resources.tracking import TrackingResource

TAG_CHARACTERS = 500  # metadata becomes tags, which an evaluation sets on its traces
SOURCE_ID_CHARACTERS = 36  # the width of MLflow's column


@dataclass(frozen=True)
class Merged:
    """The number of records added to the MLflow dataset, and its new total."""

    dataset_id: str
    name: str
    added: int
    records: int


def merge_into_mlflow(tracking: TrackingResource, name: str, records: Iterable[Record]) -> Merged:
    """Add the records with new inputs to the MLflow dataset with that name; creates it if missing.

    MLflow identifies records by their inputs alone. Existing records stay unchanged, because people correct their
    outputs and expectations there. Metadata becomes tags, as text, and source_trace becomes the source. On Databricks
    the name is a Unity Catalog table, catalog.schema.table, and records have no outputs.

    Raises:
        TrackingError: the store cannot be used or rejects a record.
        MonitoringError: several datasets have the name, it contains quotation marks or a backslash, on Databricks it is
            not a table, or a Databricks request failed.
    """
    if set(name) & set("'\"\\"):
        raise MonitoringError(
            f"dataset name {name!r}: a name must not contain quotation marks or a backslash; choose another"
        )
    is_databricks = is_databricks_uri(tracking.tracking_uri)
    if is_databricks and not (in_catalog(name) and name.count(".") == 2):
        raise MonitoringError(
            f"dataset name {name!r}: on Databricks the name must be a table, such as catalog.schema.{name}"
        )
    experiment_ids = list(tracking.experiment_names())
    with _at(tracking):
        found = _at_databricks(name) if is_databricks else _named(name)
    if len(found) > 1:
        ids = ", ".join(dataset.dataset_id for dataset in found)
        raise MonitoringError(f"more than one MLflow dataset is named {name!r} ({ids}); delete or rename all but one")
    with _at(tracking):
        from mlflow.genai.datasets import create_dataset

        dataset = found[0] if found else create_dataset(name=name, experiment_id=experiment_ids)
        existing = {_identity(row["inputs"]) for row in dataset.to_df().to_dict("records")}
        new: dict[str, Record] = {}
        for record in records:
            identity = _identity(record["inputs"])
            if identity not in existing:
                new.setdefault(identity, _mlflow_record(record, is_databricks))
        if new:
            dataset.merge_records(list(new.values()))
        return Merged(dataset.dataset_id, name, len(new), len(existing) + len(new))


def forget_in_mlflow(tracking: TrackingResource, name: str, digests: Collection[str]) -> int:
    """Delete the records of deleted traces from the MLflow datasets with that name; returns how many.

    `digests` are digests of trace ids, as in the table deleted_traces. A record is known by its tag source_trace.

    Raises:
        TrackingError: the store cannot be used or rejects the request.
    """
    with _at(tracking):
        deleted = 0
        for dataset in _at_databricks(name) if is_databricks_uri(tracking.tracking_uri) else _named(name):
            rows = dataset.to_df().to_dict("records")
            ids = [row["dataset_record_id"] for row in rows if trace_digest(_source_trace(row)) in digests]
            if ids:
                dataset.delete_records(ids)
            deleted += len(ids)
        return deleted


def _source_trace(row: dict[str, Any]) -> str:
    tags = row.get("tags")
    return str(tags.get("source_trace", "")) if isinstance(tags, dict) else ""


@contextmanager
def _at(tracking: TrackingResource) -> Iterator[None]:
    """Make MLflow's dataset functions, which take no client, use the store of `tracking` within the block."""
    from monitoring_pipeline.databricks.agents import at_databricks
    from monitoring_pipeline.resources.tracking import global_tracking_uri

    if is_databricks_uri(tracking.tracking_uri):
        with at_databricks():
            yield
    else:
        with tracking.calls(), global_tracking_uri(tracking.tracking_uri):
            yield


def _named(name: str) -> list[EvaluationDataset]:
    """The datasets with that name; MLflow allows several, but then its get_dataset fails."""
    from mlflow.genai.datasets import search_datasets

    return search_datasets(filter_string=f"name = '{name}'")


def _at_databricks(name: str) -> list[EvaluationDataset]:
    """The dataset in the table with that name, if it exists."""
    from databricks.sdk.errors import NotFound
    from mlflow.genai.datasets import get_dataset

    try:
        return [get_dataset(name=name)]
    except NotFound:
        return []


def _identity(inputs: Any) -> str:
    """The text by which MLflow identifies records."""
    return json.dumps(inputs, sort_keys=True)


def _mlflow_record(record: Record, is_databricks: bool) -> Record:
    metadata = record.get("metadata") or {}
    left_out = ("metadata", "outputs") if is_databricks else ("metadata",)
    kept = {part: value for part, value in ready_for_evaluate(record).items() if part not in left_out}
    kept["tags"] = {name: _text(value) for name, value in metadata.items() if value is not None}
    trace_id = metadata.get("source_trace")
    if trace_id and is_databricks:
        kept["source"] = {"trace": {"trace_id": trace_id}}
    elif trace_id and len(trace_id) <= SOURCE_ID_CHARACTERS:
        session = {"session_id": metadata["session_id"]} if metadata.get("session_id") else {}
        kept["source"] = {"source_type": "TRACE", "source_data": {"trace_id": trace_id, **session}}
    return kept


def _text(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value))[:TAG_CHARACTERS]
