"""Quality from hand-made assessments and ledgers, summed up by Spark and checked against figures worked out here."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from pyspark.sql import DataFrame

from monitoring_pipeline.analysis.quality import Reading, Slot, quality
from monitoring_pipeline.analysis.verdicts import as_score
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.rows import conform
from monitoring_pipeline.tables import ASSESSMENTS, HOURLY_QUALITY, SCORER_COVERAGE, Table

FIVE = datetime(2026, 1, 1, 5, tzinfo=UTC)
SIX = FIVE + timedelta(hours=1)


def assessment(value: Any = None, **changes: Any) -> dict[str, Any]:
    """A row of assessments with a value, or with an error in its place when `error_code` is given."""
    return {
        "trace_id": "tr-1",
        "trace_hour": FIVE,
        "experiment_id": "1",
        "scorer": "judge",
        "scorer_digest": "d1",
        "assessment_id": "a-1",
        "value": None if "error_code" in changes else json.dumps(value),
        "score": None if "error_code" in changes else as_score(value),
        "cost_usd": None,
        **changes,
    }


def ledger(eligible: int, unsampled: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "hour": FIVE,
        "experiment_id": "1",
        "scorer": "judge",
        "scorer_digest": "d1",
        "eligible": eligible,
        "unsampled": unsampled,
        **changes,
    }


def summed_up(
    lake: LakeResource,
    assessments: list[dict[str, Any]],
    lines: list[dict[str, Any]],
    slot: Slot = "hour",
    reading: Reading | None = None,
) -> list[dict[str, Any]]:
    """The rows that `quality` computes from the stored tables, in order, with None for null."""

    def stored(table: Table, rows: list[dict[str, Any]]) -> DataFrame:
        if not rows:
            return lake.read(table)
        schema = table.columns
        arrow = conform(table, pa.Table.from_pylist(rows, schema=schema))
        return lake.spark.session.createDataFrame(arrow)

    frame = quality(stored(ASSESSMENTS, assessments), stored(SCORER_COVERAGE, lines), reading or Reading(), slot)
    keys = [column for column in ("hour", "experiment_id", "scorer", "scorer_digest") if column in frame]
    ordered = frame.sort_values(keys).astype(object)
    return ordered.where(frame.notna(), None).to_dict("records")


def of_values(lake: LakeResource, *values: Any, population: int | None = None) -> dict[str, Any]:
    lines = [ledger(len(values), unsampled=(population or len(values)) - len(values))]
    (row,) = summed_up(lake, [assessment(value) for value in values], lines)
    return row


def test_the_columns_match_the_table(lake: LakeResource) -> None:
    row = of_values(lake, True)
    assert (row.pop("covered_hours"), row.pop("hours")) == (1, 1)
    assert [*row, "date"] == HOURLY_QUALITY.schema.names


def test_the_mean_is_the_mean_of_the_scores(lake: LakeResource) -> None:
    assert of_values(lake, 1, 2, 4.5)["mean_score"] == pytest.approx(2.5)


@pytest.mark.parametrize(
    "values",
    [
        (True, False, True, True),
        ("yes", "no", "yes", "yes"),
        ("PASS", "Fail", "pass", "true"),
        (True, "no", "yes", True),
        (" yes", "no ", "Yes\n", "\tpass\r\n"),
    ],
)
def test_the_pass_rate_is_the_mean_of_passes_and_fails(lake: LakeResource, values: tuple[Any, ...]) -> None:
    row = of_values(lake, *values)

    assert (row["pass_rate"], row["mean_score"]) == (0.75, 0.75)


@pytest.mark.parametrize(
    "values",
    [(1, 0, 1, 1), (1.0, 0.0), (True, 0.5), (True, "maybe"), ("1", "0"), ("not yes",), ({"yes": 1},)],
    ids=str,
)
def test_other_values_have_no_pass_rate(lake: LakeResource, values: tuple[Any, ...]) -> None:
    assert of_values(lake, *values)["pass_rate"] is None


def test_categories_are_counted_and_have_no_mean(lake: LakeResource) -> None:
    row = of_values(lake, "polite", "rude", "polite")

    assert {name: row[name] for name in ("scored", "mean_score", "pass_rate", "ci_low", "ci_high")} == {
        "scored": 3,
        "mean_score": None,
        "pass_rate": None,
        "ci_low": None,
        "ci_high": None,
    }


def test_failures_are_counted_and_not_averaged(lake: LakeResource) -> None:
    rows = [assessment(True), assessment(True), assessment(error_code="SCORER_ERROR"), assessment(error_code="X")]

    (row,) = summed_up(lake, rows, [ledger(4)])

    assert (row["scored"], row["failed"], row["mean_score"], row["pass_rate"]) == (2, 2, 1.0, 1.0)


def test_failures_alone_have_no_mean(lake: LakeResource) -> None:
    (row,) = summed_up(lake, [assessment(error_code="SCORER_ERROR")], [ledger(1)])

    assert (row["scored"], row["failed"], row["mean_score"], row["pass_rate"], row["ci_low"]) == (
        0,
        1,
        None,
        None,
        None,
    )


def test_a_complete_sample_has_an_interval_of_zero_width(lake: LakeResource) -> None:
    row = of_values(lake, 0.2, 0.4, 0.9)

    assert row["ci_low"] == row["ci_high"] == pytest.approx(0.5)


def test_the_population_is_all_traces_that_passed_the_filter(lake: LakeResource) -> None:
    few, many = (of_values(lake, True, False, True, True, population=size) for size in (10, 1000))

    assert (few["population"], many["population"]) == (10, 1000)
    # 3 of 4 passing is too unlikely if only 3 of the 10 pass; 9 at most do, as one fails
    assert (few["ci_low"], few["ci_high"]) == (0.4, 0.9)
    assert many["ci_low"] < few["ci_low"]
    assert (few["pass_low"], few["pass_high"]) == (few["ci_low"], few["ci_high"])


def test_failed_traces_belong_to_the_population_but_not_to_the_sample(lake: LakeResource) -> None:
    rows = [assessment(0.2), assessment(0.8), assessment(error_code="SCORER_ERROR")]

    (row,) = summed_up(lake, rows, [ledger(3)])

    assert row["ci_low"] < row["mean_score"] < row["ci_high"]


def test_hours_have_separate_rows(lake: LakeResource) -> None:
    rows = [assessment(1), assessment(3, trace_hour=SIX), assessment(5, trace_hour=SIX)]

    found = summed_up(lake, rows, [ledger(1), ledger(2, hour=SIX)])

    assert [(pd.Timestamp(row["hour"], tz="UTC"), row["mean_score"]) for row in found] == [(FIVE, 1), (SIX, 4)]


def test_a_day_combines_its_hours(lake: LakeResource) -> None:
    rows = [assessment(1), assessment(3, trace_hour=SIX), assessment(5, trace_hour=SIX)]

    lines = [ledger(1, 7), ledger(2, 90, hour=SIX), ledger(0, 50, hour=SIX + timedelta(hours=1))]
    (row,) = summed_up(lake, rows, lines, "all")
    (of_day,) = summed_up(lake, rows, lines, "day")

    assert "hour" not in row
    assert pd.Timestamp(of_day.pop("hour"), tz="UTC") == FIVE.replace(hour=0)
    assert of_day == row
    assert row["mean_score"] == pytest.approx((8 * 1 + 92 * 4) / 100)  # by traces, not by scores
    assert (row["population"], row["covered_hours"], row["hours"]) == (100, 2, 3)
    assert (row["ci_low"], row["ci_high"]) == (None, None)  # three scores on a scale that is not known


def test_an_interval_stays_on_the_scale_of_the_scorer(lake: LakeResource) -> None:
    rows = [assessment(5), assessment(5), assessment(4)]

    (row,) = summed_up(lake, rows, [ledger(3, 97)], reading=Reading(scales={"judge": (1.0, 5.0)}))

    assert 1 <= row["ci_low"] < row["mean_score"] < row["ci_high"] <= 5
    assert (row["pass_rate"], row["pass_low"]) == (None, None)


@pytest.mark.parametrize("column", ["scorer_digest", "scorer", "experiment_id"])
def test_digests_scorers_and_experiments_have_separate_rows(lake: LakeResource, column: str) -> None:
    rows = [assessment(True), assessment(0.25, **{column: "z"}), assessment(0.75, **{column: "z"})]

    first, other = summed_up(lake, rows, [ledger(1), ledger(2, 50, **{column: "z"})])

    assert (first["scored"], first["mean_score"], first["pass_rate"], first["ci_low"]) == (1, 1.0, 1.0, 1.0)
    assert (other[column], other["scored"], other["mean_score"], other["pass_rate"]) == ("z", 2, 0.5, None)
    assert other["ci_low"] < 0.5 < other["ci_high"]


def test_traces_without_an_experiment_find_their_ledger(lake: LakeResource) -> None:
    rows = [assessment(0.5, experiment_id=None), assessment(1.0, experiment_id=None)]

    (row,) = summed_up(lake, rows, [ledger(2, experiment_id=None)])

    assert row["ci_low"] == row["ci_high"] == 0.75


def test_known_costs_are_added_up(lake: LakeResource) -> None:
    rows = [assessment(1, cost_usd=0.25), assessment(1), assessment(error_code="X", cost_usd=0.5)]

    (row,) = summed_up(lake, rows, [ledger(3)])

    assert row["cost_usd"] == 0.75


def test_without_any_cost_the_sum_is_null(lake: LakeResource) -> None:
    assert of_values(lake, 1)["cost_usd"] is None


def test_without_a_ledger_there_is_no_interval(lake: LakeResource) -> None:
    (row,) = summed_up(lake, [assessment(0.2), assessment(0.4)], [])

    assert (row["scored"], row["mean_score"], row["ci_low"], row["ci_high"]) == (2, pytest.approx(0.3), None, None)


def test_a_ledger_without_assessments_yields_no_row(lake: LakeResource) -> None:
    assert summed_up(lake, [], [ledger(5)]) == []


@pytest.mark.parametrize("slot", ["hour", "day", "all"])
def test_empty_input_yields_an_empty_frame_that_can_be_stored(lake: LakeResource, slot: Slot) -> None:
    frame = quality(lake.read(ASSESSMENTS), lake.read(SCORER_COVERAGE), Reading(), slot)

    assert len(frame) == 0
    assert ("hour" in frame) == (slot != "all")
    if slot == "hour":
        frame = frame.drop(columns=["covered_hours", "hours"])
        frame["hour"] = pd.to_datetime(frame["hour"], utc=True)
        assert conform(HOURLY_QUALITY, pa.Table.from_pandas(frame, preserve_index=False)).num_rows == 0


@pytest.mark.parametrize(
    ("rule", "values", "rate"),
    [
        (">= 0.8", [0.8, 0.79, 1.0, 0.2], 0.5),
        ("<= 0", [0.0, 0.5, 1.0], 1 / 3),
        ("== 1", [True, False, True], 2 / 3),
        ("<= 0", [True, False, True], 1 / 3),
        (">= 0.5", ["blue", "red"], None),
    ],
)
def test_the_pass_rule_of_the_scorer_determines_which_scores_pass(
    rule: str, values: list[Any], rate: float | None, lake: LakeResource
) -> None:
    rows = [assessment(value) for value in values]
    (row,) = summed_up(lake, rows, [ledger(len(values))], reading=Reading({"judge": rule, "other": ">= 0"}))
    assert row["pass_rate"] == pytest.approx(rate) if rate is not None else row["pass_rate"] is None
