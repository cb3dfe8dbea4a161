"""Analyses for notebooks, of archived conversations and of MLflow's copies, against numpy and pandas."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.entities import Span, Trace, TraceState
from mlflow.tracing.utils.search import traces_to_df

from monitoring_pipeline import api
from monitoring_pipeline.analysis.errors import NO_FAILED_SPAN
from monitoring_pipeline.analysis.signatures import error_signature
from monitoring_pipeline.analysis.statistics import share_difference, share_interval
from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.resources.tracking import global_tracking_uri
from monitoring_pipeline.settings import ArchiveSettings, LakeSettings, Settings, UpkeepSettings
from monitoring_pipeline.tables import AGENT_TRACES
from monitoring_pipeline_tests.conftest import RECORDED_WINDOW
from monitoring_pipeline_tests.made_project import MadeProject
from monitoring_pipeline_tests.scoring.made import made_trace

RANGE: dict[str, Any] = {"start_time": RECORDED_WINDOW.start, "end_time": RECORDED_WINDOW.end}
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def settings(archived: Path) -> Settings:
    return Settings(lake=LakeSettings(location=str(archived)))


@pytest.fixture(scope="module")
def table(recorded_store: str) -> pd.DataFrame:
    """The result of MLflow's search."""
    with global_tracking_uri(recorded_store):
        experiment = mlflow.get_experiment_by_name("airline")
        assert experiment is not None
        return mlflow.search_traces(locations=[experiment.experiment_id])  # type: ignore[return-value]


def sources(recorded_traces: list[Trace], table: pd.DataFrame, settings: Settings) -> list[dict[str, Any]]:
    """The ways to pass the recorded traces to an analysis."""
    queried = api.query_archived_traces(**RANGE, settings=settings)
    given = [{"traces": traces, "settings": settings} for traces in (table, recorded_traces, queried)]
    return [{**RANGE, "settings": settings}, *given]


def started(trace: Trace) -> pd.Timestamp:
    return pd.Timestamp(trace.info.request_time, unit="ms")


def newest_first(traces: list[Trace]) -> list[Trace]:
    return sorted(traces, key=lambda trace: (-trace.info.request_time, trace.info.trace_id))


def durations_ms(traces: list[Trace]) -> list[float]:
    return [trace.info.execution_duration for trace in traces]  # type: ignore[misc]


def usage(trace: Trace, key: str) -> int:
    return json.loads(trace.info.trace_metadata["mlflow.trace.tokenUsage"])[key]


# Traces found


def test_archived_traces_are_the_newest_first(recorded_traces: list[Trace], settings: Settings) -> None:
    found = api.query_archived_traces(**RANGE, settings=settings)
    assert found.columns == AGENT_TRACES.schema.names
    assert [row["trace_id"] for row in found.select("trace_id").collect()] == [
        trace.info.trace_id for trace in newest_first(recorded_traces)
    ]
    noon = RECORDED_WINDOW.start + 12 * HOUR
    failed = (
        api.query_archived_traces(noon, noon + 12 * HOUR, "status = 'ERROR'", settings).select("trace_id").collect()
    )
    assert {row["trace_id"] for row in failed} == {
        trace.info.trace_id
        for trace in recorded_traces
        if trace.info.state == "ERROR"
        and noon <= datetime.fromtimestamp(trace.info.request_time / 1000, UTC) < noon + 12 * HOUR
    }
    assert len(failed) > 0
    assert api.query_archived_traces(settings=settings).count() == 0  # the last 24 hours
    with pytest.raises(MonitoringError, match=r"^trace filter 'nonsense': "):
        api.query_archived_traces(**RANGE, filter_string="nonsense", settings=settings)


def test_search_returns_the_table_that_mlflow_returns(table: pd.DataFrame, settings: Settings) -> None:
    found = api.search(settings=settings)
    without_text = [column for column in table.columns if column != "trace"]
    pd.testing.assert_frame_equal(found[without_text], table[without_text])
    assert list(found.columns) == list(table.columns)
    for text, expected in zip(found["trace"], table["trace"], strict=True):
        assert Trace.from_json(text).to_dict() == Trace.from_json(expected).to_dict()
    pd.testing.assert_frame_equal(api.search("status = 'x'", settings=settings), traces_to_df([]))


# Errors


