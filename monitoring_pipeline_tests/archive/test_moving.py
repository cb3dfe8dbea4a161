"""A trace whose start moves to another hour is archived once, with its results, and is not scored again."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from monitoring_pipeline.archive.merging import ArchiveCounts
from monitoring_pipeline.archive.window import archive_window
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.rows import from_dicts
from monitoring_pipeline.resources.tombstones import trace_digest
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.settings import ArchiveSettings, RedactSettings
from monitoring_pipeline.sources import mlflow as mlflow_source
from monitoring_pipeline.tables import (
    AGENT_TRACES,
    ASSESSMENTS,
    DELETED_TRACES,
    NOT_APPLICABLE,
    WRITTEN_BACK,
    Table,
)
from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests.sources.archived_tables import (
    ARCHIVED_TRACE,
    OTEL_SPAN_V1,
    archived_rows,
    as_v1,
    span_rows,
    write,
)
from monitoring_pipeline_tests.sources.stores import HOUR, START, Store, span_json, trace_id

BEFORE = Window(START - timedelta(hours=1), START)


def archived(store: Store, lake: LakeResource, window: Window, source: Any = "mlflow") -> ArchiveCounts:
    return archive_window(ArchiveSettings(source=source), TrackingResource(tracking_uri=store.uri), lake, window)


def places(lake: LakeResource, table: Table = AGENT_TRACES) -> list[tuple[str, int]]:
    """Trace ids and hours, counted from START."""
    rows = lake.read_columns(table, Window(BEFORE.start, HOUR.end), "trace_id", "trace_hour").to_pylist()
    return sorted((row["trace_id"], (row["trace_hour"] - START) // timedelta(hours=1)) for row in rows)


def results(lake: LakeResource, number: int) -> None:
    """Write rows of the trace into three tables, under the hour of START."""
    ids = {"trace_id": trace_id(number), "trace_hour": START, "assessment_id": f"a-{number}"}
    row = {**ids, "scorer": "s", "scorer_digest": "d", "assessed_at": START}
    lake.insert(ASSESSMENTS, from_dicts(ASSESSMENTS, [{**row, "rationale": "because", "score": 1.0}]))
    lake.insert(NOT_APPLICABLE, from_dicts(NOT_APPLICABLE, [row]))
    lake.insert(WRITTEN_BACK, from_dicts(WRITTEN_BACK, [{**row, "outcome": "written"}]))


def lower_start(store: Store, number: int) -> None:
    """Log a late span that began an hour earlier: MLflow then lowers the trace's start."""
    from mlflow.entities import Span

    late = span_json(number, 2, started=START - timedelta(minutes=30))
    store.client.log_spans(store.experiment_id, [Span.from_dict(late)])


@pytest.mark.parametrize("source", ["mlflow", "mlflow-sql"])
@pytest.mark.parametrize(
    "windows",
    [[HOUR, BEFORE], [BEFORE, HOUR], [Window(BEFORE.start, HOUR.end)]],
    ids=["its old hour first", "its new hour first", "both at once"],
)
def test_a_moved_trace_is_archived_once_with_its_results(
    store: Store, lake: LakeResource, source: str, windows: list[Window]
) -> None:
    for number in (1, 2):
        store.log(number)
    archived(store, lake, HOUR, source)
    results(lake, 1)
    results(lake, 2)
    lower_start(store, 1)
    moved = [archived(store, lake, window, source).moved for window in windows]

    assert sum(moved) == 1
    assert places(lake) == [(trace_id(1), -1), (trace_id(2), 0)]
    for table in (ASSESSMENTS, NOT_APPLICABLE, WRITTEN_BACK):
        assert places(lake, table) == [(trace_id(1), -1), (trace_id(2), 0)]
    [kept] = lake.read(ASSESSMENTS, BEFORE).toArrow().to_pylist()
    assert (kept["rationale"], kept["score"], kept["assessment_id"]) == ("because", 1.0, "a-1")
    assert len(lake.read(AGENT_TRACES, BEFORE).toArrow()["spans"][0]) == 2


