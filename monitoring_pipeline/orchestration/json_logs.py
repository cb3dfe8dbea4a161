"""Log lines in JSON, for systems that collect logs: one object for each message of a run.

A `dagster.yaml` names this formatter (docs/observing.md): Dagster takes the handlers of all its runs from there.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from monitoring_pipeline.keys import PARTITION, RANGE_END, RANGE_START
from monitoring_pipeline.text import without_secrets

SCORERS = "assessments__"


class JsonLines(logging.Formatter):
    """Formats a message of Dagster as a line of JSON, with its run, job, step, scorer and partition."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; fields without a value are left out, and secrets of the environment are hidden."""
        meta: dict[str, Any] = getattr(record, "dagster_meta", {})
        tags, step = meta.get("job_tags") or {}, meta.get("step_key")
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "message": meta.get("orig_message") or record.getMessage(),
            "error": _error(meta.get("dagster_event"), record),
            "run_id": meta.get("run_id"),
            "job": meta.get("job_name"),
            "step": step,
            "scorer": step.rpartition(SCORERS)[2] if step and SCORERS in step else None,
            "partition": tags.get(PARTITION) or _range(tags),
        }
        return without_secrets(json.dumps({name: value for name, value in fields.items() if value is not None}))


def _error(event: dg.DagsterEvent | None, record: logging.LogRecord) -> str | None:
    """The error of a step or run that failed, with its causes, without their tracebacks."""
    error = getattr(event.event_specific_data, "error", None) if event else None
    if error is None:
        return repr(record.exc_info[1]) if record.exc_info and record.exc_info[1] else None
    messages = []
    while error is not None:
        messages.append(error.message.strip())
        error = error.cause
    return " <- ".join(messages)


def _range(tags: dict[str, str]) -> str | None:
    return f"{tags[RANGE_START]}...{tags[RANGE_END]}" if RANGE_START in tags else None
