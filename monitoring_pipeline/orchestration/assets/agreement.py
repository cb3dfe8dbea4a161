"""Agreement of the scorers with people's feedback and with their own other digests, by day."""

import dagster as dg
import pandas as pd
import pyarrow as pa

from monitoring_pipeline.analysis.agreement import COUNTS, agreement, with_kappa
from monitoring_pipeline.keys import ARCHIVE_KEY, scorer_key
from monitoring_pipeline.orchestration.assets.common import plain_number, table_metadata, tags
from monitoring_pipeline.orchestration.checks import CheckedAsset, checked, table_check_specs, table_checks
from monitoring_pipeline.orchestration.partitions import run_window
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.tables import AGENT_TRACES, ASSESSMENTS, HOURLY_QUALITY, SCORER_AGREEMENT


def agreement_assets(
    days: dg.TimeWindowPartitionsDefinition, scorers: list[ConfiguredScorer]
) -> list[dg.AssetsDefinition]:
    """The table of agreement."""
    current = {(scorer.name, scorer.digest) for scorer in scorers}

    @dg.asset(
        # Quality is not read: it is the last that is made of an hour, and a day is made of hours that are complete.
        deps=[ARCHIVE_KEY, *(scorer_key(scorer.name) for scorer in scorers), HOURLY_QUALITY.name],
        partitions_def=days,
        group_name="quality",
        kinds={"spark", "deltalake"},
        code_version="1",
        backfill_policy=dg.BackfillPolicy.single_run(),
        tags=tags(SCORER_AGREEMENT),
        metadata=table_metadata(SCORER_AGREEMENT),
        check_specs=table_check_specs(SCORER_AGREEMENT.name, SCORER_AGREEMENT),
        description=SCORER_AGREEMENT.description,
    )
    def scorer_agreement(context: dg.AssetExecutionContext, lake: LakeResource) -> CheckedAsset:
        window = run_window(context, lake)
        rows = agreement(lake.read(AGENT_TRACES, window), lake.read(ASSESSMENTS, window), scorers)
        lake.replace(SCORER_AGREEMENT, window, pa.Table.from_pandas(rows, preserve_index=False))
        for day in window.days():
            context.add_asset_metadata(
                _figures(rows[rows["day"].dt.date == day], current),
                asset_key=context.asset_key,
                partition_key=f"{day:%Y-%m-%d}",
            )
        yield from checked(
            context, table_checks(context.asset_key, SCORER_AGREEMENT, lake.read(SCORER_AGREEMENT, window))
        )

    return [scorer_agreement]


def _figures(rows: pd.DataFrame, current: set[tuple[str, str]]) -> dict[str, float | int]:
    """The number of rows; agreement and kappa of the current digests with each recorded name, over experiments."""
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
