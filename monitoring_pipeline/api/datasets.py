"""Build evaluation datasets from the archive, or from traces that you pass.

Records are {"inputs", "outputs", "expectations", "metadata"}, for `mlflow.genai.evaluate(data=…)`. Without times, the
functions take the traces of the last 7 days. Only finished traces count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monitoring_pipeline.api.common import renamed, window_of
from monitoring_pipeline.datasets.records import Dataset, Record, with_guidelines
from monitoring_pipeline.datasets.schema import validate_dataset
from monitoring_pipeline.errors import MonitoringError
from monitoring_pipeline.settings import Settings, load_settings
from monitoring_pipeline.settings.upkeep import oldest_kept

if TYPE_CHECKING:
    from mlflow.genai.datasets import EvaluationDataset

    from monitoring_pipeline.archive.given import GivenTraces
    from monitoring_pipeline.datasets.diverse import Embed
    from monitoring_pipeline.datasets.files import Written
    from monitoring_pipeline.datasets.managed import Merged
    from monitoring_pipeline.datasets.query import Query
    from monitoring_pipeline.resources.lake import LakeResource
    from monitoring_pipeline.settings.datasets import Format
    from monitoring_pipeline.windows import Window

__all__ = [
    "build_dataset_from_tagged_traces",
    "build_dataset_from_traces",
    "build_dataset_with_expectations",
    "build_diverse_eval_dataset",
    "build_regression_tests",
    "extract_failures_for_eval",
    "merge_into_mlflow_dataset",
    "read_dataset",
    "rebuild_dataset",
    "validate_dataset",
    "with_guidelines",
    "with_traces",
    "write_dataset",
]
LOOK_BACK = timedelta(days=7)


@renamed(filter="filter_string")
def build_dataset_from_traces(
    traces: GivenTraces | None = None,
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    filter_string: str | None = None,
    with_outputs: bool = True,
    max_records: int | None = None,
    experiment_id: str | None = None,
    settings: Settings | None = None,
) -> Dataset:
    """Records of production traffic, newest first: with outputs to score past answers, or without to run them again.

    A record has the expectations logged on its trace. `filter_string` is MLflow's trace filter; `max_records` keeps the
    newest.

    Raises:
        MonitoringError: the settings, the times or the filter are wrong, or both traces and times are given.
    """
    return _build(
        settings,
        traces,
        start_time,
        end_time,
        kind="traces",
        filter=filter_string,
        with_outputs=with_outputs,
        max_records=max_records,
        experiment_id=experiment_id,
    )


@renamed(filter="filter_string")
def build_dataset_with_expectations(
    experiment_id: str | None = None,
    traces: GivenTraces | None = None,
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    filter_string: str | None = None,
    with_outputs: bool = True,
    max_records: int | None = None,
    settings: Settings | None = None,
) -> Dataset:
    """Records of the traces with expectations logged on them as ground truth; feedback does not count.

    If a trace has several expectations of one name, the latest counts.

    Raises:
        MonitoringError: as `build_dataset_from_traces`.
    """
    return _build(
        settings,
        traces,
        start_time,
        end_time,
        kind="expectations",
        filter=filter_string,
        with_outputs=with_outputs,
        max_records=max_records,
        experiment_id=experiment_id,
    )


@renamed(filter="filter_string")
def build_dataset_from_tagged_traces(
    tag_key: str,
    tag_value: str | None = None,
    traces: GivenTraces | None = None,
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    filter_string: str | None = None,
    with_outputs: bool = True,
    max_records: int | None = None,
    experiment_id: str | None = None,
    settings: Settings | None = None,
) -> Dataset:
    """Records of the traces with a tag, of any value or of `tag_value`; metadata has the value as `tag_value`.

    Raises:
        MonitoringError: as `build_dataset_from_traces`.
    """
    return _build(
        settings,
        traces,
        start_time,
        end_time,
        kind="tagged",
        tag=tag_key,
        tag_value=tag_value,
        filter=filter_string,
        with_outputs=with_outputs,
        max_records=max_records,
        experiment_id=experiment_id,
    )


@renamed(filter="filter_string")
def extract_failures_for_eval(
    scorer_name: str,
    run_id: str | None = None,
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    filter_string: str | None = None,
    with_outputs: bool = True,
    max_records: int | None = None,
    experiment_id: str | None = None,
    settings: Settings | None = None,
) -> Dataset:
    """Records of the traces that do not pass a scorer, with `failure_reason` and `original_score` in their metadata.

    A person's feedback of that name decides, else the configured scorer's result (current digest, `pass_if`), else, if
    no such scorer is configured, any feedback of that name. Feedback passes from 0.5 on. With `run_id` only feedback of
    that MLflow run counts, such as an evaluation, by default without limits of time.

    Raises:
        MonitoringError: as `build_dataset_from_traces`; or neither a scorer nor feedback has that name.
    """
    return _build(
        settings,
        None,
        start_time,
        end_time,
        kind="failures",
        scorer=scorer_name,
        run_id=run_id,
        filter=filter_string,
        with_outputs=with_outputs,
        max_records=max_records,
        experiment_id=experiment_id,
    )


@renamed(filter="filter_string")
def build_regression_tests(
    scorer_name: str,
    threshold: float = 0.5,
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    filter_string: str | None = None,
    with_outputs: bool = False,
    max_records: int | None = None,
    experiment_id: str | None = None,
    settings: Settings | None = None,
) -> Dataset:
    """Records, to run again, of the traces that scored below `threshold`, with `original_score` in their metadata.

    The score is chosen as for `extract_failures_for_eval`, which also suits scorers whose low scores are good.

    Raises:
        MonitoringError: as `extract_failures_for_eval`.
    """
    return _build(
        settings,
        None,
        start_time,
        end_time,
        kind="regression",
        scorer=scorer_name,
        threshold=threshold,
        filter=filter_string,
        with_outputs=with_outputs,
        max_records=max_records,
        experiment_id=experiment_id,
    )


@renamed(filter="filter_string")
def build_diverse_eval_dataset(
    traces: GivenTraces | None = None,
    sample_size: int = 50,
    seed: int = 0,
    embed: Embed | None = None,
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    filter_string: str | None = None,
    with_outputs: bool = True,
    experiment_id: str | None = None,
    settings: Settings | None = None,
) -> Dataset:
    """At most `sample_size` records that differ in status, latency (under 1 s, under 5 s, slower) and order of tools.

    A large enough sample has every combination; no two records have the same inputs. `embed`, a function from a list of
    texts (inputs as JSON) to one vector each, makes traces of one combination differ in meaning too. The same traces
    and seed give the same sample, whatever the order of the traces.

    Raises:
        MonitoringError: as `build_dataset_from_traces`; or `embed` does not return a vector for each text.
    """
    return _build(
        settings,
        traces,
        start_time,
        end_time,
        embed,
        kind="diverse",
        sample_size=sample_size,
        seed=seed,
        embedded=embed is not None,
        filter=filter_string,
        with_outputs=with_outputs,
        experiment_id=experiment_id,
    )


def with_traces(
    records: Iterable[Record] | EvaluationDataset, settings: Settings | None = None
) -> list[dict[str, Any]]:
    """Records, or the records of an MLflow dataset, with `trace`: the archived trace that each came from.

    With these, scorers in `mlflow.genai.evaluate` see what happened, such as which tools were called; for records with
    outputs only, MLflow makes a bare trace. In an experiment other than the traces' own, MLflow works on copies.

    Raises:
        MonitoringError: the settings are wrong, a record does not name its trace, or the archive does not have it.
    """
    from monitoring_pipeline.datasets import replay

    return replay.with_traces(_lake(settings), records)


def write_dataset(
    records: Iterable[Record], folder: str | Path, formats: Sequence[Format] = ("jsonl",), name: str | None = None
) -> Written:
    """Write records and a manifest to a folder, replacing those there; returns manifest (a path) and digest.

    Raises:
        MonitoringError: a format is unknown (there are jsonl and parquet), or the folder cannot be written.
    """
    from monitoring_pipeline.datasets import files

    return files.write_dataset(records, folder, formats, name)


def read_dataset(path: str | Path) -> Dataset:
    """The records that `write_dataset` wrote to a folder, checked against their manifest.

    Raises:
        MonitoringError: the folder has no dataset, or its records do not match the manifest.
    """
    from monitoring_pipeline.datasets import files

    return files.read_dataset(path)


def rebuild_dataset(path: str | Path, embed: Embed | None = None, settings: Settings | None = None) -> Dataset:
    """Build the dataset of a manifest (or its folder) again, from the same versions of the tables.

    Raises:
        MonitoringError: the settings are wrong, the dataset does not come from the archive, a version of a table can no
            longer be read, or the records differ.
    """
    from monitoring_pipeline.datasets import files

    return files.rebuild(_lake(settings), path, embed)


def merge_into_mlflow_dataset(records: Iterable[Record], name: str, settings: Settings | None = None) -> Merged:
    """Add records to the MLflow dataset of that name, created if missing; records whose inputs it has stay unchanged.

    Returns dataset_id, name, `added` and `records` (the new total). Pass `mlflow.genai.datasets.get_dataset(name)` to
    evaluate. Metadata become the records' tags.

    Raises:
        MonitoringError: the settings are wrong, several datasets have that name, or the store cannot be used.
    """
    from monitoring_pipeline.datasets.managed import merge_into_mlflow
    from monitoring_pipeline.resources.build import build_resources

    return merge_into_mlflow(build_resources(settings or load_settings())["tracking"], name, records)


def _lake(settings: Settings | None) -> LakeResource:
    from monitoring_pipeline.resources.build import build_resources

    return build_resources(settings or load_settings())["lake"]


def _build(
    settings: Settings | None,
    traces: GivenTraces | None,
    start_time: datetime | None,
    end_time: datetime | None,
    embed: Embed | None = None,
    **query: Any,
) -> Dataset:
    """The dataset of `traces`, or of the archived traces of the hours; `query` holds fields of `Query`."""
    from monitoring_pipeline.archive.given import archive_rows
    from monitoring_pipeline.datasets.building import dataset_of_lake, dataset_of_rows
    from monitoring_pipeline.datasets.query import query_of
    from monitoring_pipeline.resources.build import build_resources
    from monitoring_pipeline.scoring.registry import load_scorers

    settings = settings or load_settings()
    lake = build_resources(settings)["lake"]
    if traces is not None:
        if start_time or end_time:
            raise MonitoringError("give either traces, or start_time and end_time of archived traces")
        return dataset_of_rows(archive_rows(lake.spark.session, traces), None, query_of(None, [], **query), embed)
    scorers = load_scorers([entry for entry in settings.scorers if entry.name == query.get("scorer")])
    at_any_time = query.get("run_id") and not (start_time or end_time)
    window = None if at_any_time else _window(settings, start_time, end_time)
    whole_query = query_of(window, scorers, **query)
    dataset = dataset_of_lake(lake, whole_query, embed)
    if not dataset and whole_query.scorer and not scorers:
        _check_name(lake, whole_query, [entry.name for entry in settings.scorers])
    return dataset


def _window(settings: Settings, start_time: datetime | None, end_time: datetime | None) -> Window:
    if start_time is None:
        latest = end_time.astimezone(UTC) if end_time else datetime.now(UTC)
        kept_since = oldest_kept(settings.upkeep.keep_archive_days) or settings.archive.start
        start_time = max(latest - LOOK_BACK, settings.archive.start, kept_since)
    return window_of(settings, start_time, end_time)


def _check_name(lake: LakeResource, query: Query, configured: list[str]) -> None:
    """Refuse a name that neither a scorer nor any feedback has: it is a mistake, not a day without failures."""
    from pyspark.sql import functions as F

    from monitoring_pipeline.tables import AGENT_TRACES

    entries = lake.read(AGENT_TRACES, query.window).select(F.explode("assessments").alias("entry")).select("entry.*")
    names = sorted(
        {row["name"] for row in entries.where(F.col("kind") == "feedback").select("name").distinct().collect()}
    )
    if query.scorer not in names:
        raise MonitoringError(
            f"no scorer and no feedback is named {query.scorer!r}; scorers are {', '.join(configured)}; feedback in "
            f"these hours is {', '.join(names) or 'none'}"
        )
