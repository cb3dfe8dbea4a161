"""Traffic as agents make it, from archive to reports: odd claims, late spans, late ends, and days of one kind."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.entities import Feedback, Span, Trace, TraceState
from mlflow.genai.scorers import scorer as as_scorer

from monitoring_pipeline import api
from monitoring_pipeline.archive.merging import archive
from monitoring_pipeline.derivations import (
    ERRORS_OF_TRACES,
    PERFORMANCE_OF_HOURS,
    PERFORMANCE_OF_TRACES,
    PROFILE_OF_SPANS,
    USAGE_OF_MODELS,
    derive_agreement,
    derive_coverage,
    derive_quality,
)
from monitoring_pipeline.reports.files import write_report
from monitoring_pipeline.reports.period import Period
from monitoring_pipeline.reports.reading import report_data
from monitoring_pipeline.reports.report import Report
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.scoring.coverage import ledger_problems
from monitoring_pipeline.scoring.registry import ConfiguredScorer, load_scorers
from monitoring_pipeline.scoring.run import score_window
from monitoring_pipeline.settings import ArchiveSettings, LakeSettings, MlflowSettings, Settings
from monitoring_pipeline.tables import AGENT_TRACES, ASSESSMENTS, HOURLY_PERFORMANCE, SUPERSEDED_ASSESSMENTS
from monitoring_pipeline.traces.claims import LONGEST_MS
from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests.made_project import scorer
from monitoring_pipeline_tests.scoring.made import archive_traces, made_trace
from monitoring_pipeline_tests.sources.stores import START, span_json, trace_id

HOUR = Window(START, START + timedelta(hours=1))
DERIVATIONS = (PERFORMANCE_OF_TRACES, ERRORS_OF_TRACES, PERFORMANCE_OF_HOURS, PROFILE_OF_SPANS, USAGE_OF_MODELS)


# Odd claims and changes


@dataclass
class Version:
    """What a trace says of itself at one time."""

    answer: str
    ended: bool
    failed: bool
    duration_ms: Any
    late_spans: int
    feedback: Any
    tag: str | None

    @property
    def state(self) -> TraceState:
        return TraceState.IN_PROGRESS if not self.ended else TraceState.ERROR if self.failed else TraceState.OK

    @property
    def content(self) -> tuple[Any, ...]:
        """What a scorer of spans reads."""
        return self.answer, self.state, self.late_spans

    @property
    def sound_ms(self) -> float | None:
        """The duration, if it can be right."""
        value = self.duration_ms
        is_number = isinstance(value, int | float) and math.isfinite(value)
        return float(value) if is_number and 0 <= value <= LONGEST_MS else None


ODD = st.sampled_from([math.nan, math.inf, -math.inf, -1, -1772445600000, 10**30])
VERSIONS = st.builds(
    Version,
    answer=st.sampled_from(["yes", "no", "\ud800 \x00 perhaps"]),
    ended=st.booleans(),
    failed=st.booleans(),
    duration_ms=st.none() | st.integers(0, 100_000) | ODD,
    late_spans=st.integers(0, 2),
    feedback=st.none() | st.just(True) | st.sampled_from([math.nan, math.inf]),
    tag=st.none() | st.sampled_from(["a", "b"]),
)
ROUNDS = st.lists(st.dictionaries(st.integers(1, 6), VERSIONS, max_size=6), min_size=1, max_size=3)


def as_trace(number: int, version: Version) -> Trace:
    trace = made_trace(number, answer=version.answer, state=version.state)
    trace.info.execution_duration = version.duration_ms
    trace.info.tags = {"env": version.tag} if version.tag else {}
    if version.feedback is not None:
        trace.info.assessments = [Feedback(name="nice", value=version.feedback, trace_id=trace_id(number))]
    for index in range(version.late_spans):
        trace.data.spans.append(Span.from_dict(span_json(number, index + 2, parent=1, started=START)))
    return trace


@dataclass
class World:
    """The lake, and what it must have: the latest version of each trace, and the content that was scored last."""

    lake: LakeResource
    latest: dict[int, Version] = field(default_factory=dict)
    scored: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        calls = self.calls

        @as_scorer(timeout=0)
        def seeing(trace: Trace) -> bool:
            calls.append(trace.info.trace_id)
            return len(trace.data.spans) > 1

        self.scorer = ConfiguredScorer("seeing", seeing, "d" * 16, 1.0, None)

    def work(self, changes: dict[int, Version]) -> None:
        """Archive, measure and score the traces of one round."""
        self.latest |= changes
        archive(self.lake, HOUR, [[as_trace(*item) for item in changes.items()]], {})
        for derivation in DERIVATIONS:
            derivation.derive(self.lake, HOUR)
        self.calls.clear()
        score_window(self.lake, self.scorer, HOUR, "run")

    def expected_calls(self) -> list[str]:
        """The traces that have ended and whose content the scorer has not seen."""
        ended = {number: version.content for number, version in self.latest.items() if version.ended}
        new = {number: content for number, content in ended.items() if self.scored.get(number) != content}
        # A trace that changed while it has not ended again keeps its result until it has.
        self.scored |= new
        return sorted(map(trace_id, new))


@pytest.fixture(scope="module")
def lakes(tmp_path_factory: pytest.TempPathFactory, spark: SparkResource) -> Iterator[LakeResource]:
    """Empty lakes without end."""
    folder = tmp_path_factory.mktemp("lakes")
    return (LakeResource(location=str(folder / str(number)), spark=spark) for number in count())


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds=ROUNDS)
def test_odd_claims_and_late_changes_leave_every_number_right(
    rounds: list[dict[int, Version]], lakes: Iterator[LakeResource]
) -> None:
    world = World(next(lakes))
    results = 0
    for changes in rounds:
        world.work(changes)
        expected = world.expected_calls()
        assert sorted(world.calls) == expected
        results += len(expected)
        archived = world.lake.read_columns(AGENT_TRACES, HOUR, "trace_id", "duration_ms").to_pylist()
        assert {row["trace_id"]: row["duration_ms"] for row in archived} == {
            trace_id(number): version.sound_ms for number, version in world.latest.items()
        }
        assert ledger_problems(world.lake, [world.scorer], HOUR) == []
        check_figures(world)
    assert len(world.lake.read_columns(ASSESSMENTS, HOUR, "trace_id")) == len(world.scored)
    assert len(world.lake.read_columns(SUPERSEDED_ASSESSMENTS, HOUR, "trace_id")) == results - len(world.scored)


def check_figures(world: World) -> None:
    """The hour's figures are those of numpy over the sound values."""
    columns = HOURLY_PERFORMANCE.columns.names
    rows = world.lake.read_columns(HOURLY_PERFORMANCE, HOUR, *columns).to_pylist()
    total = [row for row in rows if row["trace_name"] is None]
    if not world.latest:
        assert total == []
        return
    [row] = total
    versions = list(world.latest.values())
    failed = sum(version.state is TraceState.ERROR for version in versions)
    sound = [version.sound_ms for version in versions if version.ended and version.sound_ms is not None]
    assert (row["trace_count"], row["error_count"]) == (len(versions), failed)
    assert row["span_count"] == sum(1 + version.late_spans for version in versions)
    for name, share in {"p50_duration_ms": 50, "p95_duration_ms": 95, "p99_duration_ms": 99}.items():
        assert row[name] == (pytest.approx(np.percentile(sound, share)) if sound else None)
    assert row["avg_duration_ms"] == (pytest.approx(np.mean(sound)) if sound else None)


