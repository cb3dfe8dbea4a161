"""Agreement of the scorers with people's feedback and with their own other digests, by day."""

import dagster as dg
import pandas as pd

from monitoring_pipeline.analysis.agreement import COUNTS, with_kappa
from monitoring_pipeline.derivations import derive_agreement
from monitoring_pipeline.keys import ARCHIVE_KEY, scorer_key
from monitoring_pipeline.orchestration.assets.common import plain_number, table_asset
from monitoring_pipeline.orchestration.checks import CheckedAsset, checked, table_checks
from monitoring_pipeline.orchestration.partitions import run_window
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.tables import HOURLY_QUALITY, SCORER_AGREEMENT


def agreement_assets(
    days: dg.TimeWindowPartitionsDefinition, scorers: list[ConfiguredScorer]
) -> list[dg.AssetsDefinition]:
    """The asset `scorer_agreement`."""
    current = {(scorer.name, scorer.digest) for scorer in scorers}
    # hourly_quality is not read; it is the last table of an hour, so the day waits until its hours are complete.
    upstream = [ARCHIVE_KEY, *(scorer_key(scorer.name) for scorer in scorers), HOURLY_QUALITY.name]

    @table_asset(SCORER_AGREEMENT, days, "quality", deps=upstream)
    def scorer_agreement(context: dg.AssetExecutionContext, lake: LakeResource) -> CheckedAsset:
        window = run_window(context, lake)
        rows = derive_agreement(lake, window, scorers)
        for day in window.days():
            figures = _figures(rows[rows["day"].dt.date == day], current)
            context.add_asset_metadata(figures, asset_key=context.asset_key, partition_key=f"{day:%Y-%m-%d}")
        yield from checked(
            context, table_checks(context.asset_key, SCORER_AGREEMENT, lake.read(SCORER_AGREEMENT, window))
        )

    return [scorer_agreement]


def _figures(rows: pd.DataFrame, current: set[tuple[str, str]]) -> dict[str, float | int]:
    """The number of rows; agreement and kappa of the current digests with each feedback name, over all experiments."""
    pairs = zip(rows["scorer"], rows["scorer_digest"], strict=True)
    is_current = pd.Series([pair in current for pair in pairs], index=rows.index, dtype=bool)
    own = rows[is_current & (rows["reference"] == "human")]
    figures: dict[str, float | int] = {"dagster/row_count": len(rows)}
    for row in with_kappa(own.groupby(["scorer", "reference_name"], as_index=False)[COUNTS].sum()).itertuples():
        label = f"{row.scorer}_{row.reference_name}"
        figures[f"{label}_agreement"] = plain_number(row.agreement)
        if not pd.isna(row.kappa):
            figures[f"{label}_kappa"] = plain_number(row.kappa)
    return figures
