"""Tables of archived traces as they occur: repeated rows, other formats, and malformed rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from mlflow.entities import AssessmentError, AssessmentSource, Expectation, Feedback, Trace

from monitoring_pipeline.archive.merging import ArchiveCounts
from monitoring_pipeline.archive.window import archive_window
from monitoring_pipeline.errors import TrackingError
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.settings import ArchiveSettings
from monitoring_pipeline.tables import AGENT_TRACES, QUARANTINED_TRACES, Table
from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests.sources.archived_tables import ARCHIVED_TRACE, archived_rows, write
from monitoring_pipeline_tests.sources.stores import HOUR, START, START_MS, Store, span_json, trace_id

DAY = Window(START, START + timedelta(days=1))
Row = dict[str, Any]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "archived traces"  # a folder whose name Sail cannot read


@pytest.fixture
def logged(store: Store) -> list[Row]:
    """Three traces of the store as rows of the table: a good one, one with assessments, one with an error."""
    store.log(1, [span_json(1), span_json(1, 2, parent=1, events=[event()])], tags={"team": "blue"})
    judged = AssessmentSource("LLM_JUDGE", "judge")
    store.log(
        2,
        assessments=[
            Feedback(name="good", value="no", rationale="rude", source=judged, metadata={"mlflow.assessment.x": "1"}),
            Feedback(name="broken", error=AssessmentError("LIMIT", "too many")),
            Expectation(name="facts", value=["a", {"b": 1}]),
        ],
    )
    store.log(3, [span_json(3, status={"code": "STATUS_CODE_ERROR", "message": "it broke"})])
    return archived_rows([given(store, number) for number in (1, 2, 3)])


def event() -> Row:
    return {"name": "retry", "time_unix_nano": START_MS * 10**6, "attributes": {"attempt": 2}}


def given(store: Store, number: int) -> Trace:
    return store.client.get_trace(trace_id(number))


def archive(lake: LakeResource, store: Store, table: Path, window: Window = HOUR, **settings: Any) -> ArchiveCounts:
    tracking = TrackingResource(tracking_uri=store.uri, **({"experiments": ["made"]} | settings))
    return archive_window(ArchiveSettings(source="delta", location=str(table)), tracking, lake, window)


def rows(lake: LakeResource, table: Table = AGENT_TRACES) -> dict[str, Row]:
    found = lake.read_columns(table, DAY, *(name for name in table.schema.names if name != "created_at"))
    assert len(set(found["trace_id"].to_pylist())) == found.num_rows
    return {row["trace_id"]: row for row in found.to_pylist(maps_as_pydicts="strict")}


def test_the_traces_equal_those_of_mlflow(store: Store, logged: list[Row], lake: LakeResource, table: Path) -> None:
    write(table, logged, ARCHIVED_TRACE)
    assert archive(lake, store, table) == ArchiveCounts(read=3, written=3)
    found = rows(lake)
    assert {key: json.loads(row["trace_json"]) for key, row in found.items()} == {
        trace_id(number): given(store, number).to_dict() for number in (1, 2, 3)
    }
    assert {row["experiment_name"] for row in found.values()} == {"made"}


def test_the_window_is_half_open(store: Store, logged: list[Row], lake: LakeResource, table: Path) -> None:
    times = (START - timedelta(microseconds=1), START, HOUR.end - timedelta(microseconds=1), HOUR.end)
    moved = [{**logged[0], "trace_id": trace_id(n), "request_time": time} for n, time in enumerate(times)]
    write(table, moved, ARCHIVED_TRACE)
    assert archive(lake, store, table).read == 2
    assert rows(lake).keys() == {trace_id(1), trace_id(2)}


# ---- repeated rows ----


def in_progress(row: Row) -> Row:
    return {**row, "state": "IN_PROGRESS", "spans": row["spans"][1:], "execution_duration_ms": None}


def without_feedback(row: Row) -> Row:
    return {**row, "assessments": row["assessments"][1:]}


def before_a_change_of_feedback(row: Row) -> Row:
    first, *others = row["assessments"]
    earlier = {**first, "feedback": {"value": '"yes"'}, "last_update_time": first["create_time"] - timedelta(minutes=1)}
    return {
        **row,
        "assessments": [
            earlier,
            *({**other, "last_update_time": first["create_time"] - timedelta(minutes=1)} for other in others),
        ],
    }


def without_tags(row: Row) -> Row:
    return {**row, "tags": {}}


@pytest.mark.parametrize("earlier", [in_progress, without_feedback, before_a_change_of_feedback, without_tags])
@pytest.mark.parametrize("order", [1, -1])
def test_the_latest_of_repeated_rows_counts(
    store: Store, logged: list[Row], lake: LakeResource, table: Path, earlier: Callable[[Row], Row], order: int
) -> None:
    for row in [earlier(logged[1]), logged[1], logged[1]][::order]:
        write(table, [row], ARCHIVED_TRACE)
    assert archive(lake, store, table) == ArchiveCounts(read=1, written=1)
    assert json.loads(rows(lake)[trace_id(2)]["trace_json"]) == given(store, 2).to_dict()


def test_a_row_appended_later_updates_the_archive(
    store: Store, logged: list[Row], lake: LakeResource, table: Path
) -> None:
    write(table, [in_progress(logged[0])], ARCHIVED_TRACE)
    assert archive(lake, store, table).written == 1
    assert rows(lake)[trace_id(1)]["trace_info"]["status"] == "IN_PROGRESS"
    write(table, [logged[0]], ARCHIVED_TRACE)
    assert archive(lake, store, table).written == 1
    assert archive(lake, store, table).written == 0
    assert json.loads(rows(lake)[trace_id(1)]["trace_json"]) == given(store, 1).to_dict()


# ---- formats ----


def milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def respelled(row: Row) -> Row:
    """The row in another format: times as numbers, structs and JSON instead of text or a map."""
    return {
        "request_id": row["trace_id"],
        "timestamp_ms": milliseconds(row["request_time"]),
        "status": row["state"],
        "execution_time_ms": row["execution_duration_ms"] and int(row["execution_duration_ms"]),
        "request_preview": row["request"],
        "response_preview": row["response"],
        "request_metadata": json.dumps(row["trace_metadata"]),
        "tags": json.dumps(row["tags"]),
        "experiment_id": row["trace_location"]["mlflow_experiment"]["experiment_id"],
        "spans": [
            {
                "span_id": span["span_id"],
                "parent_span_id": span["parent_id"],
                "start_time_unix_nano": milliseconds(span["start_time"]) * 10**6,
                "end_time_unix_nano": milliseconds(span["end_time"]) * 10**6,
                "status": {"code": f"STATUS_CODE_{span['status_code']}", "message": span["status_message"]},
                "name": span["name"],
                "attributes": json.dumps({key: json.loads(value) for key, value in span["attributes"].items()}),
                "events": json.dumps(
                    [
                        {
                            "name": event["name"],
                            "time_unix_nano": milliseconds(event["timestamp"]) * 10**6,
                            "attributes": {key: json.loads(value) for key, value in event["attributes"].items()},
                        }
                        for event in span["events"]
                    ]
                ),
            }
            for span in row["spans"]
        ],
        "assessments": [
            {
                "assessment_id": entry["assessment_id"],
                "name": entry["assessment_name"],
                "source": entry["source"],
                "create_time_ms": milliseconds(entry["create_time"]),
                "last_update_time_ms": milliseconds(entry["last_update_time"]),
                "expectation": entry["expectation"],
                "feedback": entry["feedback"] and {"value": plain(entry["feedback"]["value"])},
                "error": (entry["feedback"] or {}).get("error"),
                "rationale": entry["rationale"],
                "metadata": json.dumps(entry["metadata"]),
            }
            for entry in row["assessments"]
        ],
    }


def plain(value: str) -> str | None:
    """A JSON text without its quotes."""
    return json.loads(value)


def test_other_formats_yield_the_same_traces(store: Store, logged: list[Row], lake: LakeResource, table: Path) -> None:
    spelled = pa.Table.from_pylist([respelled(row) for row in logged])
    write_deltalake(table, spelled.select([field.name for field in spelled.schema if field.type != pa.null()]))
    assert archive(lake, store, table) == ArchiveCounts(read=3, written=3)
    assert {key: json.loads(row["trace_json"]) for key, row in rows(lake).items()} == {
        trace_id(number): given(store, number).to_dict() for number in (1, 2, 3)
    }


def test_optional_columns_may_be_missing(store: Store, logged: list[Row], lake: LakeResource, table: Path) -> None:
    needed = ("trace_id", "request_time", "state", "spans")
    schema = pa.schema([ARCHIVED_TRACE.field(name) for name in needed])
    write(table, [{name: row[name] for name in needed} for row in logged], schema)
    assert archive(lake, store, table) == ArchiveCounts(read=3, written=3)
    row = rows(lake)[trace_id(1)]
    assert (row["experiment_name"], len(row["spans"]), row["assessments"]) == ("made", 2, [])


# ---- experiments ----


def of_another_experiment(row: Row) -> Row:
    location = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "404"}}
    return {**row, "trace_id": trace_id(404), "trace_location": location}


def test_other_experiments_are_left_out(store: Store, logged: list[Row], lake: LakeResource, table: Path) -> None:
    write(table, [*logged, of_another_experiment(logged[0])], ARCHIVED_TRACE)
    assert archive(lake, store, table).read == 3
    assert archive(lake, store, table, experiments=[]).read == 4
    assert rows(lake)[trace_id(404)]["experiment_id"] == "404"


# ---- invalid tables and rows ----


def test_a_missing_table_is_named(store: Store, lake: LakeResource, table: Path) -> None:
    with pytest.raises(TrackingError, match=rf"^cannot read the table {table}: .*; check \[archive\] location$"):
        archive(lake, store, table)


def test_a_catalog_needs_a_spark_server(store: Store, lake: LakeResource) -> None:
    with pytest.raises(
        TrackingError, match=r"^the table main\.agents\.archived is in a catalog, .* set \[spark\] remote"
    ):
        archive(lake, store, Path("main.agents.archived"))


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("trace_id", "trace_id or request_id"),
        ("request_time", "request_time or timestamp_ms or timestamp"),
        ("state", "state or status"),
        ("spans", "spans"),
    ],
)
def test_a_missing_column_is_named(
    store: Store, logged: list[Row], lake: LakeResource, table: Path, name: str, columns: str
) -> None:
    write(table, logged, ARCHIVED_TRACE.remove(ARCHIVED_TRACE.get_field_index(name)))
    with pytest.raises(TrackingError) as raised:
        archive(lake, store, table)
    assert str(raised.value) == f"the table {table} has no column {columns}; check [archive] source and location"


def broken_span(row: Row, **changes: Any) -> Row:
    return {**row, "spans": [{**row["spans"][0], **changes}]}


@pytest.mark.parametrize(
    "broken",
    [
        lambda row: {**row, "trace_id": None},
        lambda row: {**row, "state": "DONE"},
        lambda row: broken_span(row, span_id="<script>"),
        lambda row: broken_span(row, span_id=None),
        lambda row: broken_span(row, start_time=None),
        lambda row: broken_span(row, status_code="FINE"),
        lambda row: {**row, "assessments": [{"assessment_name": "without a source"}]},
    ],
)
def test_a_row_that_is_not_a_trace_is_quarantined(
    store: Store, logged: list[Row], lake: LakeResource, table: Path, broken: Callable[[Row], Row]
) -> None:
    write(table, [*logged[1:], broken(logged[0])], ARCHIVED_TRACE)
    assert archive(lake, store, table) == ArchiveCounts(read=3, written=2, quarantined=1)
    [kept] = rows(lake, QUARANTINED_TRACES).values()
    assert (kept["trace_hour"], bool(kept["reason"])) == (START, True)
    assert "span 1" in kept["raw"]


def test_a_repaired_row_leaves_the_quarantine(store: Store, logged: list[Row], lake: LakeResource, table: Path) -> None:
    write(table, [{**logged[0], "state": "A_NEW_ONE", "tags": {}}], ARCHIVED_TRACE)
    assert archive(lake, store, table).quarantined == 1
    write(table, [logged[0]], ARCHIVED_TRACE)
    assert archive(lake, store, table) == ArchiveCounts(read=1, written=1)
    assert rows(lake, QUARANTINED_TRACES) == {}


def test_an_impossible_time_does_not_affect_other_traces(
    store: Store, logged: list[Row], lake: LakeResource, table: Path
) -> None:
    write(table, logged, ARCHIVED_TRACE)
    whole = pa.Table.from_pylist([{**logged[0], "trace_id": trace_id(9)}], schema=ARCHIVED_TRACE)
    spans = whole["spans"].combine_chunks()
    beyond = pa.array([9 * 10**18] * len(spans.values), pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    fields = [spans.values.field(i) for i in range(spans.values.type.num_fields)]
    names = [spans.values.type.field(i).name for i in range(spans.values.type.num_fields)]
    fields[names.index("end_time")] = beyond
    values = pa.StructArray.from_arrays(fields, names=names)
    far = pa.ListArray.from_arrays(spans.offsets, values)
    write_deltalake(
        table, whole.set_column(whole.column_names.index("spans"), ARCHIVED_TRACE.field("spans"), far), mode="append"
    )
    assert archive(lake, store, table).read == 4
    assert rows(lake).keys() >= {trace_id(number) for number in (1, 2, 3)}