def test_errors_equal_those_found_by_a_loop_over_spans(
    recorded_traces: list[Trace], table: pd.DataFrame, settings: Settings
) -> None:
    traces: defaultdict[tuple[str, str, str], set[str]] = defaultdict(set)
    spans: Counter[tuple[str, str, str]] = Counter()
    first: dict[tuple[str, str, str], tuple[pd.Timestamp, str, str]] = {}
    for trace in recorded_traces:
        failed = [span for span in trace.data.spans if span.status.status_code.value == "ERROR"]
        innermost = {span.status.description: span for span in failed}
        for message, cause in innermost.items():
            key = (error_signature(message), cause.name, cause.span_type)
            traces[key].add(trace.info.trace_id)
            spans[key] += sum((span.name, span.status.description) == (cause.name, message) for span in failed)
            first[key] = min(first.get(key, (pd.Timestamp.max, "", "")), (started(trace), trace.info.trace_id, message))
    expected = sorted(traces, key=lambda key: (-len(traces[key]), key))
    assert len(expected) == 8
    for source in sources(recorded_traces, table, settings):
        found = api.analyze_trace_errors(**source).toPandas()
        keys = [*found[["signature", "span_name", "span_type"]].itertuples(index=False, name=None)]
        assert keys == expected
        assert list(found["trace_count"]) == [len(traces[key]) for key in keys]
        assert list(found["span_count"]) == [spans[key] for key in keys]
        assert [*zip(found["first_seen"], found["sample_trace_ids"].str[0], found["sample_message"], strict=True)] == [
            first[key] for key in keys
        ]
        assert all(set(ids) <= traces[key] for key, ids in zip(keys, found["sample_trace_ids"], strict=True))


def test_a_failed_trace_without_a_failed_span_has_a_group(settings: Settings) -> None:
    found = api.analyze_trace_errors(
        [made_trace(1, state=TraceState.ERROR), made_trace(2)], settings=settings
    ).toPandas()
    assert found[["signature", "span_name", "trace_count"]].values.tolist() == [[NO_FAILED_SPAN, None, 1]]


# Performance


def test_durations_equal_those_of_the_recordings(
    recorded_conversations: list[dict], load_tau: ModuleType, settings: Settings
) -> None:
    expected = {}
    for conversation in recorded_conversations:
        for turn, (user, answer) in enumerate(load_tau.turns(conversation["traj"])):
            trace_id, spans, end_ns = load_tau.build_trace(conversation, turn, user, answer, 0)
            expected[trace_id] = (end_ns / 1e6, len(spans))
    found = api.analyze_trace_performance(**RANGE, settings=settings).toPandas().set_index("trace_id")
    assert set(found.index) == set(expected)
    assert list(found["duration_ms"]) == pytest.approx([expected[trace_id][0] for trace_id in found.index], abs=1)
    assert list(found["span_count"]) == [expected[trace_id][1] for trace_id in found.index]


def test_performance_has_a_row_per_trace(recorded_traces: list[Trace], table: pd.DataFrame, settings: Settings) -> None:
    traces = newest_first(recorded_traces)
    for source in sources(recorded_traces, table, settings):
        found = api.analyze_trace_performance(**source).toPandas()
        assert list(found["trace_id"]) == [trace.info.trace_id for trace in traces]
        assert list(found["timestamp"]) == [started(trace) for trace in traces]
        assert list(found["duration_ms"]) == durations_ms(traces)
        assert list(found["total_tokens"]) == [usage(trace, "total_tokens") for trace in traces]


def test_history_has_a_row_per_hour(recorded_traces: list[Trace], settings: Settings) -> None:
    by_hour: defaultdict[pd.Timestamp, list[Trace]] = defaultdict(list)
    for trace in recorded_traces:
        by_hour[started(trace).floor("h")].append(trace)
    found = api.analyze_historical_performance(**RANGE, settings=settings).toPandas()
    assert list(found["hour"]) == sorted(by_hour, reverse=True)
    for row in found.to_dict("records"):
        traces = by_hour[row["hour"]]
        assert row["trace_count"] == len(traces)
        assert row["error_count"] == sum(trace.info.state == "ERROR" for trace in traces)
        assert row["avg_duration_ms"] == pytest.approx(np.mean(durations_ms(traces)))
        ranks = ("p50_duration_ms", "p95_duration_ms", "p99_duration_ms")
        assert [row[rank] for rank in ranks] == pytest.approx(np.percentile(durations_ms(traces), [50, 95, 99]))


