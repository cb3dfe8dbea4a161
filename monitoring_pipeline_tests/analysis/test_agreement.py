"""Agreement: on hand-made traces and results, and on the recorded conversations against figures from their file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.genai.scorers import scorer as as_scorer
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from sklearn.metrics import cohen_kappa_score, confusion_matrix

from monitoring_pipeline.analysis.agreement import COUNTS, agreement, with_kappa
from monitoring_pipeline.analysis.verdicts import as_score, passes, score_of
from monitoring_pipeline.archive.merging import archive
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.rows import conform, from_dicts
from monitoring_pipeline.resources.spark import SparkResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.scoring.registry import ConfiguredScorer, load_scorers
from monitoring_pipeline.scoring.run import score_window
from monitoring_pipeline.settings import SHIPPED_SCORERS, ScorerSettings
from monitoring_pipeline.tables import AGENT_TRACES, ASSESSMENTS, SCORER_AGREEMENT, Table
from monitoring_pipeline.windows import Window
from monitoring_pipeline_tests.conftest import RECORDED_WINDOW
from monitoring_pipeline_tests.sources.stores import traces_of

MIDNIGHT = datetime(2026, 1, 1, tzinfo=UTC)
NOON = MIDNIGHT + timedelta(hours=12)
OLD, NEW = "0" * 16, "1" * 16


@as_scorer
def anything(outputs: Any) -> bool:
    return bool(outputs)


def judge(name: str = "judge", pass_if: str | None = None, compare_with: tuple[str, ...] = ()) -> ConfiguredScorer:
    return ConfiguredScorer(name, anything, NEW, 1.0, None, pass_if=pass_if, compare_with=compare_with or (name,))


def feedback(value: Any, minute: int = 0, **changes: Any) -> dict[str, Any]:
    """An assessment on a trace: by default a person's feedback named after the scorer `judge`."""
    moment = NOON + timedelta(minutes=minute)
    return {
        "assessment_id": f"a-{minute}",
        "name": "judge",
        "kind": "feedback",
        "value": json.dumps(value),
        "source_type": "HUMAN",
        "create_time": moment,
        "last_update_time": moment,
        **changes,
    }


def trace(trace_id: str, *recorded: dict[str, Any], hour: datetime = NOON) -> dict[str, Any]:
    return {
        "trace_id": trace_id,
        "trace_hour": hour,
        "created_at": hour,
        "experiment_id": "1",
        "assessments": list(recorded),
    }


def result(trace_id: str, score: float | None, digest: str = NEW, **changes: Any) -> dict[str, Any]:
    return {
        "trace_id": trace_id,
        "trace_hour": NOON,
        "experiment_id": "1",
        "scorer": "judge",
        "scorer_digest": digest,
        "score": score,
        "assessment_id": f"{trace_id}{digest}",
        **changes,
    }


def compared(
    lake: LakeResource,
    traces: list[dict[str, Any]],
    results: list[dict[str, Any]],
    *scorers: ConfiguredScorer,
) -> list[dict[str, Any]]:
    """The rows of `agreement` as the table stores them (null as None), in the order of its key."""

    def stored(table: Table, rows: list[dict[str, Any]]) -> DataFrame:
        return lake.spark.session.createDataFrame(from_dicts(table, rows)) if rows else lake.read(table)

    frame = agreement(stored(AGENT_TRACES, traces), stored(ASSESSMENTS, results), scorers or [judge()])
    rows = conform(SCORER_AGREEMENT, pa.Table.from_pandas(frame, preserve_index=False)).to_pylist()
    return sorted(rows, key=lambda row: str([row[name] for name in SCORER_AGREEMENT.key]))


def counts(row: dict[str, Any]) -> tuple[int, ...]:
    return tuple(row[name] for name in COUNTS)


def verdict(lake: LakeResource, *recorded: dict[str, Any], scorer: ConfiguredScorer | None = None) -> bool | None:
    """The verdict of the assessments on one trace: pass, fail, or none."""
    rows = compared(lake, [trace("t", *recorded)], [result("t", 1.0)], scorer or judge())
    assert len(rows) <= 1
    return {"(1, 0, 0, 0)": True, "(0, 1, 0, 0)": False}[str(counts(rows[0]))] if rows else None


# ---- passing ----


@pytest.mark.parametrize(
    ("pass_if", "passing"),
    [
        (None, [0.5, 0.8, 1.0, 7.0]),
        (">= 0.8", [0.8, 1.0, 7.0]),
        (">0.8", [1.0, 7.0]),
        ("<= 0", [-1.0, 0.0]),
        ("<   -0.5", [-1.0]),
        ("== 1", [1.0]),
    ],
)
def test_scores_pass_by_the_rule_in_the_settings(
    spark: SparkResource, pass_if: str | None, passing: list[float]
) -> None:
    if pass_if:
        ScorerSettings(name="judge", scorer="a:b", pass_if=pass_if)
    scores = pa.table({"score": [-1.0, 0.0, 0.49, 0.5, 0.8, 1.0, 7.0, None]})
    rows = spark.session.createDataFrame(scores).select("score", passes(F.col("score"), pass_if).alias("passed"))
    found = {row["score"]: row["passed"] for row in rows.collect()}
    assert [score for score, passed in found.items() if passed] == passing
    assert found[None] is None