# Days of one kind

DAY = timedelta(days=1)
MONDAY = datetime(2026, 1, 12, 5, tzinfo=UTC)
SCORERS = [scorer("response_quality", pass_if="> 1"), scorer("tool_errors"), scorer("stage_latency")]


def of_kind(kind: str, first: datetime, number: int) -> list[Trace]:
    """The traces of a day; their numbers start at `number`."""
    states = {
        "empty": [],
        "all OK": [TraceState.OK] * 3,
        "all ERROR": [TraceState.ERROR] * 3,
        "single OK": [TraceState.OK],
        "single ERROR": [TraceState.ERROR],
        "single IN_PROGRESS": [TraceState.IN_PROGRESS],
        "no durations": [TraceState.OK] * 2,
    }[kind]
    traces = [made_trace(number + n, first + timedelta(minutes=n), state=state) for n, state in enumerate(states)]
    if kind == "no durations":
        for trace in traces:
            trace.info.execution_duration = None
    return traces


# Each kind comes after a day with errors and after one without.
DAYS = ("all ERROR", "empty", "all OK", "all ERROR", "single OK", "single ERROR", "no durations", "single IN_PROGRESS")


@pytest.fixture(scope="module")
def settings_of_days(tmp_path_factory: pytest.TempPathFactory, spark: SparkResource) -> Settings:
    folder = tmp_path_factory.mktemp("days")
    lake = LakeResource(location=str(folder / "lake"), spark=spark)
    scorers = load_scorers(SCORERS)
    for index, kind in enumerate(DAYS):
        day = Period.day((MONDAY + index * DAY).date()).window
        archive_traces(lake, day, of_kind(kind, MONDAY + index * DAY, 1 + 10 * index))
        for derivation in DERIVATIONS:
            derivation.derive(lake, day)
        for each in scorers:
            score_window(lake, each, day, "run")
        derive_coverage(lake, day, scorers, {})
        derive_quality(lake, day, scorers)
        derive_agreement(lake, day, scorers)
    return Settings(
        lake=LakeSettings(location=lake.location),
        mlflow=MlflowSettings(tracking_uri=f"sqlite:///{folder}/none.db"),
        archive=ArchiveSettings(start=MONDAY - 30 * DAY),
        scorers=SCORERS,
    )


