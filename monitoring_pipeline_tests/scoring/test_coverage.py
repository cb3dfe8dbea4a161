"""The ledger: its counts against counts made by hand, and the problems reported for a wrong one."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from mlflow.entities import Trace
from mlflow.entities.trace_location import TraceLocation
from mlflow.genai.scorers import scorer as as_scorer

from monitoring_pipeline.archive.merging import archive
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.scoring.coverage import ledger_problems, update_ledger
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.run import score_window
from monitoring_pipeline.tables import ASSESSMENTS, SCORER_COVERAGE, Table
from monitoring_pipeline.windows import Window, floor_hour, from_milliseconds

WINDOW = Window(datetime(2026, 1, 1, 21, tzinfo=UTC), datetime(2026, 1, 2, 3, tzinfo=UTC))
FIRST_HALF = Window(WINDOW.start, datetime(2026, 1, 2, tzinfo=UTC))
DIGEST = "d" * 16
EXPERIMENTS = ("1", "2", "3")


@pytest.fixture(scope="module")
def traces(recorded_traces: list[Trace]) -> list[Trace]:
    """The traces of the window, distributed over three experiments; the last one arrives late."""
    copies = [
        Trace.from_json(trace.to_json())
        for trace in recorded_traces
        if from_milliseconds(trace.info.request_time) in WINDOW
    ]
    for index, trace in enumerate(copies):
        trace.info.trace_location = TraceLocation.from_experiment_id(EXPERIMENTS[index % 3])
    return copies


@pytest.fixture(scope="module")
def dealt(traces: list[Trace], spark: SparkResource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a lake with all traces of the window except the late one, to read only."""
    folder = tmp_path_factory.mktemp("dealt") / "lake"
    archive(LakeResource(location=str(folder), spark=spark), WINDOW, [[*traces[:-1]]], {})
    return folder


@pytest.fixture
def lake(dealt: Path, spark: SparkResource, tmp_path: Path) -> LakeResource:
    """The test's own lake with the traces of the window, not scored yet."""
    shutil.copytree(dealt, tmp_path / "lake")
    return LakeResource(location=str(tmp_path / "lake"), spark=spark)


def judge(trace: Trace) -> bool | None:
    """Does not apply without a tool, raises for an even number of them, else returns yes."""
    tools = sum(span.span_type == "TOOL" for span in trace.data.spans)
    if tools == 0:
        return None
    if tools % 2 == 0:
        raise ValueError("an even number of tools")
    return True


def configured(
    rate: float = 1.0,
    filter_string: str | None = None,
    name: str = "tools",
    digest: str = DIGEST,
    function: Callable[[Trace], bool | None] = judge,
) -> ConfiguredScorer:
    return ConfiguredScorer(name, as_scorer(function, timeout=0), digest, rate, filter_string)


def archive_late(lake: LakeResource, trace: Trace) -> datetime:
    """Add the trace to the archive; returns its hour."""
    archive(lake, WINDOW, [[trace]], {})
    return floor_hour(from_milliseconds(trace.info.request_time))


def stored(lake: LakeResource, table: Table) -> list[dict[str, Any]]:
    columns = table.columns.names
    return lake.read_columns(table, WINDOW, *columns).to_pylist()


def total(lake: LakeResource, column: str) -> int:
    return sum(line[column] for line in stored(lake, SCORER_COVERAGE))


def as_table(table: Table, rows: Iterable[dict[str, Any]]) -> pa.Table:
    schema = table.columns
    return pa.Table.from_pylist(list(rows), schema=schema)


def fate(trace: Trace, scorer: ConfiguredScorer, scored: Window) -> str:
    """The expected fate of a trace after the scorer ran over the window `scored`."""
    draw = int(hashlib.sha256(f"{trace.info.trace_id}:{scorer.name}".encode()).hexdigest(), 16) / 2**256
    if scorer.filter and trace.info.state != "ERROR":
        return "filtered_out"
    if draw >= scorer.sample_rate:
        return "unsampled"
    if from_milliseconds(trace.info.request_time) not in scored:
        return "pending"
    try:
        return "not_applicable" if judge(trace) is None else "scored"
    except ValueError:
        return "failed"


@pytest.mark.parametrize("filter_string", [None, "status = 'ERROR'"])
@pytest.mark.parametrize("rate", [0.0, 0.37, 1.0])
def test_every_count_of_the_ledger_is_right(
    rate: float, filter_string: str | None, lake: LakeResource, traces: list[Trace]
) -> None:
    scorer = configured(rate, filter_string)
    score_window(lake, scorer, FIRST_HALF, "run")
    update_ledger(lake, [scorer], WINDOW)
    expected: dict[tuple[datetime, str | None], Counter[str]] = {}
    for trace in traces[:-1]:
        key = (floor_hour(from_milliseconds(trace.info.request_time)), trace.info.experiment_id)
        expected.setdefault(key, Counter())[fate(trace, scorer, FIRST_HALF)] += 1
    found = {(line["hour"], line["experiment_id"]): line for line in stored(lake, SCORER_COVERAGE)}
    assert found.keys() == expected.keys()
    for key, fates in expected.items():
        counts = {
            "archived": fates.total(),
            "filtered_out": fates["filtered_out"] + fates["not_applicable"],
            "unsampled": fates["unsampled"],
            "eligible": fates["scored"] + fates["failed"] + fates["pending"],
            "scored": fates["scored"],
            "failed": fates["failed"],
            "over_budget": 0,
            "pending": fates["pending"],
            "not_applicable": fates["not_applicable"],
            "stale": 0,
        }
        identity = {"hour": key[0], "experiment_id": key[1], "scorer": "tools", "scorer_digest": DIGEST}
        assert found[key] == identity | counts
    assert ledger_problems(lake, [scorer], WINDOW) == []