def test_a_trace_that_was_deleted_at_the_source_stays(store: Store, lake: LakeResource) -> None:
    for number in (1, 2):
        store.log(number)
    archived(store, lake, HOUR)
    store.client.delete_traces(store.experiment_id, trace_ids=[trace_id(1)])
    assert archived(store, lake, HOUR).moved == 0
    assert places(lake) == [(trace_id(1), 0), (trace_id(2), 0)]


def test_only_traces_that_were_not_seen_are_looked_up(
    store: Store, lake: LakeResource, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[list[str]] = []
    infos = mlflow_source._infos
    monkeypatch.setattr(mlflow_source, "_infos", lambda client, ids: looked_up.append(ids) or infos(client, ids))
    for number in (1, 2, 3):
        store.log(number)
    archived(store, lake, HOUR)
    archived(store, lake, HOUR)
    assert looked_up == []

    lower_start(store, 2)
    archived(store, lake, HOUR)
    assert looked_up == [[trace_id(2)]]


@pytest.mark.parametrize("fails_in", ["insert", "remove"])
def test_an_interrupted_move_is_completed_by_the_next_run(
    store: Store, lake: LakeResource, monkeypatch: pytest.MonkeyPatch, fails_in: str
) -> None:
    store.log(1)
    archived(store, lake, HOUR)
    results(lake, 1)
    lower_start(store, 1)
    with monkeypatch.context() as patch:
        patch.setattr(LakeResource, fails_in, lambda *arguments: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            archived(store, lake, HOUR)
    assert (trace_id(1), 0) in places(lake)

    archived(store, lake, HOUR)
    for table in (AGENT_TRACES, ASSESSMENTS, NOT_APPLICABLE, WRITTEN_BACK):
        assert places(lake, table) == [(trace_id(1), -1)]


def test_a_trace_from_tables_moves_when_its_new_hour_is_archived(
    store: Store, lake: LakeResource, tmp_path: Path
) -> None:
    store.log(1)
    source = ArchiveSettings(source="otel", location=str(tmp_path / "agent"))

    def write_and_archive(window: Window) -> ArchiveCounts:
        trace = store.client.get_trace(trace_id(1))
        shutil.rmtree(f"{source.location}_otel_spans", ignore_errors=True)
        write(Path(f"{source.location}_otel_spans"), [as_v1(row) for row in span_rows([trace])], OTEL_SPAN_V1)
        return archive_window(source, TrackingResource(tracking_uri=store.uri, experiments=["made"]), lake, window)

    write_and_archive(HOUR)
    assert len(places(lake)) == 1
    lower_start(store, 1)
    assert write_and_archive(HOUR).moved == 0
    assert write_and_archive(BEFORE).moved == 1
    assert [hour for _, hour in places(lake)] == [-1]


def test_traces_from_tables_are_redacted_and_deleted_ones_left_out(
    store: Store, lake: LakeResource, tmp_path: Path
) -> None:
    text = json.dumps({"to": "jane@example.com"})
    for number in (1, 2):
        store.log(number, [span_json(number, attributes={"mlflow.spanInputs": text})], tags={"who": "jane@example.com"})
    table = tmp_path / "archived"
    write(table, archived_rows([store.client.get_trace(trace_id(number)) for number in (1, 2)]), ARCHIVED_TRACE)
    row = {"trace_digest": trace_digest(trace_id(2)), "trace_hour": START, "requested_at": START}
    lake.insert(DELETED_TRACES, from_dicts(DELETED_TRACES, [row]))
    source = ArchiveSettings(source="delta", location=str(table), redact=RedactSettings(detectors=["email"]))
    counts = archive_window(source, TrackingResource(tracking_uri=store.uri), lake, HOUR)

    assert (counts.read, counts.written, counts.deleted) == (2, 1, 1)
    [kept] = lake.read(AGENT_TRACES).toArrow().to_pylist(maps_as_pydicts="strict")
    assert "jane" not in json.dumps(kept, default=str)
    assert kept["redactions"] == dict(counts.redactions)
    assert json.loads(kept["request"]) == {"to": "[redacted:email]"}
