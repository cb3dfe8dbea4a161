"""Runs code scorers on the engine's workers, next to the traces; only results reach this process.

The workers load a scorer from its settings and must compute the same digest.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Generator, Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

import pyarrow as pa

from monitoring_pipeline.errors import EngineError
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.scoring.isolation import IsolatedScorer
from monitoring_pipeline.scoring.limits import Budget
from monitoring_pipeline.scoring.pending import pending_trace
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.runner import Result
from monitoring_pipeline.scoring.specs import ScorerSpec
from monitoring_pipeline.tables import ASSESSMENTS
from monitoring_pipeline.windows import EPOCH

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, Row

TASK_TRACES = 1000
WORKER_ROWS = 100  # traces that a worker holds as Python objects at a time
RESULTS = pa.schema([*(column.with_nullable(True) for column in ASSESSMENTS.columns), ("applies", pa.bool_())])
TIMES = ("trace_hour", "assessed_at")


def runs_in_engine(lake: LakeResource, scorer: ConfiguredScorer) -> bool:
    """Whether the engine's workers run the scorer: a code scorer with no calls for this process to limit or count.

    The embedded engine has no workers; it runs in this process.
    """
    if lake.spark.is_embedded or scorer.settings is None:
        return False
    return not (scorer.model or scorer.settings.concurrency or scorer.budget != Budget())


def run_in_engine(scorer: ConfiguredScorer, parts: Iterable[DataFrame], dagster_run_id: str) -> Generator[Result]:
    """Results of `assess` for the rows of `pending_rows`, in order of completion.

    Only for a scorer that `runs_in_engine`.

    Raises:
        EngineError: the workers cannot load the scorer, or have different code for it.
    """
    from pyspark.errors import PySparkException
    from pyspark.sql import functions as F
    from pyspark.sql.pandas.types import from_arrow_schema

    work = functools.partial(_work, spec=ScorerSpec.of(scorer), dagster_run_id=dagster_run_id)
    for rows in parts:
        if not (count := rows.count()):
            continue
        spread = rows.repartition(math.ceil(count / TASK_TRACES))
        try:
            results = spread.mapInArrow(work, from_arrow_schema(RESULTS))
            # Collected timestamps would be local times without a time zone.
            counted = results.withColumns({name: F.unix_micros(name) for name in TIMES})
            for row in counted.toLocalIterator():
                yield _result(row)
        except PySparkException as error:
            raise EngineError(f"scorer {scorer.name!r} cannot run on the engine's workers: {_reason(error)}") from error


def _work(batches: Iterator[pa.RecordBatch], spec: ScorerSpec, dagster_run_id: str) -> Iterator[pa.RecordBatch]:
    with IsolatedScorer(spec.load(), dagster_run_id) as assess:
        for batch in batches:
            for first in range(0, batch.num_rows, WORKER_ROWS):
                pending = map(pending_trace, batch.slice(first, WORKER_ROWS).to_pylist())
                rows = [{**row, "applies": applies} for row, applies in map(assess, pending)]
                yield from pa.Table.from_pylist(rows, schema=RESULTS).to_batches()


def _result(row: Row) -> Result:
    values = row.asDict()
    applies = values.pop("applies")
    times = {name: EPOCH + timedelta(microseconds=values[name]) for name in TIMES}
    return {**values, **times}, applies


def _reason(error: Exception) -> str:
    """The worker's exception, without its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    return raised[-1] if raised else lines[0]
