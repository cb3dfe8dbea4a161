"""The hours and days of a window that a run of the whole chain would change; a command leaves out all others.

An hour is left out if a run computed all of its tables with today's settings and scorers, nobody has run any of its
assets since, the source has what that run archived, and no trace waits for a scorer or result for MLflow.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TypeVar

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from monitoring_pipeline import __version__
from monitoring_pipeline.archive.account import accounted, due_hours, lacking
from monitoring_pipeline.databricks.managed import is_managed
from monitoring_pipeline.keys import DAILY_REPORT, INPUTS_TAG, MONITORING
from monitoring_pipeline.orchestration.partitions import days_of, hours_of
from monitoring_pipeline.reports.files import HTML
from monitoring_pipeline.resources.build import build_resources
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.scoring.registry import ConfiguredScorer, load_scorers
from monitoring_pipeline.scoring.states import ScorerLog, effective
from monitoring_pipeline.scoring.write_back import unsent
from monitoring_pipeline.settings import Settings
from monitoring_pipeline.sources.opening import open_source
from monitoring_pipeline.tables import AGENT_TRACES, HOURLY_PERFORMANCE, SCORER_COVERAGE, TRACE_PERFORMANCE
from monitoring_pipeline.windows import HOUR, Window

# Addresses: a run finds out what is at another one.
ELSEWHERE = {"mlflow": True, "lake": True, "reports": {"location"}}
WAITING = ("pending", "over_budget", "stale")  # of the ledger: traces that a run may score
Key = TypeVar("Key", bound=Hashable)
LATEST_RUNS = 300  # that are looked through; an hour that an older run computed is run again


@dataclass(frozen=True)
class Work:
    """Hours to run the chain for, as windows in order; days to write reports of, without a gap; tags of these runs."""

    hours: list[Window]
    days: list[date]
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def hour_count(self) -> int:
        return sum(1 for window in self.hours for _ in window.hours())


def _inputs(settings: Settings, scorers: Sequence[ConfiguredScorer]) -> str:
    """A hash of what decides the results beside the traces: this package, the settings, and the scorers in effect."""
    deciding = [
        __version__,
        settings.model_dump(mode="json", exclude=ELSEWHERE),
        [(scorer.name, scorer.digest, scorer.sample_rate, scorer.filter, scorer.active) for scorer in scorers],
    ]
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]


def work_left(settings: Settings, window: Window, instance: dg.DagsterInstance) -> Work:
    """The work of `window` that is not done, with the tags by which the next command finds it done.

    A report is due if an hour of its day, or an earlier day of the window, has changed since: it compares days.

    Raises:
        SettingsError: a scorer cannot be loaded.
        TrackingError, LakeError: source or lake cannot be read.
    """
    scorers = effective(load_scorers(settings.scorers), ScorerLog.of(settings))
    if any(map(is_managed, scorers)):  # Databricks adds results at any time
        return Work([window], window.days())
    names, tags = settings.dagster.names, {INPUTS_TAG: _inputs(settings, scorers)}
    runs = [
        record
        for record in instance.get_run_records(limit=LATEST_RUNS)
        if names.owns(record.dagster_run.job_name, record.dagster_run.asset_selection)
    ]
    computed = _current(runs, names.definition(MONITORING), tags, hours_of) & {*window.hours()}
    if computed:
        resources = build_resources(settings)
        lake, tracking = resources["lake"], resources["tracking"]
        computed -= _changed_at_source(settings, lake, tracking, window) | _incomplete(lake, scorers, window)
        if settings.scoring.write_back:
            computed -= {*unsent(lake, [*scorers], window)["trace_hour"].to_pylist()}
    hours = [hour for hour in window.hours() if hour not in computed]
    reported = _current(runs, names.definition(DAILY_REPORT), tags, days_of) - {hour.date() for hour in hours}
    folder = Path(settings.reports.location)
    days = window.days()
    due = [day for day in days if day not in reported or not (folder / f"{day}" / HTML).is_file()]
    return Work(_joined(hours), [day for day in days if due and day >= due[0]], tags)


def _current(
    runs: Sequence[dg.RunRecord], job: str, tags: Mapping[str, str], keys_of: Callable[[dg.DagsterRun], Iterable[Key]]
) -> set[Key]:
    """The hours or days of which a run of `job` with `tags` computed everything, and no other run has ended since.

    `keys_of` returns those that a run is for.
    """
    begun: dict[Key, float] = {}
    ended: defaultdict[Key, list[float]] = defaultdict(list)
    for record in runs:  # the latest first
        run = record.dagster_run
        is_whole = run.is_success and run.job_name == job and tags.items() <= run.tags.items()
        for key in keys_of(run):
            if is_whole and record.start_time is not None:
                begun[key] = max(record.start_time, begun.get(key, 0.0))
            else:
                ended[key].append(record.end_time or math.inf)
    return {key for key, start in begun.items() if all(end <= start for end in ended[key])}


def _changed_at_source(
    settings: Settings, lake: LakeResource, tracking: TrackingResource, window: Window
) -> set[datetime]:
    """The hours whose traces at the source are not those of the archive."""
    with open_source(settings.archive, tracking, lake.spark) as traces:
        counts = traces.counts(window)
    due = due_hours(counts, accounted(lake, window), datetime.now(UTC))
    return {*due, *lacking(lake, window, counts)}


def _incomplete(lake: LakeResource, scorers: Sequence[ConfiguredScorer], window: Window) -> set[datetime]:
    """The hours without the figures or the ledger of all their archived traces, or with a trace that is still due."""
    archived = _by_hour(lake.read_columns(AGENT_TRACES, window, "trace_hour"))
    measured = _by_hour(lake.read_columns(TRACE_PERFORMANCE, window, "trace_hour"))
    figures = lake.read_columns(HOURLY_PERFORMANCE, window, "hour", "trace_name", "trace_count")
    counted = _by_hour(figures.filter(pc.is_null(figures["trace_name"])), "trace_count")
    found = _differing(archived, measured) | _differing(archived, counted)
    ledger = lake.read_columns(SCORER_COVERAGE, window, "hour", "scorer", "scorer_digest", "archived", *WAITING)
    for scorer in scorers:
        is_current = (pc.field("scorer") == scorer.name) & (pc.field("scorer_digest") == scorer.digest)
        lines = ledger.filter(is_current)
        found |= _differing(archived, _by_hour(lines, "archived"))
        if scorer.active:
            found |= {hour for name in WAITING for hour, number in _by_hour(lines, name).items() if number}
    return found


def _by_hour(rows: pa.Table, summed: str | None = None) -> dict[datetime, int]:
    """The number of rows of each hour, the first column; or the sum of a column."""
    hour = rows.column_names[0]
    column, how = (summed, "sum") if summed else (hour, "count")
    figures = rows.group_by(hour).aggregate([(column, how)])
    return dict(zip(figures[hour].to_pylist(), figures[f"{column}_{how}"].to_pylist(), strict=True))


def _differing(one: dict[datetime, int], other: dict[datetime, int]) -> set[datetime]:
    return {hour for hour in one.keys() | other.keys() if one.get(hour) != other.get(hour)}


def _joined(hours: Iterable[datetime]) -> list[Window]:
    """Consecutive hours as windows."""
    found: list[Window] = []
    for hour in hours:
        start = found.pop().start if found and found[-1].end == hour else hour
        found.append(Window(start, hour + HOUR))
    return found
