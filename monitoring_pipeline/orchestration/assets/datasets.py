"""The configured datasets, by day."""

import hashlib
from collections.abc import Sequence

import dagster as dg

from monitoring_pipeline.errors import SettingsError
from monitoring_pipeline.keys import ARCHIVE_KEY, DATASETS_GROUP, dataset_key, scorer_key
from monitoring_pipeline.orchestration.assets.common import tags
from monitoring_pipeline.orchestration.partitions import run_window
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.settings import DatasetSettings
from monitoring_pipeline.settings.datasets import Choice
from monitoring_pipeline.traces.filters import parse_filter

SHOWN_TRACES = 5
BY_KIND = {
    "traces": "Finished traces",
    "expectations": "Finished traces with expectations",
    "tagged": "Finished traces with a tag",
    "failures": "Traces that do not pass a scorer",
    "regression": "Traces that score below a threshold",
    "diverse": "A sample over status, latency and the order of tools",
}


def dataset_assets(
    days: dg.TimeWindowPartitionsDefinition, scorers: Sequence[ConfiguredScorer], datasets: Sequence[DatasetSettings]
) -> list[dg.AssetsDefinition]:
    """An asset for each dataset.

    Raises:
        SettingsError: with a line for each filter that MLflow does not accept.
    """
    if problems := [f"dataset {entry.name!r}: {problem}" for entry in datasets if (problem := _filter_problem(entry))]:
        raise SettingsError(problems)
    return [_dataset_asset(days, scorers, entry) for entry in datasets]


def _dataset_asset(
    days: dg.TimeWindowPartitionsDefinition, scorers: Sequence[ConfiguredScorer], entry: DatasetSettings
) -> dg.AssetsDefinition:
    scorer = next((scorer for scorer in scorers if scorer.name == entry.scorer), None)
    hours = dg.TimeWindowPartitionMapping(start_offset=1 - entry.days)
    upstream = [dg.AssetKey(ARCHIVE_KEY), *([scorer_key(scorer.name)] if scorer else [])]

    @dg.asset(
        key=dataset_key(entry.name),
        deps=[dg.AssetDep(key, partition_mapping=hours) for key in upstream],
        partitions_def=days,
        group_name=DATASETS_GROUP,
        kinds={*entry.formats, *({"mlflow"} if entry.mlflow else ())},
        tags=tags(None),
        code_version=_version(entry, scorer),
        backfill_policy=dg.BackfillPolicy.single_run(),
        description=f"{BY_KIND[entry.kind]}, as records for evaluation.",
    )
    def dataset(context: dg.AssetExecutionContext, lake: LakeResource, tracking: TrackingResource) -> None:
        from monitoring_pipeline.datasets.configured import build, window_of_day

        for day in run_window(context, lake).days():
            built = build(lake, tracking, scorers, entry, window_of_day(entry, day), f"{day:%Y-%m-%d}")
            records, origin = built.dataset, built.dataset.origin
            shown = ", ".join(record["metadata"]["source_trace"] for record in records[:SHOWN_TRACES])
            figures = {
                "record_count": len(records),
                "without_inputs": origin.without_inputs if origin else 0,
                "digest": built.digest,
                "source_traces": shown,
                "manifest": dg.MetadataValue.path(built.manifest),
            }
            if built.merged:
                figures |= {
                    "mlflow_dataset_id": built.merged.dataset_id,
                    "mlflow_records": built.merged.records,
                    "mlflow_records_added": built.merged.added,
                }
            context.add_asset_metadata(figures, asset_key=context.asset_key, partition_key=f"{day:%Y-%m-%d}")
            context.log.info(f"{entry.name} of {day}: {len(records)} records, {built.manifest}")

    return dataset


def _version(entry: DatasetSettings, scorer: ConfiguredScorer | None) -> str:
    """A code version that changes with the choice of records and with the scorer it uses."""
    choice = {name: getattr(entry, name) for name in (*Choice.model_fields, "days")}
    relevant = (sorted(choice.items()), scorer and (scorer.digest, scorer.pass_if))
    return f"1 {hashlib.sha256(repr(relevant).encode()).hexdigest()[:16]}"


def _filter_problem(entry: DatasetSettings) -> str | None:
    try:
        parse_filter(entry.filter) if entry.filter else None
    except ValueError as error:
        return str(error)
    return None
