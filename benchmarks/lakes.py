"""Makes lakes of traces, column by column, because a row at a time would take longer than what is measured."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.tables import AGENT_TRACES, SPAN
from monitoring_pipeline.windows import Window

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY_US = 24 * 3600 * 10**6
HOUR_US = 3600 * 10**6
NAMES = ("support", "billing", "search", None)
ERROR_SHARE = 0.04
# Name, type, parent and the shares of the trace's duration at which a span starts and ends; siblings overlap.
STAGES: tuple[tuple[str, str, int | None, float, float], ...] = (
    ("agent", "AGENT", None, 0.0, 1.0),
    ("plan", "CHAT_MODEL", 0, 0.01, 0.2),
    ("retrieve", "RETRIEVER", 0, 0.2, 0.5),
    ("embed", "EMBEDDING", 2, 0.21, 0.3),
    ("search", "TOOL", 2, 0.28, 0.49),
    ("orders", "TOOL", 0, 0.3, 0.6),
    ("answer", "CHAT_MODEL", 0, 0.6, 0.97),
    ("format", "PARSER", 6, 0.9, 0.99),
)
WORDS = [
    "order",
    "refund",
    "invoice",
    "parcel",
    "address",
    "voucher",
    "delivery",
    "late",
    "customer",
    "please",
    "status",
]


def fill_lake(lake: LakeResource, traces: int, days: int = 7) -> Window:
    """Archive `traces` traces of eight spans each, spread evenly over `days` days; returns their window."""
    random = np.random.default_rng(7)
    for day in range(days):
        count = traces * (day + 1) // days - traces * day // days
        lake.insert(AGENT_TRACES, day_of_traces(random, count, START + timedelta(days=day), f"{day:04x}"))
    return Window(START, START + timedelta(days=days))


def day_of_traces(random: np.random.Generator, count: int, start: datetime, prefix: str) -> pa.Table:
    """Rows of `agent_traces` that start within the day after `start`; `prefix` makes their ids unique."""
    start_us = round(start.timestamp() * 10**6) + np.sort(random.integers(0, DAY_US, count))
    duration_us = (random.lognormal(7.2, 0.6, count) * 1000).astype(np.int64)
    is_error = random.random(count) < ERROR_SHARE
    status = np.where(is_error, "ERROR", "OK")
    tokens = random.integers(100, 4000, (2, count))
    names = pa.array(NAMES).take(pa.array(random.integers(0, len(NAMES), count)))
    ids = pa.array([f"tr-{prefix}{number:028x}" for number in range(count)])
    spans = _spans(random, ids, start_us, duration_us, status)
    columns: dict[str, Any] = {
        "trace_id": ids,
        "experiment_id": pa.array(random.choice(["1", "2"], count)),
        "trace_info": pa.StructArray.from_arrays(
            [ids, _times(start_us), pa.array(status)], fields=[*AGENT_TRACES.schema.field("trace_info").type]
        ),
        "spans": spans,
        "created_at": _times(start_us),
        "trace_hour": _times(start_us // HOUR_US * HOUR_US),
        "trace_name": names,
        "request": _texts(random, ids, 8),
        "response": _texts(random, ids, 30),
        "duration_ms": duration_us / 1000,
        "input_tokens": tokens[0],
        "output_tokens": tokens[1],
        "total_tokens": tokens.sum(axis=0),
        "cost_usd": tokens[0] * 0.15e-6 + tokens[1] * 0.6e-6,
        "trace_json": _texts(random, ids, 400),
        "content_digest": ids,
        "date": pa.array(np.full(count, start.date())),
    }
    return pa.table(
        [
            pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(count, f.type)
            for f in AGENT_TRACES.schema
        ],
        schema=AGENT_TRACES.schema,
    )


def _spans(random: np.random.Generator, trace_ids: pa.Array, start_us: Any, duration_us: Any, status: Any) -> pa.Array:
    """A list of spans for each trace, flat in memory: spans of one trace follow each other."""
    per_trace, traces = len(STAGES), len(start_us)
    names, types, parents, starts, ends = zip(*STAGES, strict=True)
    stages = pa.array(np.tile(np.arange(per_trace), traces))
    owners = pa.array(np.repeat(np.arange(traces), per_trace))
    owner_ids = trace_ids.take(owners)
    own_ids = pa.array([f"-{number}" for number in range(per_trace)]).take(stages)
    parent_ids = pa.array([None if parent is None else f"-{parent}" for parent in parents]).take(stages)
    noise = random.uniform(0.98, 1.02, (traces, per_trace))
    begun = (start_us[:, None] + duration_us[:, None] * np.array(starts) * noise).astype(np.int64).ravel()
    ended = (start_us[:, None] + duration_us[:, None] * np.array(ends) * noise).astype(np.int64).ravel()
    statuses = np.where(np.arange(per_trace) == 5, status[:, None], "OK").ravel()
    columns: dict[str, Any] = {
        "span_id": _joined(pc.utf8_slice_codeunits(owner_ids, 3), own_ids),
        "name": pa.array(names).take(stages),
        "span_type": pa.array(types).take(stages),
        "start_time": _times(begun),
        "end_time": _times(ended),
        "status": pa.array(statuses),
        "inputs": _texts(random, owner_ids, 20),
        "outputs": _texts(random, owner_ids, 40),
        "parent_id": _joined(pc.utf8_slice_codeunits(owner_ids, 3), parent_ids),
    }
    count = traces * per_trace
    flat = pa.StructArray.from_arrays([columns.get(f.name, pa.nulls(count, f.type)) for f in SPAN], fields=[*SPAN])
    return pa.ListArray.from_arrays(pa.array(np.arange(0, count + 1, per_trace, dtype=np.int32)), flat)


def _times(microseconds: Any) -> pa.Array:
    return pa.array(microseconds, pa.timestamp("us", tz="UTC"))


def _joined(*parts: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(*parts, "")


def _texts(random: np.random.Generator, ids: pa.Array, words: int) -> pa.Array:
    """A JSON text for each id, none like another, of that many words."""
    pool = pa.array([" ".join(random.choice(WORDS, words)) for _ in range(500)])
    return _joined(
        pa.repeat('{"id": "', len(ids)),
        ids,
        pa.repeat('", "text": "', len(ids)),
        pool.take(pa.array(random.integers(0, len(pool), len(ids)))),
        pa.repeat('"}', len(ids)),
    )
