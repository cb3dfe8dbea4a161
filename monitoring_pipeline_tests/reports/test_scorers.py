from __future__ import annotations

import math

import pytest

from monitoring_pipeline.analysis.statistics import cohen_kappa
from monitoring_pipeline.reports.scorers import agreement_rows, scorer_rows
from monitoring_pipeline.tables import SCORER_AGREEMENT, SCORER_COVERAGE
from monitoring_pipeline_tests.reports.frames import agreement_row, coverage_row, frame, quality_row, quality_total


def test_scorer_rows_sum_the_ledger_and_leave_out_stale_digests() -> None:
    coverage = [
        coverage_row(1, "1", "polite", archived=100, eligible=90, scored=80, failed=4),
        coverage_row(2, "1", "polite", archived=50, eligible=10, scored=10, failed=0),
        coverage_row(2, "1", "polite", archived=50, eligible=50, scored=50, failed=0, digest="old"),
        coverage_row(2, "1", "never", archived=50, eligible=50, scored=0, failed=50),
        coverage_row(2, "2", "never", archived=9, eligible=0, scored=0, failed=0),
    ]
    quality = quality_total([quality_row(1, "1", "polite", 90, 0.8), quality_row(1, "1", "unledgered", 7, 0.5)])
    rows = scorer_rows(quality, frame(SCORER_COVERAGE, coverage)).set_index(["experiment_id", "scorer"])
    assert list(rows.index) == [("1", "never"), ("1", "polite"), ("1", "unledgered"), ("2", "never")]
    polite = rows.loc[("1", "polite")]
    assert polite[["archived", "unsampled", "eligible", "scored", "failed", "pending"]].tolist() == [
        *(150, 50, 100, 90, 4, 6)
    ]
    assert (polite["covered"], polite["mean_score"]) == (0.9, 0.8)
    assert rows.loc[("1", "never"), "covered"] == 0
    assert math.isnan(float(str(rows.loc[("2", "never"), "covered"])))
    assert rows.loc[("1", "unledgered"), ["scored", "failed"]].tolist() == [7, 1]


def test_agreement_is_summed_only_over_days() -> None:
    rows = [
        agreement_row(0, "1", "judge", "human", "judge", (4, 1, 0, 3)),
        agreement_row(5, "1", "judge", "human", "judge", (2, 0, 1, 2)),
        agreement_row(5, "1", "judge", "digest", "judge", (1, 0, 0, 0)),
        agreement_row(5, "1", "judge", "human", "thumbs_up", (0, 1, 0, 0)),
        agreement_row(5, "2", "judge", "human", "judge", (0, 0, 1, 0)),
        agreement_row(5, "1", "other", "human", "judge", (0, 0, 0, 1)),
    ]
    found = agreement_rows(frame(SCORER_AGREEMENT, rows)).to_dict("records")
    keys = ["scorer", "experiment_id", "reference", "reference_name", "compared"]
    assert [tuple(row[key] for key in keys) for row in found] == [
        ("judge", "1", "human", "judge", 13),
        ("judge", "1", "human", "thumbs_up", 1),
        ("judge", "1", "digest", "judge", 1),
        ("judge", "2", "human", "judge", 1),
        ("other", "1", "human", "judge", 1),
    ]
    assert (found[0]["pass_pass"], found[0]["agreement"]) == (6, pytest.approx(11 / 13))
    assert (found[0]["kappa"], found[0]["ci_low"], found[0]["ci_high"]) == cohen_kappa(6, 1, 1, 5)
    assert math.isnan(found[1]["kappa"])


def test_agreement_of_traces_without_an_experiment_is_kept() -> None:
    row = agreement_row(0, "1", "judge", "human", "judge", (4, 1, 0, 3)) | {"experiment_id": None}
    assert agreement_rows(frame(SCORER_AGREEMENT, [row]))["compared"].tolist() == [8]
