"""Digests of the parts of a trace that scorers read, to tell whether a result still describes the trace."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import Column

SORTED = json.JSONEncoder(sort_keys=True)
SPANS = "spans"  # with the state, so that an end without a new span counts as well
ASSESSED_AT = "monitoring_pipeline.assessed_at"  # metadata of the feedback that the pipeline itself writes


def part_digests(info: Mapping[str, Any], data_json: str) -> dict[str, str]:
    """SHA-256 of spans, tags, feedback and expectations, in hexadecimal; without a part that the trace does not have.

    `info` has the form of MLflow's `TraceInfo.to_dict`. Tags of MLflow itself and feedback that the pipeline wrote are
    left out: they change without a change of the trace.
    """
    given = [
        {key: value for key, value in one.items() if key != "valid"}  # servers do not send it
        for one in info.get("assessments") or []
        if ASSESSED_AT not in (one.get("metadata") or {})
    ]
    parts = {
        "tags": {key: value for key, value in (info.get("tags") or {}).items() if not key.startswith("mlflow.")},
        "feedback": [one for one in given if "feedback" in one],
        "expectations": [one for one in given if "expectation" in one],
    }
    texts = {name: SORTED.encode(part) for name, part in parts.items() if part}
    # A server re-encodes the JSON of attributes with non-ASCII characters unescaped, which escapes them once here.
    spans = data_json.replace("\\\\u", "\\u")
    return {name: _digest(text) for name, text in {SPANS: f"{info['state']} {spans}", **texts}.items()}


def read_digest(reads: Collection[str]) -> Column:
    """The digest of the parts that a scorer reads, for rows of `agent_traces`: the spans and `reads`.

    Null for a trace that was archived without `part_digests`.
    """
    from pyspark.sql import functions as F

    digests = F.col("part_digests")
    others = [F.coalesce(digests[name], F.lit("")) for name in sorted(reads)]
    # With a separator and a name, so that the digests of other `reads` never coincide.
    named = [F.concat(F.lit(f" {name}:"), digest) for name, digest in zip(sorted(reads), others, strict=True)]
    return F.sha2(F.concat(digests[SPANS], *named), 256) if named else digests[SPANS]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
