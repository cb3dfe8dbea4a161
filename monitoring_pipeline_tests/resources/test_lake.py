"""The lake: writes are atomic, happen once even with concurrent writers, and are read back unchanged."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitoring_pipeline.errors import LakeError
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.rows import conform, from_dicts
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.tables import AGENT_TRACES, ASSESSMENTS, QUARANTINED_TRACES, TABLES, Table
from monitoring_pipeline.windows import HOUR, Window
from monitoring_pipeline_tests.forks import Fork
from monitoring_pipeline_tests.resources.lake_writer import MIDNIGHT, traces, write

WEEK = Window(MIDNIGHT, MIDNIGHT + timedelta(days=7))
TWO_TO_FOUR = Window(MIDNIGHT + 2 * HOUR, MIDNIGHT + 4 * HOUR)
ROOT = Path(__file__).parents[2]


def stored(lake: LakeResource, version: int | None = None) -> list[tuple[str, int, str]]:
    """The rows made by `traces`, as a plain reader of Delta tables returns them, in order."""
    table = DeltaTable(lake.path(AGENT_TRACES), version=version)
    rows = table.to_pyarrow_table(columns=["trace_id", "trace_hour", "content_digest"]).to_pylist()
    return sorted((row["trace_id"], (row["trace_hour"] - MIDNIGHT) // HOUR, row["content_digest"]) for row in rows)


def through_spark(lake: LakeResource, window: Window | None = None, version: int | None = None) -> pa.Table:
    return (
        lake.read(AGENT_TRACES, window, version)
        .toArrow()
        .sort_by([("trace_hour", "ascending"), ("trace_id", "ascending")])
    )


def ids(rows: pa.Table) -> list[str]:
    return rows["trace_id"].to_pylist()


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_table_is_created_on_first_read(lake: LakeResource, table: Table) -> None:
    assert lake.read(table).count() == 0

    made = DeltaTable(lake.path(table))
    assert pa.schema(made.schema().to_arrow()) == table.schema
    assert made.metadata().partition_columns == ["date"]
    assert table.properties.items() <= made.metadata().configuration.items()


def test_spark_reads_what_was_written(lake: LakeResource) -> None:
    rows = traces(("a", 0, "x"), ("b", 30, "y"))
    lake.insert(AGENT_TRACES, rows)

    assert conform(AGENT_TRACES, through_spark(lake)).equals(conform(AGENT_TRACES, rows))


def test_reading_a_window_is_half_open(lake: LakeResource) -> None:
    lake.insert(AGENT_TRACES, traces(*((f"t{hour}", hour, "x") for hour in range(6))))

    assert ids(through_spark(lake, TWO_TO_FOUR)) == ["t2", "t3"]


def test_reading_columns_is_half_open(lake: LakeResource) -> None:
    lake.insert(AGENT_TRACES, traces(*((f"t{hour}", hour, "x") for hour in range(6))))

    assert sorted(ids(lake.read_columns(AGENT_TRACES, TWO_TO_FOUR, "trace_id"))) == ["t2", "t3"]


def test_an_earlier_version_does_not_change(lake: LakeResource) -> None:
    lake.insert(AGENT_TRACES, traces(("a", 0, "x")))
    version = lake.version(AGENT_TRACES)
    lake.upsert(AGENT_TRACES, traces(("a", 0, "new"), ("b", 0, "x")))

    assert through_spark(lake, WEEK, version)["content_digest"].to_pylist() == ["x"]


def test_versions_before_and_after_a_checkpoint_are_readable(lake: LakeResource) -> None:
    for number in range(8):
        lake.insert(AGENT_TRACES, traces((f"t{number}", 0, "x")))
    DeltaTable(lake.path(AGENT_TRACES)).create_checkpoint()
    lake.insert(AGENT_TRACES, traces(("last", 0, "x")))

    assert [lake.read(AGENT_TRACES, version=version).count() for version in range(10)] == list(range(10))


def test_a_missing_version_is_reported(lake: LakeResource) -> None:
    with pytest.raises(LakeError, match=r"cannot read version 7 of .*agent_traces"):
        lake.read(AGENT_TRACES, version=7)


def test_a_table_with_an_older_schema_gains_missing_columns(lake: LakeResource) -> None:
    older = replace(ASSESSMENTS, schema=pa.schema([c for c in ASSESSMENTS.schema if not c.name.startswith("session")]))
    row = {
        "trace_hour": MIDNIGHT,
        "scorer": "tools",
        "scorer_digest": "d" * 16,
        "assessed_at": MIDNIGHT,
        "score": 0.5,
    }
    old = {**row, "trace_id": "old", "assessment_id": "a-old"}
    lake.insert(older, from_dicts(older, [old]))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: lake.version(ASSESSMENTS), range(4)))
    new = {**row, "trace_id": "new", "assessment_id": "a-new", "session_id": "s", "session_traces": 3}
    lake.insert(ASSESSMENTS, from_dicts(ASSESSMENTS, [new]))
    lake.upsert(ASSESSMENTS, from_dicts(ASSESSMENTS, [{**old, "score": 1.0, "assessed_at": MIDNIGHT + HOUR}]))
    read = lake.read(ASSESSMENTS).select("trace_id", "score", "session_id", "session_traces").toArrow().to_pylist()
    assert sorted(tuple(found.values()) for found in read) == [("new", 0.5, "s", 3), ("old", 1.0, None, None)]


def test_replace_removes_only_rows_inside_the_window(lake: LakeResource) -> None:
    lake.insert(AGENT_TRACES, traces(*((f"t{hour}", hour, "x") for hour in range(6)), ("next day", 26, "x")))

    written = lake.replace(AGENT_TRACES, TWO_TO_FOUR, traces(("new", 3, "y")))

    assert written == 1
    assert stored(lake) == [
        ("new", 3, "y"),
        ("next day", 26, "x"),
        ("t0", 0, "x"),
        ("t1", 1, "x"),
        ("t4", 4, "x"),
        ("t5", 5, "x"),
    ]


def test_replacing_with_no_rows_empties_the_window(lake: LakeResource) -> None:
    lake.insert(AGENT_TRACES, traces(("a", 2, "x"), ("b", 4, "x")))

    lake.replace(AGENT_TRACES, TWO_TO_FOUR, traces())

    assert stored(lake) == [("b", 4, "x")]


@pytest.mark.parametrize("hour", [1, 4], ids=["before the start", "at the end"])
def test_replace_refuses_rows_outside_the_window(lake: LakeResource, hour: int) -> None:
    lake.insert(AGENT_TRACES, traces(("a", 2, "x")))

    with pytest.raises(LakeError, match=r"cannot write .*agent_traces"):
        lake.replace(AGENT_TRACES, TWO_TO_FOUR, traces(("b", hour, "x")))

    assert stored(lake) == [("a", 2, "x")]


@given(start=st.integers(-3, 3), end=st.integers(-3, 3))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_replace_and_read_mean_the_same_window(lake: LakeResource, start: int, end: int) -> None:
    window = Window(
        TWO_TO_FOUR.start + start * timedelta(milliseconds=500), TWO_TO_FOUR.end + end * timedelta(milliseconds=500)
    )
    lake.replace(AGENT_TRACES, WEEK, traces(*((f"t{hour}", hour, "x") for hour in range(6))))
    inside = ids(through_spark(lake, window))

    lake.replace(AGENT_TRACES, window, traces())

    assert {f"t{hour}" for hour in range(6)} - {trace_id for trace_id, _, _ in stored(lake)} == set(inside)


def test_replace_accepts_a_spark_frame(lake: LakeResource) -> None:
    lake.insert(AGENT_TRACES, traces(("a", 2, "x"), ("b", 3, "x")))
    rows = lake.read(AGENT_TRACES, TWO_TO_FOUR)

    lake.replace(AGENT_TRACES, TWO_TO_FOUR, rows.where(rows["trace_id"] == "a"))

    assert stored(lake) == [("a", 2, "x")]


def test_conform_orders_casts_and_dates() -> None:
    rows = pa.table(
        {
            "raw": pa.array([None], pa.null()),
            "reason": pa.array(["x"], pa.large_string()),
            "trace_hour": pa.array([datetime(2026, 1, 1, 23, tzinfo=UTC)], pa.timestamp("ns", "UTC")),
            "trace_id": ["a"],
        }
    )

    assert conform(QUARANTINED_TRACES, rows).to_pylist() == [
        {
            "trace_id": "a",
            "trace_hour": MIDNIGHT + 23 * HOUR,
            "reason": "x",
            "raw": None,
            "date": MIDNIGHT.date(),
        }
    ]


def test_conform_returns_exactly_the_schema() -> None:
    assert conform(AGENT_TRACES, traces(("a", 0, "x"))).schema == AGENT_TRACES.schema


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda rows: rows.drop_columns(["tags"]), "tags"),
        (lambda rows: rows.append_column("extra", rows["tags"]), "extra"),
    ],
    ids=["missing", "unknown"],
)
def test_conform_names_columns_that_do_not_fit(change: Callable[[pa.Table], pa.Table], named: str) -> None:
    with pytest.raises(LakeError, match=named):
        conform(AGENT_TRACES, change(traces(("a", 0, "x"))))


def test_insert_adds_only_missing_rows(lake: LakeResource) -> None:
    lake.insert(AGENT_TRACES, traces(("a", 0, "x"), ("b", 1, "x")))

    added = lake.insert(AGENT_TRACES, traces(("a", 0, "changed"), ("c", 1, "x"), ("d", 30, "x")))

    assert added == 2
    assert stored(lake) == [("a", 0, "x"), ("b", 1, "x"), ("c", 1, "x"), ("d", 30, "x")]


@pytest.mark.parametrize("method", [LakeResource.insert, LakeResource.upsert])
@pytest.mark.parametrize("rows", [traces(("a", 0, "x"), ("b", 30, "x")), traces()], ids=["known rows", "no rows"])
def test_a_write_without_changes_makes_no_commit(
    lake: LakeResource, method: Callable[[LakeResource, Table, pa.Table], int], rows: pa.Table
) -> None:
    lake.insert(AGENT_TRACES, traces(("a", 0, "x"), ("b", 30, "x"), ("c", 1, "x")))
    version = lake.version(AGENT_TRACES)

    assert (method(lake, AGENT_TRACES, rows), lake.version(AGENT_TRACES)) == (0, version)


@pytest.mark.parametrize("method", [LakeResource.insert, LakeResource.upsert])
def test_a_key_given_twice_in_a_call_becomes_one_row(
    lake: LakeResource, method: Callable[[LakeResource, Table, pa.Table], int]
) -> None:
    assert method(lake, AGENT_TRACES, traces(("a", 0, "first"), ("b", 0, "x"), ("a", 0, "last"))) == 2
    assert stored(lake) == [("a", 0, "last"), ("b", 0, "x")]


BEFORE = [("a", 0, "x"), ("b", 0, "x"), ("c", 1, "x"), ("d", 24, "x"), ("e", 50, "x")]


@pytest.mark.parametrize(
    "rows",
    [
        [("a", 0, "y")],
        [("a", 0, "y"), ("new", 0, "z")],
        [("a", 0, "y"), ("new", 1, "z")],
        [("a", 0, "y"), ("new", 5, "z")],
        [("a", 0, "y"), ("d", 24, "y"), ("e", 50, "x"), ("new", 26, "z")],
        [("a", 0, "y"), ("e", 50, "y"), ("c", 1, "y"), ("new", 72, "z")],
        [("a", 0, "y"), ("c", 0, "other hour"), ("b", 24, "other day")],
    ],
    ids=["changed", "same hour", "taken hour", "free hour", "other day", "several days", "known ids in other hours"],
)
def test_upsert_adds_and_replaces_and_keeps_the_rest(lake: LakeResource, rows: list[tuple[str, int, str]]) -> None:
    lake.insert(AGENT_TRACES, traces(*BEFORE))

    touched = lake.upsert(AGENT_TRACES, traces(*rows))

    expected = {(trace_id, hour): content for trace_id, hour, content in [*BEFORE, *rows]}
    assert stored(lake) == sorted((trace_id, hour, content) for (trace_id, hour), content in expected.items())
    assert touched == len(set(rows) - set(BEFORE))


contents = st.dictionaries(
    st.tuples(st.sampled_from("abcd"), st.sampled_from([0, 1, 23, 24, 49])), st.sampled_from("xyz"), max_size=8
)


@given(before=contents, after=contents)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_upsert_behaves_like_an_update_of_a_dictionary(
    lake: LakeResource, before: dict[tuple[str, int], str], after: dict[tuple[str, int], str]
) -> None:
    lake.replace(AGENT_TRACES, WEEK, traces(*((*key, content) for key, content in before.items())))

    lake.upsert(AGENT_TRACES, traces(*((*key, content) for key, content in after.items())))

    assert stored(lake) == sorted((*key, content) for key, content in (before | after).items())


def test_upsert_does_not_change_files_of_other_days(lake: LakeResource) -> None:
    lake.insert(AGENT_TRACES, traces(("a", 0, "x"), ("b", 24, "x")))
    other_day = {uri for uri in DeltaTable(lake.path(AGENT_TRACES)).file_uris() if "2026-01-02" in uri}

    lake.upsert(AGENT_TRACES, traces(("a", 0, "y")))

    assert other_day <= set(DeltaTable(lake.path(AGENT_TRACES)).file_uris())


@pytest.mark.parametrize(
    "text",
    [
        "\x00",
        "a\x00b",
        "'; DROP TABLE agent_traces; --",
        '"quoted"',
        "back\\slash",
        "🦜\u202e\ufeff",
        "line\r\nline",
        "x" * 5 * 2**20,
    ],
    ids=["NUL", "NUL inside", "SQL", "quotes", "backslash", "emoji", "lines", "5 MB"],
)
def test_hostile_text_survives_every_write(lake: LakeResource, text: str) -> None:
    lake.insert(AGENT_TRACES, traces((text, 2, text), ("b", 2, "x")))
    lake.upsert(AGENT_TRACES, traces((text, 2, text + "!"), ("b", 2, "y")))
    lake.replace(AGENT_TRACES, TWO_TO_FOUR, lake.read(AGENT_TRACES, TWO_TO_FOUR))

    rows = lake.read(AGENT_TRACES, TWO_TO_FOUR).toArrow()

    assert sorted(zip(rows["trace_id"].to_pylist(), rows["content_digest"].to_pylist(), strict=True)) == sorted(
        [(text, text + "!"), ("b", "y")]
    )


@pytest.mark.parametrize(
    "location", ["file", "file/below", "nul\x00", "far" * 100], ids=["file", "below", "NUL", "long"]
)
def test_an_impossible_location_is_reported_with_its_path(tmp_path: Path, spark: SparkResource, location: str) -> None:
    (tmp_path / "file").touch()
    lake = LakeResource(location=str(tmp_path / location), spark=spark)

    for use in (lambda: lake.read(AGENT_TRACES), lambda: lake.insert(AGENT_TRACES, traces(("a", 0, "x")))):
        with pytest.raises(LakeError, match=r"cannot open .*/(agent|deleted)_traces'?: .*\[lake\] location"):
            use()


@pytest.mark.parametrize("folder", ["50%", "[a]", "a|b", "^", "back\\slash", "tab\t"])
def test_a_path_that_cannot_be_written_is_refused_before_anything_is_written(
    tmp_path: Path, spark: SparkResource, folder: str
) -> None:
    lake = LakeResource(location=str(tmp_path / folder), spark=spark)

    with pytest.raises(LakeError, match=r"\[lake\] location"):
        lake.insert(AGENT_TRACES, traces(("a", 0, "x")))

    assert not (tmp_path / folder).exists()


@pytest.mark.parametrize("folder", ["!$&'()+,-.:;=@_", "My Projects", "ü", "a#b", "a?b", "*", "~", '{}"<>`'])
def test_any_other_path_can_be_written_and_read(tmp_path: Path, spark: SparkResource, folder: str) -> None:
    lake = LakeResource(location=str(tmp_path / folder), spark=spark)
    lake.insert(AGENT_TRACES, traces(("a", 0, "x")))

    assert ids(through_spark(lake)) == ["a"]


def test_a_corrupt_table_is_reported_with_its_path(lake: LakeResource) -> None:
    log = Path(lake.path(AGENT_TRACES)) / "_delta_log"
    log.mkdir(parents=True)
    (log / "00000000000000000000.json").write_text("garbage", encoding="utf-8")

    with pytest.raises(LakeError, match=r"cannot open .*/agent_traces: "):
        lake.read(AGENT_TRACES)


def test_changing_a_row_takes_no_more_memory_in_a_larger_table(tmp_path: Path) -> None:
    few, many = (_memory_of_a_change(tmp_path / f"{rows}", rows) for rows in (500, 5_000))

    assert many - few < 45  # MB; the second table has 90 MB more text


def _memory_of_a_change(location: Path, rows: int) -> float:
    for method in ("stock", "change"):
        output = location.with_suffix(f".{method}")
        assert _writer(output, method, location, rows).wait() == 0, output.read_text()
    return float(output.read_text())


def _writer(output: Path, method: str, location: Path | str, number: int) -> Fork:
    """A process that writes, with what it prints in the file."""
    return Fork(write, (method, str(location), number), ROOT, os.environ, output, output)


def test_maintenance_compacts_and_changes_no_row(lake: LakeResource) -> None:
    for number in range(6):
        lake.insert(AGENT_TRACES, traces((f"t{number}", number, "x" * 40), (f"n{number}", 24 + number, "x")))
    lake.upsert(AGENT_TRACES, traces(("t0", 0, "changed")))
    before, rows_before = through_spark(lake), stored(lake)

    counts = lake.maintain(AGENT_TRACES)

    assert counts["files_removed"] > counts["files_added"] == 2
    assert stored(lake) == rows_before
    assert through_spark(lake).equals(before)


def test_compacted_files_can_be_filtered_and_changed(lake: LakeResource) -> None:
    for hour in range(6):
        lake.insert(AGENT_TRACES, traces((f"t{hour}", hour, "x" * 40)))
    lake.maintain(AGENT_TRACES)
    lake.upsert(AGENT_TRACES, traces(("t2", 2, "changed"), ("new", 3, "x")))
    lake.replace(AGENT_TRACES, Window(MIDNIGHT, MIDNIGHT + HOUR), traces())

    rows = lake.read(AGENT_TRACES, TWO_TO_FOUR)

    assert ids(
        rows.where((rows["tags"]["environment"] == "production") & (rows["trace_id"] != "t3"))
        .orderBy("trace_id")
        .toArrow()
    ) == ["new", "t2"]


def test_maintenance_leaves_earlier_versions_readable(lake: LakeResource) -> None:
    for hour in range(3):
        lake.insert(AGENT_TRACES, traces((f"t{hour}", hour, "x")))
    version = lake.version(AGENT_TRACES) - 1
    lake.maintain(AGENT_TRACES)

    assert ids(through_spark(lake, version=version)) == ["t0", "t1"]


def test_maintenance_refuses_to_delete_files_that_readers_may_use(lake: LakeResource) -> None:
    lake.insert(AGENT_TRACES, traces(("a", 0, "x")))

    with pytest.raises(LakeError, match="retention"):
        lake.maintain(AGENT_TRACES, retention_hours=0)


def test_maintenance_a_second_time_finds_nothing(lake: LakeResource) -> None:
    for hour in range(3):
        lake.insert(AGENT_TRACES, traces((f"t{hour}", hour, "x")))
    lake.maintain(AGENT_TRACES)
    version = lake.version(AGENT_TRACES)

    assert lake.maintain(AGENT_TRACES)["files_removed"] == 0
    assert stored(lake) == [("t0", 0, "x"), ("t1", 1, "x"), ("t2", 2, "x")]
    assert version <= lake.version(AGENT_TRACES)


def _assert_whole(lake: LakeResource, expected_ids: set[str]) -> None:
    """No id is missing or duplicated, and Spark sees the same."""
    counts = Counter(trace_id for trace_id, _, _ in stored(lake))
    assert set(counts) == expected_ids
    assert set(counts.values()) == {1}
    assert sorted(ids(through_spark(lake))) == sorted(counts)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_table_may_be_created_concurrently(lake: LakeResource, table: Table) -> None:
    barrier = threading.Barrier(8)

    def first_use(_: int) -> int:
        barrier.wait()
        return lake.version(table)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(first_use, range(8))) == [0] * 8


def test_concurrent_threads_lose_and_duplicate_nothing(lake: LakeResource) -> None:
    def write(writer: int) -> None:
        for turn in range(4):
            rows = traces(
                *((f"t{number}", number % 3 * 24, f"{writer}.{turn}") for number in range(writer, writer + 12))
            )
            (lake.upsert if writer % 2 else lake.insert)(AGENT_TRACES, rows)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))

    _assert_whole(lake, {f"t{number}" for number in range(17)})


def test_concurrent_processes_lose_and_duplicate_nothing(lake: LakeResource, tmp_path: Path) -> None:
    commands = [("upsert", 0), ("upsert", 6), ("insert", 0), ("insert", 12), ("maintain", 0)]
    outputs = [tmp_path / f"output-{number}" for number in range(len(commands))]

    writers = [
        _writer(output, method, lake.location, first) for output, (method, first) in zip(outputs, commands, strict=True)
    ]

    ended = [writer.wait(120) for writer in writers]
    assert ended == [0] * len(writers), [output.read_text() for output in outputs]
    _assert_whole(lake, {f"t{number}" for number in range(12 + 20)})


def test_concurrent_replace_and_upsert_change_only_their_rows(lake: LakeResource) -> None:
    def replace(turn: int) -> None:
        lake.replace(AGENT_TRACES, TWO_TO_FOUR, traces(("inside", 2, f"{turn}")))

    def upsert(turn: int) -> None:
        lake.upsert(AGENT_TRACES, traces(("outside", 10, f"{turn}"), (f"new{turn}", 10, "x")))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda turn: (replace if turn % 2 else upsert)(turn), range(16)))

    _assert_whole(lake, {"inside", "outside", *(f"new{turn}" for turn in range(0, 16, 2))})


def _lines(output: Path) -> list[str]:
    return output.read_text().splitlines() if output.exists() else []


@pytest.mark.parametrize("commits_before_kill", [1, 5])
def test_a_killed_writer_leaves_a_consistent_table_that_a_second_run_completes(
    lake: LakeResource, commits_before_kill: int, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    writer = _writer(output, "many", lake.location, 0)
    while writer.poll() is None and len(_lines(output)) < commits_before_kill:
        time.sleep(0.005)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    left = ids(through_spark(lake))
    assert commits_before_kill <= len(left) == len(set(left)) < 40

    assert _writer(output, "many", lake.location, 0).wait() == 0, output.read_text()

    _assert_whole(lake, {f"t{number}" for number in range(40)})
    assert {content for _, _, content in stored(lake)} == {"many"}


def test_counts_of_overlapping_inserts_add_up(lake: LakeResource) -> None:
    rows = traces(*((f"t{number}", 0, "x") for number in range(50)))

    with ThreadPoolExecutor(4) as pool:
        added = sum(pool.map(lambda _: lake.insert(AGENT_TRACES, rows), range(4)))

    assert (added, len(stored(lake))) == (50, 50)


# ---- removal ----


def test_rows_are_removed_by_id_only_within_the_window(lake: LakeResource) -> None:
    lake.insert(AGENT_TRACES, traces(("a", 0, "x"), ("b", 0, "x"), ("a", 2, "x"), ("it's", 3, "x")))

    assert lake.remove(AGENT_TRACES, TWO_TO_FOUR, "trace_id", {"a", "it's", "not there"}) == 2
    assert stored(lake) == [("a", 0, "x"), ("b", 0, "x")]


def test_removing_missing_rows_makes_no_commit(lake: LakeResource) -> None:
    lake.insert(AGENT_TRACES, traces(("a", 0, "x")))
    version = lake.version(AGENT_TRACES)

    assert lake.remove(AGENT_TRACES, WEEK, "trace_id", {"b"}) == 0
    assert lake.remove(AGENT_TRACES, WEEK, "trace_id", set()) == 0
    assert lake.remove_before(AGENT_TRACES, MIDNIGHT.date()) == 0
    assert lake.version(AGENT_TRACES) == version


def test_whole_days_are_removed_without_writing_a_file(lake: LakeResource) -> None:
    lake.insert(AGENT_TRACES, traces(("a", 0, "x"), ("b", 24, "x"), ("c", 49, "x")))

    assert lake.remove_before(AGENT_TRACES, (MIDNIGHT + 2 * timedelta(days=1)).date()) == 2
    assert [row[0] for row in stored(lake)] == ["c"]
    assert not list(Path(lake.path(AGENT_TRACES)).glob("_change_data/**/*.parquet"))


def test_after_a_purge_only_files_of_the_latest_version_remain(lake: LakeResource) -> None:
    lake.insert(AGENT_TRACES, traces(("a", 0, "x"), ("b", 0, "x")))
    lake.remove(AGENT_TRACES, WEEK, "trace_id", {"a"})
    folder = Path(lake.path(AGENT_TRACES))
    (folder / "date=2026-01-01" / "part-of-a-killed-write.parquet").write_bytes(b"a")
    assert list(folder.glob("_change_data/**/*.parquet"))

    lake.purge(AGENT_TRACES)
    live = {Path(uri).name for uri in DeltaTable(str(folder)).file_uris()}
    assert {file.name for file in folder.rglob("*.parquet")} == live
    assert [row[0] for row in stored(lake)] == ["b"]


def test_a_concurrent_removal_and_insertion_of_one_day_both_take_effect(lake: LakeResource) -> None:
    lake.insert(AGENT_TRACES, traces(*((f"t{number}", 0, "x") for number in range(8))))
    with ThreadPoolExecutor(4) as pool:
        removals = [pool.submit(lake.remove, AGENT_TRACES, WEEK, "trace_id", {f"t{n}"}) for n in range(8)]
        additions = [pool.submit(lake.insert, AGENT_TRACES, traces((f"new{n}", 0, "x"))) for n in range(4)]
        assert [done.result() for done in removals] == [1] * 8
        assert [done.result() for done in additions] == [1] * 4
    assert [row[0] for row in stored(lake)] == [f"new{number}" for number in range(4)]
