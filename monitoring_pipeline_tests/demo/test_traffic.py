"""The sample traffic has its documented properties, read back through MLflow."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from statistics import mean
from typing import TYPE_CHECKING

import pytest

from monitoring_pipeline.demo.agent import INPUT_USD_PER_TOKEN, OUTPUT_USD_PER_TOKEN
from monitoring_pipeline.demo.traffic import fill, mlflow_spans, simulate
from monitoring_pipeline.windows import HOUR

if TYPE_CHECKING:
    from mlflow.entities import Trace

END = datetime(2026, 1, 10, 18, 40, tzinfo=UTC)
LAST = datetime(2026, 1, 10, 18, tzinfo=UTC)
HOURS, TRACES = 6, 150
INCIDENT = LAST - 3 * HOUR


@dataclass
class Filled:
    tracking_uri: str
    written: int
    progress: list[int]
    traces: list[Trace]

    @property
    def by_hour(self) -> dict[datetime, list[Trace]]:
        hours: dict[datetime, list[Trace]] = defaultdict(list)
        for trace in self.traces:
            started = datetime.fromtimestamp(trace.info.request_time / 1000, UTC)
            hours[started.replace(minute=0, second=0, microsecond=0)].append(trace)
        return hours


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    import mlflow

    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    uri_before = mlflow.get_tracking_uri()
    progress: list[int] = []
    written = fill(uri, "support", END, hours=HOURS, traces=TRACES, seed=7, on_progress=progress.append)
    assert mlflow.get_tracking_uri() == uri_before
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("support")
    assert experiment is not None
    yield Filled(uri, written, progress, list(client.search_traces([experiment.experiment_id], max_results=1000)))


def ended_ns(trace: Trace) -> int:
    ended = trace.data.spans[0].end_time_ns
    assert ended is not None
    return ended


def failed(traces: list[Trace]) -> list[Trace]:
    return [trace for trace in traces if trace.info.state == "ERROR"]


def test_count_and_progress(filled: Filled) -> None:
    assert len(filled.traces) == filled.written >= TRACES
    assert filled.progress[-1] == filled.written
    assert filled.progress == sorted(filled.progress)


def test_every_hour_of_the_window_and_no_other_has_several_traces(filled: Filled) -> None:
    counts = {hour: len(traces) for hour, traces in filled.by_hour.items()}
    assert sorted(counts) == [LAST - n * HOUR for n in range(HOURS, 0, -1)]
    assert min(counts.values()) >= 4


def test_names_users_tags_and_previews(filled: Filled) -> None:
    for trace in filled.traces:
        assert trace.info.tags["mlflow.traceName"] == "support_agent"
        assert trace.info.tags["environment"] in ("production", "staging")
        assert trace.info.tags["release"] in ("1.4.0", "1.5.0")
        assert trace.info.trace_metadata["mlflow.trace.user"].startswith("customer-")
        assert trace.info.request_preview == trace.data.spans[0].inputs["messages"][-1]["content"]
        assert trace.info.response_preview == trace.data.spans[0].outputs["messages"][0]["content"]
    assert {trace.info.tags["intent"] for trace in filled.traces} == {"help", "order", "parcel", "refund"}
    assert {trace.info.tags["release"] for trace in filled.traces} == {"1.4.0", "1.5.0"}


def test_sessions_have_several_turns_of_one_user(filled: Filled) -> None:
    sessions: dict[str, list[Trace]] = defaultdict(list)
    for trace in sorted(filled.traces, key=lambda trace: trace.info.request_time):
        sessions[trace.info.trace_metadata["mlflow.trace.session"]].append(trace)
    assert sum(len(turns) > 1 for turns in sessions.values()) > len(sessions) / 4
    for turns in sessions.values():
        assert len({turn.info.trace_metadata["mlflow.trace.user"] for turn in turns}) == 1
        # each turn carries the conversation so far, and starts after the one before has ended
        assert [len(turn.data.spans[0].inputs["messages"]) for turn in turns] == list(range(1, 2 * len(turns), 2))
        for before, after in pairwise(turns):
            assert ended_ns(before) < after.data.spans[0].start_time_ns


def test_spans(filled: Filled) -> None:
    for trace in filled.traces:
        root, *steps = sorted(trace.data.spans, key=lambda span: (span.parent_id is not None, span.start_time_ns))
        assert root.span_type == "AGENT"
        assert steps[0].span_type == "RETRIEVER"
        assert {step.span_type for step in steps[1:-1]} <= {"TOOL"}
        assert steps[-1].span_type == "CHAT_MODEL"
        assert all(step.parent_id == root.span_id for step in steps)
        assert all({"page_content", "metadata", "id"} == set(document) for document in steps[0].outputs)
        assert trace.info.execution_duration == ended_ns(trace) // 10**6 - root.start_time_ns // 10**6


def test_tokens_and_cost_reach_the_trace(filled: Filled) -> None:
    for trace in filled.traces:
        model = next(span for span in trace.data.spans if span.span_type == "CHAT_MODEL")
        usage = trace.info.token_usage
        assert usage is not None
        assert usage == model.get_attribute("mlflow.chat.tokenUsage")
        assert {"mlflow.trace.tokenUsage", "mlflow.trace.cost"} <= set(trace.info.trace_metadata)
        cost = usage["input_tokens"] * INPUT_USD_PER_TOKEN + usage["output_tokens"] * OUTPUT_USD_PER_TOKEN
        assert trace.info.cost is not None
        assert trace.info.cost["total_cost"] == pytest.approx(cost)
        assert cost > 0


def test_failed_tools_carry_an_exception_and_the_agent_sometimes_recovers(filled: Filled) -> None:
    recovered = 0
    for trace in filled.traces:
        broken = [span for span in trace.data.spans if span.span_type == "TOOL" and span.status.status_code == "ERROR"]
        for span in broken:
            event = span.events[0]
            assert event.name == "exception"
            message = f"{event.attributes['exception.type']}: {event.attributes['exception.message']}"
            assert span.status.description == message
        if trace.info.state == "ERROR":
            assert broken
            assert "apologise" in (trace.info.response_preview or "")
        recovered += bool(broken) and trace.info.state == "OK"
    assert recovered > 0


def test_incident_hour_has_the_most_errors_and_other_hours_have_few(filled: Filled) -> None:
    error_rate = {hour: len(failed(traces)) / len(traces) for hour, traces in filled.by_hour.items()}
    latency_ms = {hour: mean(t.info.execution_duration or 0 for t in traces) for hour, traces in filled.by_hour.items()}
    incident_rate, incident_ms = error_rate.pop(INCIDENT), latency_ms.pop(INCIDENT)
    assert incident_rate > 0.25
    assert incident_rate > 2 * max(error_rate.values())
    assert incident_ms > 2 * max(latency_ms.values())


def test_people_judged_some_traces(filled: Filled) -> None:
    expected = [a for trace in filled.traces for a in trace.info.assessments if a.name == "expected_tools"]
    satisfied = [a for trace in filled.traces for a in trace.info.assessments if a.name == "user_satisfied"]
    assert 0.05 < len(expected) / filled.written < 0.25
    assert 0.03 < len(satisfied) / filled.written < 0.2
    assert {a.source.source_type for a in expected + satisfied} == {"HUMAN"}
    tools = [a.expectation.value for a in expected if a.expectation]
    assert len(tools) == len(expected)
    known = ([], ["lookup_order"], ["lookup_order", "track_parcel"], ["lookup_order", "create_refund"])
    assert all(value in known for value in tools)
    assert all(a.feedback and isinstance(a.feedback.value, bool) for a in satisfied)


def test_a_filled_experiment_is_refused(filled: Filled) -> None:
    with pytest.raises(ValueError, match="'support' already holds traces"):
        fill(filled.tracking_uri, "support", END, hours=HOURS, traces=TRACES)


def test_bad_arguments_are_refused() -> None:
    for end, hours, traces in [(END.replace(tzinfo=None), 1, 1), (END, 0, 1), (END, 1, 0)]:
        with pytest.raises(ValueError, match="needs an end with a time zone"):
            next(simulate(end, hours, traces, 7))


def test_same_arguments_yield_the_same_spans() -> None:
    first, second = (
        [span.to_dict() for trace in simulate(END, 3, 60, 7) for span in mlflow_spans(trace)] for _ in range(2)
    )
    assert first == second
    other = {trace.trace_id for trace in simulate(END, 3, 60, 8)}
    assert other.isdisjoint(trace.trace_id for trace in simulate(END, 3, 60, 7))


def test_traces_do_not_depend_on_the_process() -> None:
    program = (
        "import hashlib, datetime; from monitoring_pipeline.demo.traffic import simulate;"
        "end = datetime.datetime(2026, 1, 10, tzinfo=datetime.UTC);"
        "print(hashlib.sha256(repr(list(simulate(end, 3, 60, 7))).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1
    assert len(next(iter(digests)).strip()) == 64


@pytest.mark.parametrize("hour", range(0, 24, 6))
def test_two_days_follow_the_day_and_show_the_incident(hour: int) -> None:
    end = datetime(2026, 1, 10, hour, tzinfo=UTC)
    traces = list(simulate(end, 48, 1000, 7))
    starts = [datetime.fromtimestamp(trace.spans[0].start_ns / 1e9, UTC) for trace in traces]
    assert len({trace.trace_id for trace in traces}) == len(traces) >= 1000
    assert all(end - timedelta(hours=48) <= start < end for start in starts)
    volume = Counter(start.replace(minute=0, second=0, microsecond=0) for start in starts)
    assert len(volume) == 48
    assert min(volume.values()) >= 4
    of_day = Counter(start.hour for start in starts)
    assert sum(of_day[h] for h in range(12, 17)) > 3 * sum(of_day[h] for h in range(0, 5))

    incident = end - 10 * HOUR
    in_incident, usual = [], []
    for trace, start in zip(traces, starts, strict=True):
        (in_incident if incident <= start < incident + HOUR else usual).append(trace.spans[0])
    assert 0.01 < mean(root.failure is not None for root in usual) < 0.06
    assert mean(root.failure is not None for root in in_incident) > 0.2
    incident_ns, usual_ns = (mean(root.end_ns - root.start_ns for root in roots) for roots in (in_incident, usual))
    assert incident_ns > 2.5 * usual_ns


def test_agent_is_mostly_right_and_satisfaction_follows() -> None:
    traces = list(simulate(END, 48, 2000, 7))

    def share_satisfied(wanted: bool) -> float:
        return mean(
            trace.user_satisfied
            for trace in traces
            if trace.user_satisfied is not None and (trace.spans[0].failure is None) == wanted
        )

    right = mean(
        [span.name for span in trace.spans if span.span_type == "TOOL"] == trace.expected_tools
        for trace in traces
        if trace.expected_tools is not None
    )
    assert 0.7 < right < 0.97
    assert share_satisfied(wanted=True) > 0.6 > 0.3 > share_satisfied(wanted=False)