words = st.sampled_from(["yes", "No", "TRUE", "fail", "Pass", "false", "maybe", "not yes", "1", "0.7", ""])
spaces = st.text(st.sampled_from(" \t\n\r\x0b\x1c\x85\xa0\u2003\u2028\u200b"), max_size=2)
values = st.one_of(
    st.booleans(),
    st.none(),
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=6),
    st.tuples(spaces, words, spaces).map("".join),
    st.lists(st.booleans(), max_size=2),
    st.dictionaries(st.sampled_from(["value", "yes"]), st.booleans(), max_size=2),
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(values, min_size=20, max_size=60), st.booleans())
def test_a_recorded_value_counts_like_a_scorers_value(spark: SparkResource, given: list[Any], as_ascii: bool) -> None:
    texts = pa.table({"value": [json.dumps(value, ensure_ascii=as_ascii) for value in given]})
    rows = spark.session.createDataFrame(texts).select(score_of(F.col("value")).alias("score")).collect()
    assert [row["score"] for row in rows] == [as_score(value) for value in given]


@pytest.mark.parametrize("text", [None, "", "NaN", "broken", '"yes', "yes"])
def test_invalid_json_has_no_score(spark: SparkResource, text: str | None) -> None:
    values = spark.session.createDataFrame(pa.table({"value": pa.array([text], pa.string())}))
    assert values.select(score_of(F.col("value")).alias("score")).collect()[0]["score"] is None


# ---- people's feedback ----


def test_every_pair_of_verdicts_is_counted_with_the_scorers_first(lake: LakeResource) -> None:
    pairs = [(1.0, True), (0.5, True), (0.9, False), (0.2, "yes"), (0.3, 0), (0.1, "Fail"), (0.0, 0.4), (1.0, 0.6)]
    traces = [trace(f"t{n}", feedback(value)) for n, (_, value) in enumerate(pairs)]
    (row,) = compared(lake, traces, [result(f"t{n}", score) for n, (score, _) in enumerate(pairs)])
    assert counts(row) == (3, 1, 1, 3)
    assert row["agreement"] == 0.75
    assert row["kappa"] == pytest.approx(0.5)
    assert row["kappa_low"] < 0.5 < row["kappa_high"]
    identity = {name: row[name] for name in SCORER_AGREEMENT.key}
    assert identity == {
        "day": MIDNIGHT,
        "experiment_id": "1",
        "scorer": "judge",
        "scorer_digest": NEW,
        "reference": "human",
        "reference_name": "judge",
    }


def test_the_settings_determine_what_passes_and_which_feedback_is_compared(lake: LakeResource) -> None:
    errors = judge("errors", "<= 0", ("thumbs_up", "resolved"))
    traces = [
        trace("t1", feedback(True, name="thumbs_up"), feedback(False, name="resolved"), feedback(True)),
        trace("t2", feedback(False, name="thumbs_up"), feedback(False, name="errors")),
    ]
    results = [result("t1", 0.0, scorer="errors"), result("t2", 0.25, scorer="errors")]
    rows = {row["reference_name"]: counts(row) for row in compared(lake, traces, results, errors)}
    assert rows == {"thumbs_up": (1, 0, 0, 1), "resolved": (0, 1, 0, 0)}


def test_traces_with_only_one_verdict_are_left_out(lake: LakeResource) -> None:
    traces = [trace("both", feedback(True)), trace("person", feedback(True)), trace("scorer"), trace("text")]
    traces += [trace("error", feedback(True)), trace("unsure", feedback("unsure"))]
    results = [result("both", 1.0), result("scorer", 1.0), result("unsure", 1.0)]
    results += [result("text", None), result("error", None, error_code="SCORER_ERROR")]
    (row,) = compared(lake, traces, results)
    assert counts(row) == (1, 0, 0, 0)


def test_without_pairs_there_is_no_row(lake: LakeResource) -> None:
    assert compared(lake, [], []) == []
    assert compared(lake, [trace("t", feedback(True))], [result("t", 1.0, scorer="removed")]) == []
    frame = agreement(lake.read(AGENT_TRACES), lake.read(ASSESSMENTS), [])
    day = Window(MIDNIGHT, MIDNIGHT + timedelta(days=1))
    assert lake.replace(SCORER_AGREEMENT, day, pa.Table.from_pandas(frame, preserve_index=False)) == 0


