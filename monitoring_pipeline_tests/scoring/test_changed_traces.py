"""Results follow the content they were made from: traces that have not ended, and traces that change after scoring."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from mlflow.entities import AssessmentSource, Expectation, Feedback, Span, Trace, TraceState
from mlflow.genai.scorers import scorer as as_scorer

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.scoring.coverage import ledger_problems
from monitoring_pipeline.scoring.limits import Budget
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.run import ScoreCounts, score_window
from monitoring_pipeline.tables import (
    ASSESSMENTS,
    NOT_APPLICABLE,
    SCORER_COVERAGE,
    SUPERSEDED_ASSESSMENTS,
    Table,
)
from monitoring_pipeline.traces.flatten import flatten
from monitoring_pipeline.traces.parts import ASSESSED_AT
from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests.scoring.made import archive_traces, made_trace
from monitoring_pipeline_tests.sources.stores import START, span_json

HOURS = timedelta(hours=1)
HOUR, NEXT = Window(START, START + HOURS), Window(START + HOURS, START + 2 * HOURS)
BOTH = Window(START, START + 2 * HOURS)
HUMAN = AssessmentSource("HUMAN", "ann")
DIGEST = "d" * 16


def answer_of(trace: Trace) -> str:
    return str(trace.data.response)


def scorer_of(calls: list[str], judge: Callable[[Trace], Any] = answer_of, **values: Any) -> ConfiguredScorer:
    """A scorer that returns the result of `judge`, by default the answer, and records the answers it sees."""

    @as_scorer(timeout=0)
    def seeing(trace: Trace) -> Any:
        calls.append(answer_of(trace))
        return judge(trace)

    return ConfiguredScorer("seen", seeing, DIGEST, **{"sample_rate": 1.0, "filter": None, **values})


def changed(trace: Trace, **values: Any) -> Trace:
    """A copy of the trace with other values of its info."""
    other = copy.deepcopy(trace)
    for name, value in values.items():
        setattr(other.info, name, value)
    return other


def put(lake: LakeResource, *traces: Trace) -> None:
    archive_traces(lake, BOTH, traces)


def rows(lake: LakeResource, table: Table = ASSESSMENTS) -> list[dict[str, Any]]:
    columns = table.columns.names
    found = lake.read_columns(table, BOTH, *columns).to_pylist()
    return sorted(found, key=lambda row: str([row[name] for name in table.key]))


def values(lake: LakeResource, table: Table = ASSESSMENTS) -> list[str]:
    return [row["value"] for row in rows(lake, table)]


def totals(lake: LakeResource) -> dict[str, int]:
    """The numbers of the ledger that are not zero, over both hours."""
    sums: dict[str, int] = {}
    for line in rows(lake, SCORER_COVERAGE):
        for name, value in line.items():
            if isinstance(value, int) and value:
                sums[name] = sums.get(name, 0) + value
    return sums


# Traces that have not ended


def test_an_unfinished_trace_is_pending_until_it_ends_and_is_then_scored_once(lake: LakeResource) -> None:
    calls: list[str] = []
    scorer = scorer_of(calls)
    put(lake, made_trace(1, answer="so far", state=TraceState.IN_PROGRESS), made_trace(2))
    assert score_window(lake, scorer, HOUR, "run") == ScoreCounts(scored=1)
    assert totals(lake) == {"archived": 2, "eligible": 2, "scored": 1, "pending": 1}
    put(lake, made_trace(1, answer="the end"))
    score_window(lake, scorer, HOUR, "run")
    score_window(lake, scorer, HOUR, "run")
    assert calls == ['"answer 2."', '"the end"']
    assert totals(lake) == {"archived": 2, "eligible": 2, "scored": 2}
    assert ledger_problems(lake, [scorer], HOUR) == []


@pytest.mark.parametrize("rationale", [None, "short"])
def test_a_silent_trace_is_scored_as_it_is_and_its_result_says_so(rationale: str | None, lake: LakeResource) -> None:
    put(lake, made_trace(1, state=TraceState.IN_PROGRESS), made_trace(2))
    judge = lambda trace: Feedback(value=0.5, rationale=rationale)  # noqa: E731
    score_window(lake, scorer_of([], judge, unfinished_after=timedelta(0)), HOUR, "run")
    note = "(The trace had not ended when it was scored.)"
    unfinished, ended = rows(lake)
    if not unfinished["unfinished"]:
        unfinished, ended = ended, unfinished
    assert (unfinished["unfinished"], ended["unfinished"]) == (True, False)
    assert (unfinished["rationale"], ended["rationale"]) == (f"{note} {rationale}" if rationale else note, rationale)


def test_a_silent_trace_of_an_earlier_hour_is_scored_by_a_later_run(lake: LakeResource) -> None:
    scorer = scorer_of([])
    put(lake, made_trace(1, state=TraceState.IN_PROGRESS), made_trace(2, START + HOURS))
    score_window(lake, scorer, HOUR, "run")
    counts = score_window(lake, replace(scorer, unfinished_after=timedelta(0)), NEXT, "run")
    assert counts == ScoreCounts(scored=2, elsewhere={START})
    assert totals(lake) == {"archived": 2, "eligible": 2, "scored": 2}
    assert ledger_problems(lake, [scorer], BOTH) == []


def test_a_silent_trace_that_ends_after_all_is_scored_again(lake: LakeResource) -> None:
    calls: list[str] = []
    scorer = scorer_of(calls, unfinished_after=timedelta(0))
    put(lake, made_trace(1, answer="same", state=TraceState.IN_PROGRESS))
    score_window(lake, scorer, HOUR, "run")
    put(lake, made_trace(1, answer="same"))
    score_window(lake, scorer, HOUR, "run")
    assert calls == ['"same"', '"same"']
    assert [row["unfinished"] for row in (*rows(lake, SUPERSEDED_ASSESSMENTS), *rows(lake))] == [True, False]


# Traces that change


def test_a_changed_trace_is_scored_again_and_its_earlier_result_is_kept(lake: LakeResource) -> None:
    calls: list[str] = []
    scorer = scorer_of(calls)
    put(lake, made_trace(1, answer="first"), made_trace(2, answer="other"))
    score_window(lake, scorer, HOUR, "before")
    earlier = rows(lake)
    put(lake, made_trace(1, answer="second"))
    assert score_window(lake, scorer, HOUR, "after") == ScoreCounts(scored=1)
    assert score_window(lake, scorer, HOUR, "again") == ScoreCounts()
    assert sorted(calls) == ['"first"', '"other"', '"second"']
    assert sorted(values(lake)) == ['"\\"other\\""', '"\\"second\\""']
    [kept] = rows(lake, SUPERSEDED_ASSESSMENTS)
    assert kept.pop("superseded_at") > kept["assessed_at"]
    assert kept in earlier
    [new] = [row for row in rows(lake) if row["assessment_id"] == kept["assessment_id"]]
    assert (kept["dagster_run_id"], new["dagster_run_id"]) == ("before", "after")
    assert new["content_digest"] != kept["content_digest"]
    assert totals(lake) == {"archived": 2, "eligible": 2, "scored": 2}
    assert ledger_problems(lake, [scorer], HOUR) == []


def test_a_late_span_makes_a_result_stale(lake: LakeResource) -> None:
    scorer = scorer_of([], lambda trace: len(trace.data.spans))
    trace = made_trace(1)
    put(lake, trace)
    score_window(lake, scorer, HOUR, "run")
    trace.data.spans.append(Span.from_dict(span_json(1, 2, parent=1, started=START)))
    put(lake, trace)
    score_window(lake, scorer, HOUR, "run")
    assert (values(lake), values(lake, SUPERSEDED_ASSESSMENTS)) == (["2"], ["1"])


def test_an_error_about_earlier_content_is_scored_again_without_a_request(lake: LakeResource) -> None:
    def judge(trace: Trace) -> bool:
        if "bad" in answer_of(trace):
            raise ValueError("bad answer")
        return True

    scorer = scorer_of([], judge)
    put(lake, made_trace(1, answer="bad"))
    assert score_window(lake, scorer, HOUR, "run") == ScoreCounts(failed=1)
    put(lake, made_trace(1, answer="good"))
    assert score_window(lake, scorer, HOUR, "run") == ScoreCounts(scored=1)
    assert totals(lake) == {"archived": 1, "eligible": 1, "scored": 1}


LABELS: dict[str, Callable[[Trace], Trace]] = {
    "tags": lambda trace: changed(trace, tags={"reviewed": "yes"}),
    "feedback": lambda trace: changed(trace, assessments=[Feedback(name="nice", value=True, source=HUMAN)]),
    "expectations": lambda trace: changed(trace, assessments=[Expectation(name="answer", value="4", source=HUMAN)]),
}


@pytest.mark.parametrize("reads", [(), *((name,) for name in LABELS), tuple(sorted(LABELS))])
@pytest.mark.parametrize("label", LABELS)
def test_a_label_makes_only_the_results_stale_that_depend_on_it(
    label: str, reads: tuple[str, ...], lake: LakeResource
) -> None:
    scorer = scorer_of([], reads=reads)
    put(lake, made_trace(1))
    score_window(lake, scorer, HOUR, "run")
    put(lake, LABELS[label](made_trace(1)))
    assert score_window(lake, scorer, HOUR, "run").seen == (label in reads)


@pytest.mark.parametrize(
    "label",
    [
        lambda trace: changed(trace, tags={"mlflow.artifactLocation": "elsewhere"}),
        lambda trace: changed(
            trace, assessments=[Feedback(name="seen", value=1.0, metadata={ASSESSED_AT: "2026-01-01T00:00:00"})]
        ),
    ],
    ids=["a tag of MLflow", "a result that the pipeline wrote"],
)
def test_what_the_pipeline_and_mlflow_write_makes_no_result_stale(
    label: Callable[[Trace], Trace], lake: LakeResource
) -> None:
    scorer = scorer_of([], reads=tuple(sorted(LABELS)))
    put(lake, made_trace(1))
    score_window(lake, scorer, HOUR, "run")
    put(lake, label(made_trace(1)))
    assert score_window(lake, scorer, HOUR, "run") == ScoreCounts()


def test_a_trace_that_did_not_apply_is_tried_again_when_it_changes(lake: LakeResource) -> None:
    scorer = scorer_of([], lambda trace: 1.0 if "good" in answer_of(trace) else None)
    results = []
    for answer in ("bad", "worse", "good", "bad again", "good again"):
        put(lake, made_trace(1, answer=answer))
        counts = score_window(lake, scorer, HOUR, "run")
        results.append((counts.scored, counts.not_applicable))
        assert ledger_problems(lake, [scorer], HOUR) == []
        assert totals(lake).get("scored", 0) == len(rows(lake)) == counts.scored
    assert results == [(0, 1), (0, 1), (1, 0), (0, 1), (1, 0)]
    assert len(rows(lake, SUPERSEDED_ASSESSMENTS)) == len(rows(lake, NOT_APPLICABLE)) == 1


@pytest.mark.parametrize("dies_at", [SUPERSEDED_ASSESSMENTS, ASSESSMENTS, NOT_APPLICABLE])
@pytest.mark.parametrize("applies", [True, False])
def test_a_run_that_dies_between_two_tables_loses_no_result(
    applies: bool, dies_at: Table, lake: LakeResource, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = scorer_of([], lambda trace: 1.0 if applies or "first" in answer_of(trace) else None)
    put(lake, made_trace(1, answer="first"))
    score_window(lake, scorer, HOUR, "run")
    put(lake, made_trace(1, answer="second"))
    with monkeypatch.context() as patch:
        for name in ("insert", "upsert", "remove"):
            patch.setattr(LakeResource, name, _dying_after(getattr(LakeResource, name), dies_at))
        with pytest.raises(KeyboardInterrupt):
            score_window(lake, scorer, HOUR, "run")
    score_window(lake, scorer, HOUR, "again")
    assert len(rows(lake, SUPERSEDED_ASSESSMENTS)) == 1
    assert (len(rows(lake)), len(rows(lake, NOT_APPLICABLE))) == ((1, 0) if applies else (0, 1))
    assert ledger_problems(lake, [scorer], HOUR) == []


def _dying_after(write: Callable[..., int], dies_at: Table) -> Callable[..., int]:
    def dying(lake: LakeResource, table: Table, *arguments: Any) -> int:
        written = write(lake, table, *arguments)
        if table is dies_at:
            raise KeyboardInterrupt
        return written

    return dying


def test_a_changed_trace_outside_the_sample_keeps_its_result(lake: LakeResource) -> None:
    put(lake, made_trace(1, answer="first"))
    score_window(lake, scorer_of([]), HOUR, "run")
    put(lake, made_trace(1, answer="second"))
    assert score_window(lake, scorer_of([], sample_rate=0.0), HOUR, "run") == ScoreCounts()
    assert values(lake) == ['"\\"first\\""']


def test_a_result_of_an_earlier_version_stays(lake: LakeResource) -> None:
    put(lake, made_trace(1, answer="first"))
    scorer = scorer_of([])
    score_window(lake, scorer, HOUR, "run")
    without = lake.read_columns(ASSESSMENTS, HOUR, *ASSESSMENTS.columns.names)
    index = without.column_names.index("content_digest")
    lake.replace(ASSESSMENTS, HOUR, without.set_column(index, "content_digest", [[None]]))
    put(lake, made_trace(1, answer="second"))
    assert score_window(lake, scorer, HOUR, "run") == ScoreCounts()


def test_changed_traces_wait_for_the_budget_and_the_ledger_shows_them(lake: LakeResource) -> None:
    scorer = scorer_of([], budget=Budget(max_traces_per_hour=5))
    put(lake, *(made_trace(number) for number in range(1, 4)))
    assert score_window(lake, scorer, HOUR, "run").seen == 3
    put(lake, *(made_trace(number, answer="new") for number in range(1, 4)))
    counts = score_window(lake, scorer, HOUR, "run")
    assert (counts.seen, counts.over_budget) == (2, "5 traces of max_traces_per_hour = 5")
    assert totals(lake) == {"archived": 3, "eligible": 3, "scored": 3, "stale": 1}
    assert score_window(lake, replace(scorer, budget=Budget()), HOUR, "run").seen == 1
    assert totals(lake) == {"archived": 3, "eligible": 3, "scored": 3}


# Sessions


def of_sessions(calls: list[list[str]]) -> ConfiguredScorer:
    @as_scorer(timeout=0)
    def whole(session: list[Trace]) -> int:
        calls.append([answer_of(trace) for trace in session])
        return len(session)

    return ConfiguredScorer("whole", whole, DIGEST, 1.0, None, session_idle=timedelta(0))


def test_a_session_is_scored_again_when_one_of_its_traces_changes(lake: LakeResource) -> None:
    calls: list[list[str]] = []
    scorer = of_sessions(calls)
    put(lake, *(made_trace(number, session="s", answer="a") for number in (1, 2)))
    score_window(lake, scorer, HOUR, "run")
    put(lake, made_trace(2, session="s", answer="b"))
    score_window(lake, scorer, HOUR, "run")
    score_window(lake, scorer, HOUR, "run")
    assert calls == [['"a"', '"a"'], ['"a"', '"b"']]
    assert len(rows(lake)) == len(rows(lake, SUPERSEDED_ASSESSMENTS)) == 1


def test_a_session_waits_for_a_trace_that_has_not_ended(lake: LakeResource) -> None:
    calls: list[list[str]] = []
    scorer = of_sessions(calls)
    put(lake, made_trace(1, session="s"), made_trace(2, session="s", state=TraceState.IN_PROGRESS))
    assert score_window(lake, scorer, HOUR, "run") == ScoreCounts()
    assert totals(lake) == {"archived": 2, "filtered_out": 1, "eligible": 1, "pending": 1}
    assert score_window(lake, replace(scorer, unfinished_after=timedelta(0)), HOUR, "run") == ScoreCounts(scored=1)
    assert [row["unfinished"] for row in rows(lake)] == [True]


# Digests of parts


def digests_of(traces: Iterable[Trace]) -> list[dict[str, str]]:
    return [flatten(trace, START)["part_digests"] for trace in traces]


def test_parts_have_a_digest_only_if_the_trace_has_them() -> None:
    plain = made_trace(1)
    [of_plain, *others] = digests_of([plain, *(label(plain) for label in LABELS.values())])
    assert set(of_plain) == {"spans"}
    for name, other in zip(LABELS, others, strict=True):
        assert set(other) == {"spans", name}
        assert other["spans"] == of_plain["spans"]
