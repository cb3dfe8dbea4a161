"""Rows for a lake, and a process that writes them, which tests kill or run several times at once.

`write` takes a method: insert, upsert, maintain, many (a line on stdout for each commit), stock (that many
rows) or change (one of those rows; prints its memory in MB).
"""

from __future__ import annotations

import random
import resource
from datetime import UTC, datetime

import pyarrow as pa

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.tables import AGENT_TRACES
from monitoring_pipeline.windows import HOUR

MIDNIGHT = datetime(2026, 1, 1, tzinfo=UTC)
TURNS = 3


def traces(*rows: tuple[str, int, str]) -> pa.Table:
    """Rows of agent_traces from (trace id, hours after MIDNIGHT, content)."""
    return pa.Table.from_pylist(
        [
            {
                "trace_id": trace_id,
                "created_at": MIDNIGHT,
                "trace_hour": MIDNIGHT + hour * HOUR,
                "trace_info": {"request_id": trace_id, "timestamp": MIDNIGHT, "status": "OK"},
                "spans": [{"name": "root", "span_type": "AGENT", "tags": [("tag", "value")]}],
                "tags": [("environment", "production")],
                "content_digest": content,
                "trace_json": content,
            }
            for trace_id, hour, content in rows
        ],
        schema=AGENT_TRACES.columns,
    )


def overlap(lake: LakeResource, method: str, first: int) -> None:
    """Write 20 ids, from `first` on, in each of several rounds, over three days."""
    for turn in range(TURNS):
        if method == "maintain":
            lake.maintain(AGENT_TRACES)
            continue
        rows = traces(*((f"t{number}", number % 3 * 24, f"{first}.{turn}") for number in range(first, first + 20)))
        getattr(lake, method)(AGENT_TRACES, rows)


def many(lake: LakeResource) -> None:
    """A commit for each of 40 ids."""
    for number in range(40):
        lake.upsert(AGENT_TRACES, traces((f"t{number}", number % 3 * 12, "many")))
        print(number, flush=True)


def stock(lake: LakeResource, rows: int) -> None:
    """Rows of an hour, 20 kB each, in several commits."""
    rng = random.Random(1)
    for start in range(0, rows, 500):
        portion = traces(*((f"t{number}", 0, "x") for number in range(start, start + 500)))
        texts = pa.array([rng.randbytes(10_000).hex() for _ in range(500)])
        lake.insert(AGENT_TRACES, portion.set_column(portion.column_names.index("trace_json"), "trace_json", texts))


def change(lake: LakeResource) -> None:
    """Change one row."""
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lake.upsert(AGENT_TRACES, traces(("t0", 0, "changed")))
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1024)


def write(method: str, location: str, number: int) -> None:
    """Write by the method to the lake at `location`."""
    lake = LakeResource(location=location, spark=SparkResource())
    match method:
        case "many":
            many(lake)
        case "stock":
            stock(lake, number)
        case "change":
            change(lake)
        case _:
            overlap(lake, method, number)
