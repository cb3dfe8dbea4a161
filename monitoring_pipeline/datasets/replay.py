"""Adds the source traces to records, so that an evaluation scores the original execution."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from monitoring_pipeline.datasets.records import Record
from monitoring_pipeline.datasets.schema import ready_for_evaluate
from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.scoring.on_demand import archived_traces
from monitoring_pipeline.windows import HOUR, Window, parse_utc

if TYPE_CHECKING:
    from mlflow.genai.datasets import EvaluationDataset

    from monitoring_pipeline.resources.lake import LakeResource


def with_traces(lake: LakeResource, records: Iterable[Record] | EvaluationDataset) -> list[Record]:
    """Return the records, or the records of an MLflow dataset, with inputs, expectations and their archived `trace`.

    For a record with outputs, `mlflow.genai.evaluate` creates a bare trace without tool calls; for records with a
    trace, it uses that trace and its outputs.

    Raises:
        MonitoringError: a record does not name its trace, or the trace is not in the archive.
    """
    found = [_with_lineage(record) for record in _records_of(records)]
    hours = []
    for number, (_, lineage) in enumerate(found):
        if not lineage.get("source_trace") or not lineage.get("trace_hour"):
            raise MonitoringError(
                f"record {number} does not name its trace: its metadata lacks source_trace or trace_hour; "
                "pass a predict_fn to evaluate instead"
            )
        hours.append(parse_utc(lineage["trace_hour"]))
    if not found:
        return []
    ids = [lineage["source_trace"] for _, lineage in found]
    window = Window(min(hours), max(hours) + HOUR)
    traces = {trace.info.trace_id: trace for trace in archived_traces(lake, window, None, ids)}
    return [{**record, "trace": traces[trace_id]} for (record, _), trace_id in zip(found, ids, strict=True)]


def _records_of(records: Any) -> list[dict[str, Any]]:
    return records.to_df().to_dict("records") if hasattr(records, "to_df") else list(records)


def _with_lineage(record: Record) -> tuple[Record, dict[str, Any]]:
    """A record of inputs and expectations, and its metadata, which MLflow datasets store as tags."""
    expectations = record.get("expectations")
    kept = {"inputs": record["inputs"], "expectations": expectations if isinstance(expectations, dict) else {}}
    return ready_for_evaluate(kept), record.get("metadata") or record.get("tags") or {}
