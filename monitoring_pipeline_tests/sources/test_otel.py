"""OpenTelemetry tables as they occur: spans of a trace in several hours, repeated rows, annotations that change.

Spans come from MLflow or, for other clients, from this file; the resulting traces are compared with those that an
MLflow server builds from the same spans received by OTLP.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import AssessmentError, AssessmentSource, Expectation, Feedback, Span, Trace

from monitoring_pipeline.archive.merging import ArchiveCounts
from monitoring_pipeline.archive.window import archive_window
from monitoring_pipeline.errors import TrackingError
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.settings import ArchiveSettings
from monitoring_pipeline.sources.otel import LONGEST_TRACE
from monitoring_pipeline.sources.otel_trace import build_trace
from monitoring_pipeline.tables import AGENT_TRACES, QUARANTINED_TRACES, Table
from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests.sources.archived_tables import (
    OTEL_ANNOTATION,
    OTEL_SPAN_V1,
    annotation_rows,
    as_v1,
    span_rows,
    write,
)
from monitoring_pipeline_tests.sources.stores import HOUR, START, Store, span_json, trace_id

NEXT_HOUR = Window(HOUR.end, HOUR.end + timedelta(hours=1))
WEEK = Window(START - timedelta(days=3), START + timedelta(days=4))
MINUTE = timedelta(minutes=1)
Row = dict[str, Any]


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return str(tmp_path / "agent")


def archive(lake: LakeResource, store: Store, prefix: str, window: Window = HOUR) -> ArchiveCounts:
    tracking = TrackingResource(tracking_uri=store.uri, experiments=["made"])
    return archive_window(ArchiveSettings(source="otel", location=prefix), tracking, lake, window)


def rows(lake: LakeResource, table: Table = AGENT_TRACES) -> dict[str, Row]:
    found = lake.read_columns(table, WEEK, *(name for name in table.schema.names if name != "created_at"))
    assert len(set(found["trace_id"].to_pylist())) == found.num_rows
    return {row["trace_id"]: row for row in found.to_pylist(maps_as_pydicts="strict")}


def write_spans(prefix: str, spans: list[Row]) -> None:
    write(Path(f"{prefix}_otel_spans"), spans, OTEL_SPAN_V1)


def write_annotations(prefix: str, annotations: list[Row]) -> None:
    write(Path(f"{prefix}_otel_annotations"), annotations, OTEL_ANNOTATION)


def logged(store: Store, number: int, spans: list[Row] | None = None, **options: Any) -> Trace:
    """The trace as MLflow returns it after it was logged."""
    return store.client.get_trace(store.log(number, spans, **options))


def spans_of(*traces: Trace) -> list[Row]:
    return [as_v1(row) for row in span_rows(list(traces))]


def annotation(kind: str, name: str, value: Any, number: int = 1, **changes: Any) -> Row:
    created = START + timedelta(seconds=number)
    return {
        "annotation_id": f"{kind} {name}",
        "target_type": "TRACE",
        "target_id": f"{number:032x}",
        "annotation_type": kind,
        "name": name,
        "value": json.dumps(value),
        "created_at": created,
        "updated_at": created,
        **changes,
    }


# ---- the traces of an hour ----


def at(moment: datetime, index: int, parent: int | None = None, **changes: Any) -> Row:
    return span_json(1, index, parent, started=moment, **changes)


def two_spans(first: datetime, second: datetime) -> list[Row]:
    """The rows of a trace of two spans that start at these times."""
    spans = [Span.from_dict(at(first, 1)), Span.from_dict(at(second, 2, parent=1))]
    return [
        {
            "trace_id": f"{1:032x}",
            "span_id": span.span_id,
            "parent_span_id": span.parent_id,
            "name": span.name,
            "start_time_unix_nano": span.start_time_ns,
            "end_time_unix_nano": span.end_time_ns,
            "attributes": {},
            "status": {"code": "OK"},
        }
        for span in spans
    ]


@pytest.mark.parametrize("later", [5 * MINUTE, 90 * MINUTE, timedelta(hours=23)])
def test_a_trace_belongs_to_the_hour_of_its_first_span(
    store: Store, lake: LakeResource, prefix: str, later: timedelta
) -> None:
    for span in two_spans(HOUR.end - MINUTE, HOUR.end - MINUTE + later):  # in a file each
        write_spans(prefix, [span])
    assert archive(lake, store, prefix, Window(START - timedelta(hours=1), START + timedelta(hours=25))).read == 1
    [row] = rows(lake).values()
    assert (row["trace_hour"], len(row["spans"])) == (START, 2)


def test_an_hour_has_the_same_traces_alone_and_in_a_range(store: Store, lake: LakeResource, prefix: str) -> None:
    write_spans(prefix, two_spans(HOUR.end - MINUTE, HOUR.end + MINUTE))
    assert archive(lake, store, prefix, NEXT_HOUR) == ArchiveCounts()
    assert archive(lake, store, prefix, HOUR) == ArchiveCounts(read=1, written=1)


def test_the_window_is_half_open(store: Store, lake: LakeResource, prefix: str) -> None:
    for number, moment in enumerate((HOUR.start - MINUTE, HOUR.start, HOUR.end - timedelta(milliseconds=1), HOUR.end)):
        write_spans(prefix, spans_of(logged(store, number + 1, started=moment)))
    assert archive(lake, store, prefix).read == 2
    assert rows(lake).keys() == {trace_id(2), trace_id(3)}


def test_only_the_days_around_the_hour_are_read(store: Store, lake: LakeResource, prefix: str) -> None:
    write_spans(prefix, spans_of(logged(store, 1)))
    far = Path(f"{prefix}_otel_spans")
    before = set(far.glob("*.parquet"))
    write_spans(prefix, spans_of(logged(store, 2, started=START + LONGEST_TRACE + 2 * timedelta(hours=1))))
    [other] = set(far.glob("*.parquet")) - before
    other.write_bytes(b"no Parquet")
    assert archive(lake, store, prefix) == ArchiveCounts(read=1, written=1)


# ---- spans ----


def test_repeated_spans_count_once(store: Store, lake: LakeResource, prefix: str) -> None:
    spans = spans_of(logged(store, 1, [span_json(1), span_json(1, 2, parent=1)]))
    for _ in range(2):
        write_spans(prefix, spans)
    write_spans(prefix, [{**spans[0], "end_time_unix_nano": None, "status": {"code": "UNSET"}}])
    assert archive(lake, store, prefix).read == 1
    row = rows(lake)[trace_id(1)]
    assert [(span["span_id"], span["status"]) for span in row["spans"]] == [(f"{1:016x}", "OK"), (f"{2:016x}", "OK")]


def test_events_and_links_are_kept(store: Store, lake: LakeResource, prefix: str) -> None:
    event = {"name": "retry", "time_unix_nano": 1_767_243_601_000_000_007, "attributes": {"attempt": 2, "why": "late"}}
    trace = logged(store, 1, [span_json(1, events=[event])])
    [span] = spans_of(trace)
    link = {"trace_id": f"{9:032x}", "span_id": f"{8:016x}", "attributes": {"kind": "follows"}}
    write_spans(prefix, [{**span, "links": [link]}])
    archive(lake, store, prefix)
    [found] = Trace.from_json(rows(lake)[trace_id(1)]["trace_json"]).data.spans
    assert found.to_dict()["events"] == trace.data.spans[0].to_dict()["events"]
    [linked] = found.links
    assert (linked.trace_id, linked.span_id, linked.attributes) == (trace_id(9), f"{8:016x}", {"kind": "follows"})


def test_a_trace_is_in_progress_until_its_root_arrives(store: Store, lake: LakeResource, prefix: str) -> None:
    root, child = spans_of(logged(store, 1, [span_json(1), span_json(1, 2, parent=1)]))
    write_spans(prefix, [child])
    archive(lake, store, prefix)
    assert rows(lake)[trace_id(1)]["trace_info"]["status"] == "IN_PROGRESS"
    write_spans(prefix, [root])
    assert archive(lake, store, prefix).written == 1
    assert rows(lake)[trace_id(1)]["trace_info"]["status"] == "OK"


OTHER_CLIENT = {
    "openinference.span.kind": "LLM",
    "input.value": "what is due?",
    "output.value": '{"due": 3}',
    "llm.model_name": "gpt-4o",
    "llm.token_count.prompt": "11",
    "llm.token_count.completion": "7",
    "session.id": "s-1",
    "user.id": "u-1",
}


def test_spans_of_other_clients_are_read_as_by_an_mlflow_server(store: Store, lake: LakeResource, prefix: str) -> None:
    from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan
    from opentelemetry.proto.trace.v1.trace_pb2 import Status

    [row] = two_spans(START, START)[:1]
    sent = OtlpSpan(
        trace_id=bytes.fromhex(row["trace_id"]),
        span_id=bytes.fromhex(row["span_id"]),
        name=row["name"],
        start_time_unix_nano=row["start_time_unix_nano"],
        end_time_unix_nano=row["end_time_unix_nano"],
        status=Status(code=Status.STATUS_CODE_OK),
    )
    for key, value in OTHER_CLIENT.items():
        attribute = sent.attributes.add(key=key)
        attribute.value.string_value = value
    store.client.store.log_spans(store.experiment_id, [Span.from_otel_proto(sent)])
    expected = store.client.get_trace(trace_id(1))
    write_spans(prefix, [{**row, "attributes": OTHER_CLIENT}])
    archive(lake, store, prefix)
    found = Trace.from_json(rows(lake)[trace_id(1)]["trace_json"])
    for name in ("request_time", "state", "execution_duration", "experiment_id"):
        assert getattr(found.info, name) == getattr(expected.info, name)
    assert found.info.trace_metadata.items() <= expected.info.trace_metadata.items()
    assert found.info.trace_metadata.keys() >= {"mlflow.trace.session", "mlflow.trace.user", "mlflow.trace.tokenUsage"}
    [span], [other] = found.data.spans, expected.data.spans
    assert (span.inputs, span.outputs, span.span_type) == (other.inputs, other.outputs, other.span_type)
    assert span.get_attribute("mlflow.chat.tokenUsage") == other.get_attribute("mlflow.chat.tokenUsage")


# ---- annotations ----


def test_annotations_restore_the_trace_that_mlflow_returns(store: Store, lake: LakeResource, prefix: str) -> None:
    trace = logged(
        store,
        1,
        tags={"team": "blue"},
        trace_metadata={"mlflow.sourceRun": "run", "mlflow.trace.session": "s"},
        client_request_id="mine",
        request_preview="what?",
        response_preview="that",
        assessments=[
            Feedback(
                name="good", value={"a": 1, "b": "x"}, source=AssessmentSource("LLM_JUDGE", "judge"), rationale="so"
            ),
            Feedback(name="broken", error=AssessmentError("LIMIT", "too many", "at line 1"), span_id=f"{1:016x}"),
            Expectation(name="facts", value=["a", {"b": 1}]),
        ],
    )
    write_spans(prefix, spans_of(trace))
    write_annotations(prefix, annotation_rows([trace]))
    assert archive(lake, store, prefix) == ArchiveCounts(read=1, written=1)
    found = json.loads(rows(lake)[trace_id(1)]["trace_json"])["info"]
    expected = trace.info.to_dict()
    del expected["tags"]["mlflow.artifactLocation"], found["trace_metadata"]["mlflow.migration.sourceExperimentId"]
    for info in (found, expected):
        info["assessments"].sort(key=lambda assessment: assessment["assessment_id"])
    assert found == expected


def test_what_a_client_adds_to_an_assessment_is_kept(store: Store, lake: LakeResource, prefix: str) -> None:
    write_spans(prefix, spans_of(logged(store, 1)))
    metadata = {
        "mlflow.source.source_type": "LLM_JUDGE",
        "mlflow.source.source_id": "judge",
        "mlflow.overrides": "a-0",
        "mlflow.valid": "false",
        "mlflow.assessment.scorerVersion": "3",
        "team": "blue",
    }
    write_annotations(prefix, [annotation("FEEDBACK", "good", "yes", metadata=json.dumps(metadata), comment="why")])
    archive(lake, store, prefix)
    [found] = Trace.from_json(rows(lake)[trace_id(1)]["trace_json"]).info.assessments
    assert (found.feedback and found.feedback.value, found.rationale) == ("yes", "why")
    assert (found.source.source_type, found.source.source_id) == ("LLM_JUDGE", "judge")
    assert (found.overrides, found.valid) == ("a-0", False)
    assert found.metadata == {"mlflow.assessment.scorerVersion": "3", "team": "blue"}


@pytest.mark.parametrize("order", [1, -1])
def test_the_latest_version_of_an_annotation_counts(store: Store, lake: LakeResource, prefix: str, order: int) -> None:
    write_spans(prefix, spans_of(logged(store, 1)))
    first = annotation("TAG", "team", "blue")
    second = {**first, "value": '"red"', "updated_at": first["updated_at"] + timedelta(days=20)}
    other = annotation("TAG", "kept", "as it was")
    for row in [first, second, other][::order]:
        write_annotations(prefix, [row])
    archive(lake, store, prefix)
    assert rows(lake)[trace_id(1)]["tags"] == {"team": "red", "kept": "as it was"}


@pytest.mark.parametrize("later", [timedelta(), timedelta(days=20)])
def test_a_deleted_annotation_is_left_out(store: Store, lake: LakeResource, prefix: str, later: timedelta) -> None:
    write_spans(prefix, spans_of(logged(store, 1)))
    tag = annotation("TAG", "team", "blue")
    write_annotations(prefix, [tag])
    archive(lake, store, prefix)
    assert rows(lake)[trace_id(1)]["tags"] == {"team": "blue"}
    changed = tag["updated_at"] + later
    write_annotations(prefix, [{**tag, "updated_at": changed, "deleted_at": changed}])
    assert archive(lake, store, prefix).written == 1
    assert rows(lake)[trace_id(1)]["tags"] == {}


def test_a_run_link_names_the_run(store: Store, lake: LakeResource, prefix: str) -> None:
    write_spans(prefix, spans_of(logged(store, 1)))
    links = [annotation("RUN_LINK", f"run {n}", f"run {n}", created_at=START + n * MINUTE) for n in (2, 1)]
    write_annotations(prefix, links)
    archive(lake, store, prefix)
    assert rows(lake)[trace_id(1)]["run_id"] == "run 1"


def test_spans_alone_are_enough_in_version_1(store: Store, lake: LakeResource, prefix: str) -> None:
    write_spans(prefix, spans_of(logged(store, 1)))
    assert archive(lake, store, prefix) == ArchiveCounts(read=1, written=1)


# ---- names ----


@pytest.mark.parametrize(
    ("place", "kind"), [("main.agents.support", "uc_table_prefix"), ("main.agents", "uc_schema"), (None, None)]
)
def test_traces_of_a_catalog_are_named_after_it(place: str | None, kind: str | None) -> None:
    [span] = two_spans(START, START)[:1]
    name = trace_id(1) if place is None else f"trace:/{place}/{1:032x}"
    row = {"trace_id": name, "spans": [json.dumps(span)], "annotations": None}
    trace = Trace.from_json(build_trace(row, place, None).to_json())
    assert trace.info.trace_id == trace.data.spans[0].trace_id == name
    location = trace.info.trace_location.to_dict()
    assert (kind is None and len(location) == 1) or kind in location


# ---- invalid tables and rows ----


def test_a_missing_table_is_named(store: Store, lake: LakeResource, prefix: str) -> None:
    with pytest.raises(
        TrackingError, match=rf"^cannot read the table {prefix}_otel_spans: .*check \[archive\] location$"
    ):
        archive(lake, store, prefix)


def test_a_missing_optional_table_is_not_logged(
    store: Store, lake: LakeResource, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_spans(prefix, spans_of(logged(store, 1)))
    assert lake.spark.session
    log = logging.getLogger("pyspark.sql.connect.logging")
    log.disabled = False  # as after a call of logging.config; pyspark disables it when it is imported
    assert archive(lake, store, prefix) == ArchiveCounts(read=1, written=1)
    assert [record.name for record in caplog.records if record.name == log.name] == []


@pytest.mark.parametrize("column", ["trace_id", "start_time_unix_nano", "attributes"])
def test_a_missing_column_of_spans_is_named(store: Store, lake: LakeResource, prefix: str, column: str) -> None:
    schema = OTEL_SPAN_V1.remove(OTEL_SPAN_V1.get_field_index(column))
    write(Path(f"{prefix}_otel_spans"), spans_of(logged(store, 1)), schema)
    with pytest.raises(TrackingError) as raised:
        archive(lake, store, prefix)
    assert str(raised.value) == (
        f"the table {prefix}_otel_spans has no column {column}; check [archive] source and location"
    )


def test_a_missing_column_of_annotations_is_named(store: Store, lake: LakeResource, prefix: str) -> None:
    write_spans(prefix, spans_of(logged(store, 1)))
    schema = OTEL_ANNOTATION.remove(OTEL_ANNOTATION.get_field_index("updated_at"))
    write(Path(f"{prefix}_otel_annotations"), [annotation("TAG", "team", "blue")], schema)
    with pytest.raises(TrackingError, match="has no column updated_at; check"):
        archive(lake, store, prefix)


@pytest.mark.parametrize(
    "broken",
    [
        lambda row: {**row, "span_id": "<script>"},
        lambda row: {**row, "span_id": None},
        lambda row: {**row, "trace_id": "no hexadecimal"},
        lambda row: {**row, "status": {"code": "FINE"}},
    ],
)
def test_rows_that_are_not_a_trace_are_quarantined(
    store: Store, lake: LakeResource, prefix: str, broken: Callable[[Row], Row]
) -> None:
    bad, good = spans_of(logged(store, 1), logged(store, 2))
    write_spans(prefix, [broken(bad), good])
    assert archive(lake, store, prefix) == ArchiveCounts(read=2, written=1, quarantined=1)
    [kept] = rows(lake, QUARANTINED_TRACES).values()
    assert kept["trace_hour"] == START
    assert kept["reason"]
    assert "span 1" in kept["raw"]


def test_a_malformed_assessment_quarantines_only_its_trace(store: Store, lake: LakeResource, prefix: str) -> None:
    write_spans(prefix, spans_of(logged(store, 1), logged(store, 2)))
    write_annotations(prefix, [annotation("EXPECTATION", "facts", None)])
    assert archive(lake, store, prefix) == ArchiveCounts(read=2, written=1, quarantined=1)