def test_the_latest_of_several_counts(lake: LakeResource) -> None:
    assert verdict(lake, feedback(True, 1), feedback(False, 2), feedback(True, 0)) is False
    assert verdict(lake, feedback(True, 1), feedback(False, 2), feedback(True, 3)) is True
    edited = feedback(True, 0, last_update_time=NOON + timedelta(minutes=9))
    assert verdict(lake, feedback(False, 1), edited, feedback(False, 2)) is True


def test_of_assessments_updated_together_the_last_created_counts_then_the_greater_id(lake: LakeResource) -> None:
    later = NOON + timedelta(minutes=9)
    one = feedback(True, 1, last_update_time=later)
    assert verdict(lake, one, feedback(False, 2, last_update_time=later)) is False
    assert verdict(lake, one, feedback(False, 1, last_update_time=later, assessment_id="a-0")) is True
    assert verdict(lake, feedback(False, 1, last_update_time=None), one) is True


def test_feedback_with_an_error_or_without_a_value_does_not_count(lake: LakeResource) -> None:
    kept = feedback(True, 0)
    for late in (feedback(False, 1, error_code="X"), feedback(None, 1), feedback(False, 1) | {"value": None}):
        assert verdict(lake, kept, late) is True
        assert verdict(lake, late) is None


def test_if_the_latest_feedback_has_no_score_there_is_no_verdict(lake: LakeResource) -> None:
    assert verdict(lake, feedback(True, 0), feedback("hard to say", 1)) is None


@pytest.mark.parametrize("source_type", ["CODE", "LLM_JUDGE"])
def test_under_a_scorers_name_only_human_feedback_counts(lake: LakeResource, source_type: str) -> None:
    written_back = feedback(True, 5, source_type=source_type)
    assert verdict(lake, written_back) is None
    assert verdict(lake, feedback(False, 0), written_back) is False
    other = judge("judge", compare_with=("other_scorer",))
    of_other = written_back | {"name": "other_scorer"}
    rows = compared(lake, [trace("t", of_other)], [result("t", 1.0)], other, judge("other_scorer"))
    assert rows == []


def test_under_another_name_code_feedback_counts_after_human_feedback(lake: LakeResource) -> None:
    scorer = judge(compare_with=("solved",))
    checker = feedback(False, 5, name="solved", source_type="CODE")
    assert verdict(lake, checker, scorer=scorer) is False
    assert verdict(lake, checker, feedback(True, 0, name="solved"), scorer=scorer) is True


@pytest.mark.parametrize(("kind", "expected"), [("feedback", True), ("expectation", True), ("issue", None)])
def test_expectations_count_and_issues_do_not(lake: LakeResource, kind: str, expected: bool | None) -> None:
    assert verdict(lake, feedback(True, kind=kind)) is expected


def test_days_experiments_and_scorers_have_separate_rows(lake: LakeResource) -> None:
    last_hour, next_day = MIDNIGHT + timedelta(hours=23), MIDNIGHT + timedelta(days=1)
    traces = [trace("t1", feedback(True), hour=last_hour), trace("t2", feedback(True), hour=next_day)]
    traces += [trace("t3", feedback(True), feedback(True, name="strict")), trace("t4", feedback(True))]
    results = [result("t1", 1.0, trace_hour=last_hour), result("t2", 1.0, trace_hour=next_day)]
    results += [result("t3", 1.0, experiment_id="2"), result("t3", 0.6, scorer="strict", experiment_id="2")]
    results += [result("t4", 0.0, experiment_id=None)]
    rows = compared(lake, traces, results, judge(), judge("strict", "> 0.6"))
    found = {(row["day"].day, row["experiment_id"], row["scorer"]): counts(row) for row in rows}
    assert found == {
        (1, "1", "judge"): (1, 0, 0, 0),
        (2, "1", "judge"): (1, 0, 0, 0),
        (1, "2", "judge"): (1, 0, 0, 0),
        (1, "2", "strict"): (0, 0, 1, 0),
        (1, None, "judge"): (0, 0, 1, 0),
    }


# ---- digests ----


def test_the_current_digest_is_compared_with_every_other_digest(lake: LakeResource) -> None:
    older = "2" * 16
    results = [result("t1", 1.0), result("t2", 0.0), result("t3", 1.0), result("only new", 1.0)]
    results += [result("t1", 1.0, OLD), result("t2", 1.0, OLD), result("t3", None, OLD), result("only old", 1.0, OLD)]
    results += [result("t1", 0.0, older)]
    rows = compared(lake, [], results)
    assert {(row["scorer_digest"], row["reference"]) for row in rows} == {(NEW, "digest")}
    assert {row["reference_name"]: counts(row) for row in rows} == {OLD: (1, 0, 1, 0), older: (0, 1, 0, 0)}


