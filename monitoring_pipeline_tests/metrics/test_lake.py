"""Metrics of the tables: what a monitoring system reads equals what the tables hold."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from monitoring_pipeline.metrics.lake import lake_metrics
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.rows import from_dicts
from monitoring_pipeline.scoring.limits import Budget
from monitoring_pipeline.scoring.registry import load_scorers
from monitoring_pipeline.scoring.run import score_window
from monitoring_pipeline.tables import ALERTS, ARCHIVED_HOURS, QUARANTINED_TRACES
from monitoring_pipeline.windows import HOUR
from monitoring_pipeline_tests.alerts.test_checking import fill, performance
from monitoring_pipeline_tests.made_project import PER_HOUR, WINDOW, MadeProject

NOW = WINDOW.end + timedelta(minutes=20)


def samples(lake: LakeResource, scorers: Any = (), now: datetime = NOW) -> dict[str, dict[str, float]]:
    """The samples of each metric, by their labels."""
    return {
        metric.name: {
            ",".join(f"{key}={value}" for key, value in labels.items()): value for labels, value in metric.samples
        }
        for metric in lake_metrics(lake, scorers, now)
    }


def alert(number: int, state: str) -> dict[str, Any]:
    opened = WINDOW.start + number * HOUR
    row = dict.fromkeys(ALERTS.schema.names[:-1])
    return {
        **row,
        "hour": opened,
        "opened_at": opened,
        "rule": "errors",
        "scope": "all",
        "severity": "critical",
        "state": state,
    }


def test_an_empty_lake_has_no_value_where_none_is_known(lake: LakeResource) -> None:
    found = samples(lake)
    assert found.pop("monitoring_quarantined_traces") == {"": 0}
    assert not any(found.values())


def test_lag_and_traffic_are_those_of_the_newest_hour(made: MadeProject) -> None:
    lake, hours = made.lake, [*WINDOW.hours()]
    lake.upsert(
        ARCHIVED_HOURS,
        from_dicts(
            ARCHIVED_HOURS, [{**dict.fromkeys(ARCHIVED_HOURS.schema.names[:-1]), "hour": hour} for hour in hours]
        ),
    )
    fill(lake, performance(hours[-2], 50, 1), performance(hours[-1], 100, 20, p95_ms=1500))
    found = samples(lake)
    assert found["monitoring_archive_lag_seconds"] == {"": 20 * 60}
    assert found["monitoring_latest_hour_start_seconds"] == {"": hours[-1].timestamp()}
    assert found["monitoring_latest_hour_traces"] == {"experiment_id=1": 100}
    assert found["monitoring_latest_hour_errors"] == {"experiment_id=1": 20}
    assert found["monitoring_latest_hour_duration_seconds"] == {"experiment_id=1,quantile=0.95": 1.5}


def test_the_ledger_and_the_budgets_are_those_of_the_current_digests(made: MadeProject) -> None:
    quality, latency = load_scorers(made.settings.scorers)
    limited = replace(latency, budget=Budget(max_traces_per_hour=15))
    for scorer in (quality, limited):
        score_window(made.lake, scorer, WINDOW, "run")
    found = samples(made.lake, [quality, limited], datetime.now(UTC))
    assert found["monitoring_scorer_hour_traces"] == {"scorer=stage_latency": 15}
    assert found["monitoring_scorer_budget_traces"] == {"scorer=stage_latency": 15}
    assert found["monitoring_scorer_spent_usd"] == {}
    ledger = samples(made.lake, [quality, limited])["monitoring_scorer_traces"]
    assert ledger["scorer=response_quality,state=scored"] == len([*WINDOW.hours()]) * PER_HOUR
    assert ledger["scorer=stage_latency,state=over_budget"] == len([*WINDOW.hours()]) * PER_HOUR - 15
    earlier = replace(quality, digest="0" * 16)
    assert samples(made.lake, [earlier])["monitoring_scorer_traces"]["scorer=response_quality,state=scored"] == 0


def test_quarantine_and_open_alerts_are_counted(made: MadeProject) -> None:
    unreadable = {"trace_id": "tr-x", "trace_hour": WINDOW.start, "reason": "no spans", "raw": "{}"}
    made.lake.upsert(QUARANTINED_TRACES, from_dicts(QUARANTINED_TRACES, [unreadable]))
    rows = [alert(0, "open"), alert(1, "open"), alert(2, "resolved")]
    made.lake.upsert(ALERTS, from_dicts(ALERTS, rows))
    found = samples(made.lake)
    assert found["monitoring_quarantined_traces"] == {"": 1}
    assert found["monitoring_open_alerts"] == {"rule=errors,severity=critical": 2}