def test_quality_equals_numpys_figures(recorded_traces: list[Trace], table: pd.DataFrame, settings: Settings) -> None:
    states = [trace.info.state for trace in recorded_traces]
    failed = [trace for trace in newest_first(recorded_traces) if trace.info.state == "ERROR"]
    p50, p95, p99 = np.percentile(durations_ms(recorded_traces), [50, 95, 99])
    expected = {
        "total_traces": 681,
        "success_rate": pytest.approx(np.mean([state == "OK" for state in states])),
        "success_rate_interval": share_interval(states.count("OK"), 681),  # type: ignore[arg-type]
        "error_count": len(failed),
        "avg_latency_ms": pytest.approx(np.mean(durations_ms(recorded_traces))),
        "p50_latency_ms": pytest.approx(p50),
        "p95_latency_ms": pytest.approx(p95),
        "p99_latency_ms": pytest.approx(p99),
        "sample_errors": [json.loads(str(trace.data.request)) for trace in failed[:5]],
    }
    for source in sources(recorded_traces, table, settings)[1:]:
        assert api.analyze_trace_quality(**source) == expected
    days = (datetime.now(UTC) - RECORDED_WINDOW.start).days + 2  # more than the archive has
    assert api.analyze_trace_quality(days=days, settings=settings) == expected
    experiment_id = recorded_traces[0].info.experiment_id
    assert api.analyze_trace_quality(experiment_id, traces=table, settings=settings) == expected


def test_quality_without_traces_does_not_raise(recorded_traces: list[Trace], settings: Settings) -> None:
    assert api.analyze_trace_quality(settings=settings) == {"total_traces": 0}
    assert api.analyze_trace_quality("other", traces=recorded_traces[:9], settings=settings) == {"total_traces": 0}
    kept = settings.model_copy(update={"upkeep": UpkeepSettings(keep_archive_days=3)})
    assert api.analyze_trace_quality(settings=kept) == {"total_traces": 0}
    late = settings.model_copy(update={"archive": ArchiveSettings(start=datetime.now(UTC) - HOUR)})
    assert api.analyze_trace_quality(settings=late) == {"total_traces": 0}


def test_quality_of_unfinished_traces_has_no_latencies(settings: Settings) -> None:
    trace = made_trace(1, state=TraceState.IN_PROGRESS)
    trace.info.execution_duration = None
    found = api.analyze_trace_quality(traces=[trace], settings=settings)
    assert (found["success_rate"], found["error_count"], found["sample_errors"]) == (0, 0, [])
    assert [found[f"{name}_latency_ms"] for name in ("avg", "p50", "p95", "p99")] == [None] * 4


# One trace


