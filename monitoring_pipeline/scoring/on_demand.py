"""Scorers run on demand on chosen traces: all of them, apart from samples, budgets and ledgers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from mlflow.entities import Trace

from monitoring_pipeline.analysis.verdicts import passes
from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.scoring.budgets import Purse
from monitoring_pipeline.scoring.limits import Budget
from monitoring_pipeline.scoring.metering import meter_of
from monitoring_pipeline.scoring.pool import run_all
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.runner import PendingTrace
from monitoring_pipeline.tables import AGENT_TRACES
from monitoring_pipeline.traces.filters import matches
from monitoring_pipeline.windows import Window, floor_hour, from_milliseconds

COLUMNS = [
    "trace_id",
    "scorer",
    "scorer_digest",
    "value",
    "score",
    "rationale",
    "error_code",
    "error_message",
    "source_type",
    "assessed_at",
    "duration_ms",
    "input_tokens",
    "output_tokens",
    "cost_usd",
    "session_id",
]


@dataclass(frozen=True)
class Outcome:
    """What a scorer made of the traces: `n` scores, their mean, the share that passes, and how many results are errors.

    `mean` and `pass_rate` are None without a score; `pass_rate` also where the scorer has no `pass_if` and its scores
    are not all 0 or 1.
    """

    scorer: str
    n: int
    mean: float | None
    pass_rate: float | None
    errors: int
    cost_usd: float | None


def assess_traces(lake: LakeResource, scorers: Sequence[ConfiguredScorer], traces: Iterable[Trace]) -> pd.DataFrame:
    """Run the scorers on all of `traces`, each trace once, within the scorers' limits; nothing is written.

    Returns COLUMNS, a row for each trace (or session, by its first trace) and scorer that has something to say of it.
    """
    found = list({trace.info.trace_id: trace for trace in traces}.values())
    rows: list[dict[str, Any]] = []
    for scorer in scorers:
        unbounded = replace(scorer, budget=Budget(), sample_rate=1.0)
        meter = meter_of(lake.location, scorer.name, scorer.limits)
        pending = _sessions(found) if scorer.session_idle is not None else map(_pending, found)
        results = run_all(unbounded, pending, "", meter, Purse(lake, unbounded))
        rows += [row for row, applies in results if applies]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.sort_values(["trace_id", "scorer"], ignore_index=True)


def outcomes(assessed: pd.DataFrame, scorers: Sequence[ConfiguredScorer]) -> list[Outcome]:
    """The figures of each scorer over what `assess_traces` returned."""
    return [_outcome(assessed[assessed["scorer"] == scorer.name], scorer) for scorer in scorers]


def archived_traces(
    lake: LakeResource, window: Window | None, filter: str | None, trace_ids: Sequence[str] | None
) -> list[Trace]:
    """The archived traces of `window` (all without one) that pass the MLflow `filter` and are among `trace_ids`.

    Raises:
        MonitoringError: a trace of `trace_ids` is not in the archive, or not in the window, or does not pass.
    """
    from pyspark.sql import functions as F

    rows = lake.read(AGENT_TRACES, window).select("trace_id", "trace_json", matches(filter).alias("passes"))
    if trace_ids is not None:
        rows = rows.where(F.col("trace_id").isin(*trace_ids))
    found = {row["trace_id"]: row["trace_json"] for row in rows.where("passes").toLocalIterator()}
    if missing := sorted(set(trace_ids or ()) - found.keys()):
        where = f"in the archive of {window}" if window else "in the archive"
        raise MonitoringError(
            f"no trace {', '.join(missing[:5])} {where}; archive its hour first, or give the trace itself"
        )
    return [Trace.from_json(text) for text in found.values()]


def _outcome(rows: pd.DataFrame, scorer: ConfiguredScorer) -> Outcome:
    scores = rows["score"].dropna().astype(float)
    rate = None
    if len(scores) and (scorer.pass_if or scores.isin([0, 1]).all()):
        rate = float(passes(scores, scorer.pass_if).mean())  # type: ignore[arg-type]
    costs = rows["cost_usd"].dropna()
    return Outcome(
        scorer.name,
        n=len(scores),
        mean=float(scores.mean()) if len(scores) else None,
        pass_rate=rate,
        errors=int(rows["error_code"].notna().sum()),
        cost_usd=float(costs.sum()) if len(costs) else None,
    )


def _pending(trace: Trace) -> PendingTrace:
    return _pending_of([trace], None)


def _pending_of(traces: Sequence[Trace], session_id: str | None) -> PendingTrace:
    info = traces[0].info
    hour = floor_hour(from_milliseconds(info.request_time))
    return PendingTrace(info.trace_id, hour, info.experiment_id, tuple(trace.to_json() for trace in traces), session_id)


def _sessions(traces: Iterable[Trace]) -> list[PendingTrace]:
    """The sessions of `traces`, as far as these hold them; traces without one are left out."""
    members: defaultdict[tuple[str | None, str], list[Trace]] = defaultdict(list)
    for trace in sorted(traces, key=lambda trace: (trace.info.request_time, trace.info.trace_id)):
        session_id = (trace.info.trace_metadata or {}).get("mlflow.trace.session")
        if session_id:
            members[trace.info.experiment_id, session_id].append(trace)
    return [_pending_of(found, session_id) for (_, session_id), found in members.items()]