def test_these_traces_cover_every_fate(traces: list[Trace]) -> None:
    scorer = configured(0.37)
    fates = {fate(trace, scorer, FIRST_HALF) for trace in traces}
    filtered = {fate(trace, configured(1.0, "status = 'ERROR'"), FIRST_HALF) for trace in traces}
    assert fates == {"unsampled", "pending", "not_applicable", "scored", "failed"}
    assert "filtered_out" in filtered
    assert {trace.info.experiment_id for trace in traces} == set(EXPERIMENTS)


@pytest.mark.parametrize(
    "filter_string", ["span.type = 'TOOL' AND span.status = 'ERROR'", "feedback.task_success IS NULL"]
)
def test_a_filter_on_spans_or_assessments_adds_up(filter_string: str, lake: LakeResource) -> None:
    scorer = configured(0.5, filter_string)
    score_window(lake, scorer, WINDOW, "run")
    assert ledger_problems(lake, [scorer], WINDOW) == []
    assert 0 < total(lake, "eligible") + total(lake, "not_applicable") < total(lake, "archived")


def test_the_number_of_lines_is_returned(lake: LakeResource) -> None:
    lines = update_ledger(lake, [configured(), configured(name="others")], WINDOW)
    assert lines == len(stored(lake, SCORER_COVERAGE)) > 2 * len(EXPERIMENTS)


def test_an_hour_without_traces_has_no_line(lake: LakeResource) -> None:
    scorer = configured()
    empty = Window(WINDOW.end + timedelta(days=9), WINDOW.end + timedelta(days=10))
    assert update_ledger(lake, [scorer], empty) == 0
    assert ledger_problems(lake, [scorer], empty) == []


def test_a_late_trace_is_pending_until_it_is_scored(lake: LakeResource, traces: list[Trace]) -> None:
    scorer = configured(function=lambda trace: True)
    score_window(lake, scorer, WINDOW, "run")
    archive_late(lake, traces[-1])
    update_ledger(lake, [scorer], WINDOW)
    late = (total(lake, "archived"), total(lake, "scored"), total(lake, "pending"))
    assert late == (len(traces), len(traces) - 1, 1)
    assert ledger_problems(lake, [scorer], WINDOW) == []
    score_window(lake, scorer, WINDOW, "again")
    assert (total(lake, "scored"), total(lake, "pending")) == (len(traces), 0)
    assert ledger_problems(lake, [scorer], WINDOW) == []


def test_a_narrower_filter_and_rate_leave_results_counted(lake: LakeResource) -> None:
    score_window(lake, configured(), WINDOW, "run")
    scored, failed = total(lake, "scored"), total(lake, "failed")
    narrower = configured(0.1, "status = 'ERROR'")
    update_ledger(lake, [narrower], WINDOW)
    assert (total(lake, "scored"), total(lake, "failed")) == (scored, failed)
    assert ledger_problems(lake, [narrower], WINDOW) == []


def test_lines_of_other_digests_and_scorers_are_kept(lake: LakeResource) -> None:
    others = [configured(digest="e" * 16), configured(name="others")]
    for other in others:
        score_window(lake, other, WINDOW, "run")
    before = {str(line) for line in stored(lake, SCORER_COVERAGE)}
    scorer = configured()
    update_ledger(lake, [scorer], WINDOW)
    after = stored(lake, SCORER_COVERAGE)
    own = [line for line in after if (line["scorer"], line["scorer_digest"]) == (scorer.name, scorer.digest)]
    assert {str(line) for line in after} == before | {str(line) for line in own}
    assert len(after) == len(before) + len(own)
    assert sum(line["pending"] for line in own) == sum(line["archived"] for line in own)


def test_an_unchanged_ledger_is_not_committed_again(lake: LakeResource) -> None:
    scorers = [configured(0.5), configured(name="others")]
    update_ledger(lake, scorers, WINDOW)
    version = lake.version(SCORER_COVERAGE)
    update_ledger(lake, scorers, WINDOW)
    assert lake.version(SCORER_COVERAGE) == version


# Problems of a wrong ledger


def problems_of(lake: LakeResource, scorer: ConfiguredScorer, line: dict[str, Any]) -> list[str]:
    """The problems of the ledger; all must name the given line."""
    problems = ledger_problems(lake, [scorer], WINDOW)
    named = f"{line['hour']:%Y-%m-%d %H:%M} {scorer.name} {scorer.digest}: "
    assert all(problem.startswith(named) for problem in problems)
    return problems