def span_ms(span: Span) -> float:
    assert span.end_time_ns is not None
    return (span.end_time_ns // 1000 - span.start_time_ns // 1000) / 1000


def test_a_profile_equals_a_loop_over_spans(recorded_traces: list[Trace], settings: Settings) -> None:
    longest = max(recorded_traces, key=lambda trace: len(trace.data.spans))
    [root, *children] = longest.data.spans
    found = api.profile_trace_performance(longest.info.trace_id, settings=settings)
    assert found == api.profile_trace_performance(trace=longest, settings=settings)
    assert found["trace_id"] == longest.info.trace_id
    assert found["duration_ms"] == longest.info.execution_duration
    for key, name_of in (("by_type", lambda span: span.span_type), ("by_stage", lambda span: span.name)):
        assert set(found[key]) == {name_of(span) for span in longest.data.spans}
        for name, figures in found[key].items():
            times = [span_ms(span) for span in longest.data.spans if name_of(span) == name]
            assert (figures["count"], figures["max_ms"]) == (len(times), max(times))
            assert (figures["total_ms"], figures["avg_ms"]) == pytest.approx((sum(times), np.mean(times)))
    # the agent calls one after the other
    own_ms = span_ms(root) - sum(map(span_ms, children))
    assert found["by_type"]["AGENT"]["self_time_ms"] == pytest.approx(own_ms)
    assert found["by_type"]["TOOL"]["self_time_ms"] == pytest.approx(found["by_type"]["TOOL"]["total_ms"])
    path = {part.span_id: part.self_ms for part in found["critical_path"]}
    assert path == pytest.approx({root.span_id: own_ms} | {span.span_id: span_ms(span) for span in children})
    assert sum(path.values()) == pytest.approx(span_ms(root))


@pytest.mark.parametrize(
    ("choice", "line"),
    [
        (
            {"trace_id": "tr-none"},
            r"^no trace tr-none in the archive; archive its hour first, or pass the trace itself$",
        ),
        ({}, r"^give trace_id or trace$"),
        (
            {"trace_id": "tr-none", "trace": made_trace(1)},
            r"^trace is tr-0+1, but trace_id is tr-none; give one of them$",
        ),
    ],
)
def test_a_profile_without_a_trace_is_refused_in_one_line(
    settings: Settings, choice: dict[str, Any], line: str
) -> None:
    with pytest.raises(MonitoringError, match=line):
        api.profile_trace_performance(**choice, settings=settings)


# Properties


def test_a_breakdown_equals_that_of_pandas(
    recorded_traces: list[Trace],
    recorded_conversations: list[dict],
    load_tau: ModuleType,
    table: pd.DataFrame,
    settings: Settings,
) -> None:
    turns: Counter[str] = Counter()
    for conversation in recorded_conversations:
        turns[str(conversation["task_id"])] += len([*load_tau.turns(conversation["traj"])])
    by_task: defaultdict[str, list[Trace]] = defaultdict(list)
    for trace in recorded_traces:
        by_task[trace.info.tags["task_id"]].append(trace)
    for source in sources(recorded_traces, table, settings):
        found = api.break_down("tags.task_id", **source).toPandas()
        assert list(found["value"]) == sorted(turns, key=lambda task: (-turns[task], task))
        for row in found.to_dict("records"):
            traces = by_task[row["value"]]
            failed = sum(trace.info.state == "ERROR" for trace in traces)
            assert (row["trace_count"], row["error_count"]) == (turns[row["value"]], failed)
            assert row["error_rate"] == failed / len(traces)
            ranks = ("p50_duration_ms", "p95_duration_ms", "p99_duration_ms")
            assert [row[rank] for rank in ranks] == pytest.approx(np.percentile(durations_ms(traces), [50, 95, 99]))
            for column in ("input_tokens", "output_tokens", "total_tokens"):
                assert row[column] == sum(usage(trace, column) for trace in traces)
            costs = [json.loads(trace.info.trace_metadata["mlflow.trace.cost"])["total_cost"] for trace in traces]
            assert row["cost_usd"] == pytest.approx(sum(costs))


@pytest.mark.parametrize(
    ("by", "values"),
    [
        ("tags.environment", {"production": 681}),
        ("tag.`environment`", {"production": 681}),
        ('tags."environment"', {"production": 681}),
        ("tags.missing", {None: 681}),
        ("status", {"OK": 665, "ERROR": 16}),
        ("trace_name", {"airline_agent": 681}),
        ("experiment_name", {None: 681}),
    ],
)
def test_properties_of_traces(settings: Settings, by: str, values: dict[str | None, int]) -> None:
    found = api.break_down(by, **RANGE, settings=settings).toPandas()
    assert dict(zip(found["value"], found["trace_count"], strict=True)) == values


def test_properties_in_the_metadata(recorded_traces: list[Trace], settings: Settings) -> None:
    for by in ("session_id", "metadata.`mlflow.trace.session`"):
        found = api.break_down(by, **RANGE, settings=settings).toPandas()
        sessions = Counter(trace.info.trace_metadata["mlflow.trace.session"] for trace in recorded_traces)
        assert dict(zip(found["value"], found["trace_count"], strict=True)) == sessions


@pytest.mark.parametrize("by", ["environment", "tags.", "tags.`a", "spans.name", "", "trace_json", "tags.a`b`"])
def test_what_is_no_property_is_one_line(settings: Settings, by: str) -> None:
    with pytest.raises(MonitoringError, match=r"is not a property of traces: use tags\.<key>, metadata\.<key> or o"):
        api.break_down(by, **RANGE, settings=settings)


# Releases


def released(trace: Trace) -> Trace:
    """A copy with the tag `release`: 1 on the first day, 2 on the second."""
    copy = Trace.from_json(trace.to_json())
    second_day = trace.info.request_time >= (RECORDED_WINDOW.start + 24 * HOUR).timestamp() * 1000
    copy.info.tags["release"] = "2" if second_day else "1"
    return copy


@pytest.fixture(scope="module")
def releases(recorded_traces: list[Trace]) -> list[Trace]:
    return [released(trace) for trace in recorded_traces]


def test_releases_are_compared(releases: list[Trace], settings: Settings) -> None:
    both = {name: [trace for trace in releases if trace.info.tags["release"] == name] for name in "12"}
    found = api.compare_releases("tags.release", "1", "2", traces=releases, settings=settings)
    assert (found.before_traces, found.after_traces) == (len(both["1"]), len(both["2"]))

    failed = [(sum(trace.info.state == "ERROR" for trace in both[name]), len(both[name])) for name in "12"]
    rates = [count / total for count, total in failed]
    assert list(found.measures.loc["error_rate"]) == [*rates, *share_difference(failed[0], failed[1])]
    for measure, rank in (("p50_duration_ms", 50), ("p95_duration_ms", 95)):
        before, after, change, low, high = found.measures.loc[measure]
        assert [before, after] == pytest.approx([np.percentile(durations_ms(both[name]), rank) for name in "12"])
        assert change == pytest.approx(after - before)
        assert low < change < high

    times: defaultdict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: {"1": [], "2": []})
    for trace in releases:
        for span in trace.data.spans:
            times[span.span_type, span.name][trace.info.tags["release"]].append(span_ms(span))
    stages = found.stages.set_index(["span_type", "span_name"])
    assert set(stages.index) == set(times)
    for stage, row in stages.iterrows():
        before, after = times[stage]["1"], times[stage]["2"]  # type: ignore[index]
        assert (row["before_count"], row["after_count"]) == (len(before), len(after))
        if before and after:
            assert row["p50_change_ms"] == pytest.approx(np.median(after) - np.median(before))
            assert row["p95_after_ms"] == pytest.approx(np.percentile(after, 95))
        assert pd.notna(row["p50_low_ms"]) == (min(len(before), len(after)) >= 20)
        assert pd.notna(row["p95_low_ms"]) == (min(len(before), len(after)) >= 200)
    known = stages["p50_change_ms"].dropna()
    assert list(known) == sorted(known, reverse=True)
    assert len(known) < len(stages)  # one tool was called on the first day only
    assert stages["p50_change_ms"].isna().iloc[-1]

    errors = {
        name: {
            (error_signature(span.status.description), span.name)
            for trace in both[name]
            for span in trace.data.spans
            if span.status.status_code.value == "ERROR" and span.parent_id
        }
        for name in "12"
    }
    for frame, expected in (
        (found.new_errors, errors["2"] - errors["1"]),
        (found.gone_errors, errors["1"] - errors["2"]),
    ):
        assert {*frame[["signature", "span_name"]].itertuples(index=False, name=None)} == expected
    assert len(found.gone_errors) > 0


