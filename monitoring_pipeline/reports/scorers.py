"""The scorer sections of a report: each scorer's ledger, its scores, and its agreement with people."""

from __future__ import annotations

import pandas as pd

from monitoring_pipeline.analysis.agreement import COUNTS, with_kappa
from monitoring_pipeline.analysis.quality import FIGURES

LEDGER = ["archived", "filtered_out", "unsampled", "eligible", "scored", "failed", "over_budget", "pending"]
LABELS = ["hour", "date", "experiment_id", "trace_name", "scorer", "scorer_digest"]

KAPPA_EXPLAINED = (
    "Kappa is agreement beyond chance, given both pass rates: 1 is complete agreement, 0 is agreement by chance alone, "
    "below 0 is less than chance. It has no value if one of the two gave every trace the same verdict."
)


def as_floats(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` with all number columns as float64, NaN for unknown values."""
    return rows.astype(dict.fromkeys(rows.columns.difference(LABELS), "float64"))


def scorer_rows(quality_total: pd.DataFrame, coverage: pd.DataFrame) -> pd.DataFrame:
    """One row per experiment, scorer and digest: the sums of the period's ledger, and its quality.

    Columns: experiment_id, scorer, scorer_digest, the ledger's counts, covered (scored / eligible), the figures
    of `analysis.quality.quality`, scoring_cost_usd. Coverage of a digest other than the one with quality is left out.
    Without coverage rows, scored and failed come from the quality row.
    """
    key = ["experiment_id", "scorer", "scorer_digest"]
    ledger = coverage.groupby(key, as_index=False)[LEDGER].sum()
    quality = quality_total.rename(columns={"cost_usd": "scoring_cost_usd"})
    quality = quality.filter(
        [*key, "scored", "failed", *FIGURES, "population", "covered_hours", "hours", "scoring_cost_usd"]
    )
    digests = set(quality.set_index(key).index)
    scorers = {(experiment_id, scorer) for experiment_id, scorer, _ in digests}
    rows = as_floats(ledger.merge(quality, on=key, how="outer", suffixes=("", "_quality"))).set_index(key)
    rows = rows.drop(index=[k for k in rows.index if k not in digests and k[:2] in scorers]).reset_index()
    rows["covered"] = rows["scored"] / rows["eligible"].mask(rows["eligible"] == 0)
    for column in ("scored", "failed"):
        rows[column] = rows[column].fillna(rows.pop(f"{column}_quality"))
    return rows.sort_values(key, ignore_index=True)


def agreement_rows(agreement: pd.DataFrame) -> pd.DataFrame:
    """One row per experiment, scorer and reference: the sums of the days' counts, and the agreement computed from them.

    Columns: experiment_id, scorer, reference, reference_name, the four counts, compared (their sum), agreement, kappa,
    and its 95 % interval ci_low and ci_high.
    """
    key = ["scorer", "experiment_id", "reference", "reference_name"]
    sums = agreement.groupby(key, as_index=False, dropna=False)[COUNTS].sum()
    rows = with_kappa(sums).rename(columns={"kappa_low": "ci_low", "kappa_high": "ci_high"})
    rows["compared"] = rows[COUNTS].sum(axis="columns")
    people_first = [True, True, False, True]
    return rows.sort_values(key, ascending=people_first, ignore_index=True)