@pytest.mark.parametrize(
    "changes",
    [
        {"archived": 1},
        {"archived": 1, "unsampled": 1},
        {"archived": 1, "eligible": 1, "pending": 1},
        {"eligible": 1},
        {"filtered_out": -1},
        {"unsampled": 2},
        {"scored": 1},
        {"scored": 1, "pending": -1},
        {"scored": -1, "failed": 1},
        {"scored": -1, "eligible": -1, "unsampled": 1},
        {"over_budget": 1},
        {"pending": 1},
    ],
    ids=str,
)
def test_a_falsified_line_is_named(changes: dict[str, int], lake: LakeResource) -> None:
    scorer = configured(0.37)
    score_window(lake, scorer, WINDOW, "run")
    line = max(stored(lake, SCORER_COVERAGE), key=lambda line: line["scored"])
    falsified = line | {name: line[name] + change for name, change in changes.items()}
    assert lake.upsert(SCORER_COVERAGE, as_table(SCORER_COVERAGE, [falsified])) == 1
    assert problems_of(lake, scorer, line) != []


def test_counts_in_the_wrong_hour_are_named(lake: LakeResource) -> None:
    scorer = configured()
    score_window(lake, scorer, WINDOW, "run")
    lines = stored(lake, SCORER_COVERAGE)
    one, other = lines[0], next(line for line in lines if line["hour"] != lines[0]["hour"])
    for name in ("archived", "eligible", "scored"):
        one[name] += 1
        other[name] -= 1
    lake.replace(SCORER_COVERAGE, WINDOW, as_table(SCORER_COVERAGE, lines))
    hours = sorted(problem[:16] for problem in ledger_problems(lake, [scorer], WINDOW))
    assert hours == sorted(f"{line['hour']:%Y-%m-%d %H:%M}" for line in (one, other))


def test_a_line_of_an_earlier_digest_must_add_up_too(lake: LakeResource) -> None:
    earlier, scorer = configured(digest="e" * 16), configured()
    update_ledger(lake, [earlier, scorer], WINDOW)
    line = next(line for line in stored(lake, SCORER_COVERAGE) if line["scorer_digest"] == earlier.digest)
    lake.upsert(SCORER_COVERAGE, as_table(SCORER_COVERAGE, [line | {"eligible": line["eligible"] + 1}]))
    (problem,) = ledger_problems(lake, [scorer], WINDOW)
    assert problem.startswith(f"{line['hour']:%Y-%m-%d %H:%M} tools {earlier.digest}: ")


def test_a_missing_line_is_named(lake: LakeResource) -> None:
    scorer = configured()
    score_window(lake, scorer, WINDOW, "run")
    line, *others = stored(lake, SCORER_COVERAGE)
    lake.replace(SCORER_COVERAGE, WINDOW, as_table(SCORER_COVERAGE, others))
    assert len(problems_of(lake, scorer, line)) == 1


def test_an_archived_trace_missing_from_the_ledger_is_named(lake: LakeResource, traces: list[Trace]) -> None:
    scorer = configured()
    score_window(lake, scorer, WINDOW, "run")
    hour = archive_late(lake, traces[-1])
    assert len(problems_of(lake, scorer, {"hour": hour})) == 1


def test_a_missing_assessment_is_named(lake: LakeResource) -> None:
    scorer = configured()
    score_window(lake, scorer, WINDOW, "run")
    gone, *kept = stored(lake, ASSESSMENTS)
    lake.replace(ASSESSMENTS, WINDOW, as_table(ASSESSMENTS, kept))
    assert len(problems_of(lake, scorer, {"hour": gone["trace_hour"]})) == 1


def test_an_assessment_of_a_trace_that_was_never_archived_is_named(lake: LakeResource) -> None:
    scorer = configured()
    score_window(lake, scorer, WINDOW, "run")
    row = stored(lake, ASSESSMENTS)[0]
    stray = row | {"trace_id": "tr-stray", "assessment_id": "a-stray", "experiment_id": "99"}
    lake.insert(ASSESSMENTS, as_table(ASSESSMENTS, [stray]))
    assert len(problems_of(lake, scorer, {"hour": row["trace_hour"]})) == 1


def test_an_hour_whose_traces_have_all_moved_away_is_empty_in_the_ledger(
    lake: LakeResource, traces: list[Trace]
) -> None:
    scorer = configured()
    score_window(lake, scorer, WINDOW, "run")
    hour = floor_hour(from_milliseconds(traces[0].info.request_time))
    moved = [Trace.from_json(trace.to_json()) for trace in traces]
    for trace in moved:
        if floor_hour(from_milliseconds(trace.info.request_time)) == hour:
            trace.info.request_time += 3_600_000
    archive(lake, WINDOW, [moved], {})

    update_ledger(lake, [scorer], Window(hour, hour + timedelta(hours=1)))

    lines = [line for line in stored(lake, SCORER_COVERAGE) if line["hour"] == hour]
    assert lines
    assert all(line[name] == 0 for line in lines for name in SCORER_COVERAGE.content)
    assert ledger_problems(lake, [scorer], Window(hour, hour + timedelta(hours=1))) == []