def test_releases_of_the_archive_are_compared_too(made: MadeProject) -> None:
    choice: dict[str, Any] = {
        "start_time": datetime(2026, 1, 1, tzinfo=UTC),
        "end_time": datetime(2026, 1, 2, tzinfo=UTC),
    }
    found = api.compare_releases("tags.env", "dev", "prod", **choice, settings=made.settings)
    assert (found.before_traces, found.after_traces) == (20, 20)
    assert list(found.measures.loc["p50_duration_ms"]) == pytest.approx([5, 5, 0, 0, 0])
    assert found.measures.loc["p95_duration_ms", ["low", "high"]].isna().all()
    assert found.new_errors.empty
    assert found.gone_errors.empty
    with pytest.raises(MonitoringError, match=r"^no trace has tags.env = 'test'; found values: 'dev', 'prod'$"):
        api.compare_releases("tags.env", "dev", "test", **choice, settings=made.settings)
    with pytest.raises(MonitoringError, match=r"^no trace has tags.x = '1'; no trace has any value for it$"):
        api.compare_releases("tags.x", "1", "2", **choice, settings=made.settings)
    with pytest.raises(MonitoringError, match=r"^'release' is not a property"):
        api.compare_releases("release", "1", "2", **choice, settings=made.settings)


# Invalid choices


@pytest.mark.parametrize(
    "analyse", [api.analyze_trace_errors, api.analyze_trace_performance, partial(api.break_down, "status")]
)
def test_traces_and_times_together_are_refused(settings: Settings, analyse: Any) -> None:
    for times in ({"start_time": RECORDED_WINDOW.start}, {"end_time": RECORDED_WINDOW.end}):
        with pytest.raises(
            MonitoringError, match=r"^give either traces, or start_time and end_time of archived traces$"
        ):
            analyse(traces=[made_trace(1)], **times, settings=settings)


def test_zero_days_are_refused_in_one_line(settings: Settings) -> None:
    with pytest.raises(MonitoringError, match=r"^days = 0: must be at least 1$"):
        api.analyze_trace_quality(days=0, settings=settings)


def test_without_traces_nothing_raises(settings: Settings) -> None:
    assert api.analyze_trace_errors([], settings=settings).count() == 0
    assert api.analyze_trace_performance([], settings=settings).count() == 0
    assert api.break_down("status", [], settings=settings).count() == 0
    assert api.analyze_historical_performance(settings=settings).count() == 0