@pytest.mark.parametrize("index", range(len(DAYS)), ids=[f"{index} {kind}" for index, kind in enumerate(DAYS)])
def test_a_day_of_any_kind_has_a_report_and_all_analyses(
    index: int, settings_of_days: Settings, spark: SparkResource, tmp_path: Path
) -> None:
    start = MONDAY.replace(hour=0) + index * DAY
    times: dict[str, Any] = {"start_time": start, "end_time": start + DAY, "settings": settings_of_days}
    traces = of_kind(DAYS[index], MONDAY + index * DAY, 1 + 10 * index)
    failed = sum(trace.info.state == TraceState.ERROR for trace in traces)
    lake = LakeResource(location=settings_of_days.lake.location, spark=spark)
    written = write_report(Report(report_data(lake, load_scorers(SCORERS), Period.day(start.date()))), tmp_path)
    assert any(written.glob("*.html"))
    figures = api.daily_quality_report(start.date(), settings_of_days)
    assert len(figures["worst_traces"]["failed"]) == failed
    assert len(api.search(**times)) == len(traces)
    assert sum(row["trace_count"] for row in api.analyze_trace_errors(**times).collect()) == failed
    assert api.analyze_trace_performance(**times).count() == len(traces)
    assert sum(row["trace_count"] for row in api.analyze_historical_performance(**times).collect()) == len(traces)
    assert sum(row["trace_count"] for row in api.break_down("status", **times).collect()) == len(traces)
    quality = api.analyze_trace_quality(traces=traces, settings=settings_of_days)
    assert (quality["total_traces"], quality.get("error_count", 0)) == (len(traces), failed)
    for trace in traces:
        assert api.profile_trace_performance(trace=trace, settings=settings_of_days)["by_type"]
    ended = sum(trace.info.state != TraceState.IN_PROGRESS for trace in traces)  # others are in no dataset
    assert len(api.build_dataset_from_traces(**times)) == ended
    assert len(api.build_diverse_eval_dataset(sample_size=2, **times)) == min(2, ended)
    assert len(api.extract_failures_for_eval("response_quality", **times)) == ended  # no score is above 1


@pytest.mark.parametrize("first", [MONDAY - 7 * DAY, MONDAY, MONDAY + 7 * DAY])
def test_a_week_of_such_days_has_a_report(
    first: datetime, settings_of_days: Settings, spark: SparkResource, tmp_path: Path
) -> None:
    lake = LakeResource(location=settings_of_days.lake.location, spark=spark)
    written = write_report(Report(report_data(lake, load_scorers(SCORERS), Period.week_of(first.date()))), tmp_path)
    assert any(written.glob("*.html"))