def test_every_digest_is_compared_with_human_feedback(lake: LakeResource) -> None:
    traces = [trace("t1", feedback(True)), trace("t2", feedback(False))]
    results = [result("t1", 1.0), result("t2", 0.0), result("t1", 1.0, OLD), result("t2", 1.0, OLD)]
    rows = [row for row in compared(lake, traces, results) if row["reference"] == "human"]
    assert {row["scorer_digest"]: counts(row) for row in rows} == {NEW: (1, 0, 0, 1), OLD: (1, 1, 0, 0)}


def test_undefined_kappa_is_null_in_the_table(lake: LakeResource) -> None:
    results = [result("t1", 1.0), result("t2", 1.0)]
    rows = compared(lake, [trace("t1", feedback(True)), trace("t2", feedback(False))], results)
    assert [rows[0][name] for name in ("agreement", "kappa", "kappa_low", "kappa_high")] == [0.5, None, None, None]


def test_counts_of_days_add_up_to_the_kappa_of_all_their_traces() -> None:
    days = pd.DataFrame([[5, 1, 0, 2], [3, 0, 2, 4]], columns=pd.Index(COUNTS))
    total = with_kappa(pd.DataFrame([days.sum()]))
    verdicts = [(1, 1)] * 8 + [(1, 0)] * 1 + [(0, 1)] * 2 + [(0, 0)] * 6
    assert total["kappa"][0] == pytest.approx(cohen_kappa_score(*zip(*verdicts, strict=True)))
    assert total["agreement"][0] == pytest.approx(14 / 17)


# ---- the recorded conversations ----


@pytest.fixture(scope="module")
def recorded_agreement(
    recorded_store: str, spark: SparkResource, tmp_path_factory: pytest.TempPathFactory
) -> pd.DataFrame:
    """The agreement of two shipped scorers with the recorded checker, over both days."""
    lake = LakeResource(location=str(tmp_path_factory.mktemp("recorded")), spark=spark)
    archive(lake, RECORDED_WINDOW, [traces_of(TrackingResource(tracking_uri=recorded_store), RECORDED_WINDOW)], {})
    scorers = load_scorers(
        [
            ScorerSettings(
                name=name, scorer=f"{SHIPPED_SCORERS}:{name}", pass_if=pass_if, compare_with=["task_success"]
            )
            for name, pass_if in (("tool_errors", "<= 0"), ("tool_selection_accuracy", ">= 1"))
        ]
    )
    for scorer in scorers:
        score_window(lake, scorer, RECORDED_WINDOW, "run")
    return agreement(lake.read(AGENT_TRACES, RECORDED_WINDOW), lake.read(ASSESSMENTS, RECORDED_WINDOW), scorers)


def last_turn(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The agent's messages after the last message of the user that it answered."""
    answered = max(
        at
        for at, message in enumerate(messages[:-1])
        if message["role"] == "user" and messages[at + 1]["role"] != "user"
    )
    return [message for message in messages[answered + 1 :] if message["role"] != "user"]


def verdicts_on_file(conversations: list[dict[str, Any]], scorer: str) -> Iterator[tuple[bool, bool]]:
    """The scorer's expected verdict on the last turn of each conversation, and the benchmark checker's verdict."""
    for conversation in conversations:
        answers = [message for message in last_turn(conversation["traj"]) if message["role"] == "tool"]
        solved = conversation["reward"] == 1.0
        if scorer == "tool_selection_accuracy":
            expected = Counter(action["name"] for action in conversation["info"]["task"]["actions"])
            yield Counter(answer["name"] for answer in answers) == expected, solved
        elif answers:
            yield not any((answer["content"] or "").startswith("Error") for answer in answers), solved


@pytest.mark.parametrize("scorer", ["tool_errors", "tool_selection_accuracy"])
def test_kappa_on_the_recorded_conversations_equals_that_of_their_file(
    scorer: str, recorded_agreement: pd.DataFrame, recorded_conversations: list[dict[str, Any]]
) -> None:
    own = recorded_agreement[recorded_agreement["scorer"] == scorer]
    assert list(own["reference_name"]) == ["task_success"] * 2
    assert sorted(own["day"]) == [pd.Timestamp(f"2026-01-0{day}", tz=UTC) for day in (1, 2)]
    found, truth = zip(*verdicts_on_file(recorded_conversations, scorer), strict=True)
    total = with_kappa(pd.DataFrame([own[COUNTS].sum()])).iloc[0]
    expected = confusion_matrix(found, truth, labels=[True, False]).ravel().tolist()
    assert total[COUNTS].tolist() == expected
    assert total["kappa"] == pytest.approx(cohen_kappa_score(found, truth))
    assert total["agreement"] == pytest.approx((expected[0] + expected[3]) / len(truth))
