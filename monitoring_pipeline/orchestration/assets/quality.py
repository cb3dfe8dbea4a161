"""Quality by hour, with confidence intervals."""

import dagster as dg
import pandas as pd

from monitoring_pipeline.derivations import derive_quality
from monitoring_pipeline.orchestration.assets.common import record_hours, table_asset, utc_index
from monitoring_pipeline.orchestration.checks import CheckedAsset, checked, table_checks
from monitoring_pipeline.orchestration.partitions import run_window
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.scoring.registry import ConfiguredScorer, reading_of
from monitoring_pipeline.tables import HOURLY_QUALITY, SCORER_COVERAGE


def quality_assets(
    hours: dg.TimeWindowPartitionsDefinition, scorers: list[ConfiguredScorer]
) -> list[dg.AssetsDefinition]:
    """The asset `hourly_quality`."""
    current = {(scorer.name, scorer.digest) for scorer in scorers}
    reading = reading_of(scorers)
    read_as = [*sorted(reading.pass_if.items()), *sorted(reading.scales.items())]
    version = " ".join(["2", *(f"{name} {how}" for name, how in read_as)])

    @table_asset(HOURLY_QUALITY, hours, "quality", deps=[SCORER_COVERAGE.name], code_version=version)
    def hourly_quality(context: dg.AssetExecutionContext, lake: LakeResource) -> CheckedAsset:
        window = run_window(context, lake)
        record_hours(context, window, _figures(derive_quality(lake, window, scorers), current))
        yield from checked(context, table_checks(context.asset_key, HOURLY_QUALITY, lake.read(HOURLY_QUALITY, window)))

    return [hourly_quality]


def _figures(rows: pd.DataFrame, current: set[tuple[str, str]]) -> pd.DataFrame:
    """A column for each scorer: pass rate, else mean score, of its current digest; experiments weighted by scores."""
    pairs = zip(rows["scorer"], rows["scorer_digest"], strict=True)
    is_current = pd.Series([pair in current for pair in pairs], index=rows.index, dtype=bool)
    own = rows[is_current & rows["mean_score"].notna()]
    is_rate = own.groupby("scorer")["pass_rate"].apply(lambda rates: rates.notna().all())
    label = own["scorer"].map(lambda name: f"{name}_{'pass_rate' if is_rate[name] else 'mean_score'}")
    shown = own["pass_rate"].where(own["scorer"].map(is_rate).astype(bool), own["mean_score"])
    weighted = own.assign(label=label, total=shown * own["scored"])
    sums = weighted.groupby(["hour", "label"])[["total", "scored"]].sum()
    figures = (sums["total"] / sums["scored"]).unstack("label")
    figures["rows"] = rows.groupby("hour").size()
    return utc_index(figures.reset_index(), "hour")
