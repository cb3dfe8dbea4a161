"""Traces that fail a scorer or recorded feedback."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitoring_pipeline.analysis.verdicts import passes, score_of
from monitoring_pipeline.datasets.query import Query

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

SOURCE_RUN = "mlflow.assessment.sourceRunId"  # in the metadata of an evaluation's feedback
PERSON, RESULT, PROGRAM = 2, 1, 0  # the highest rank decides


def failing(traces: DataFrame, assessments: DataFrame | None, query: Query) -> DataFrame:
    """Return the rows of `traces` that fail, with the `score`, `rationale` and `digest` of the deciding assessment.

    One assessment per trace decides: the latest by a person under the scorer's name, else the scorer's result for the
    digest in `query`, else, if no scorer with that name is configured, the latest by a program. With `run_id`, only
    feedback that the run logged, or on traces that the run logged, counts. Kind `regression` selects scores below
    `threshold`; `failures` selects results that do not pass `pass_if` and feedback below 0.5, as in the table
    scorer_agreement. An assessment without a score, such as an error, is not a failure. `digest` is null for feedback.
    """
    from pyspark.sql import functions as F

    candidates = _feedback(traces, query)
    if assessments is not None:
        candidates = candidates.unionByName(_results(assessments, query))
    latest = F.struct("rank", "last_update_time", "create_time", "assessment_id")
    deciding = candidates.groupBy("trace_id").agg(
        F.max_by(F.struct("score", "rationale", "digest", "failed"), latest).alias("deciding")
    )
    return traces.join(deciding.where("deciding.failed").select("trace_id", "deciding.*"), "trace_id")


def _results(assessments: DataFrame, query: Query) -> DataFrame:
    from pyspark.sql import functions as F

    return assessments.where(
        (F.col("scorer") == query.scorer) & (F.col("scorer_digest") == query.scorer_digest) & F.col("score").isNotNull()
    ).select(
        "trace_id",
        "score",
        "rationale",
        F.col("scorer_digest").alias("digest"),
        _fails(query, query.pass_if).alias("failed"),
        F.lit(RESULT).alias("rank"),
        F.col("assessed_at").alias("last_update_time"),
        F.col("assessed_at").alias("create_time"),
        "assessment_id",
    )


def _feedback(traces: DataFrame, query: Query) -> DataFrame:
    from pyspark.sql import functions as F

    by_person = F.col("source_type") == "HUMAN"
    is_meant = (
        (F.col("kind") == "feedback")
        & (F.col("name") == query.scorer)
        & F.col("error_code").isNull()
        & (F.col("value") != "null")
    )
    if query.run_id:
        given_in = F.coalesce(F.col("entry_metadata")[SOURCE_RUN], F.col("run_id"))
        is_meant &= given_in == query.run_id
    elif query.scorer_digest:  # results, including those of earlier digests, may have been written back as feedback
        is_meant &= by_person
    return (
        traces.select("trace_id", "run_id", F.explode("assessments").alias("entry"))
        .select("trace_id", "run_id", "entry.*", F.col("entry.metadata").alias("entry_metadata"))
        .where(is_meant)
        .withColumn("score", score_of(F.col("value")))
        .where(F.col("score").isNotNull())
        .select(
            "trace_id",
            "score",
            "rationale",
            F.lit(None).cast("string").alias("digest"),
            _fails(query, None).alias("failed"),
            F.when(by_person, PERSON).otherwise(PROGRAM).alias("rank"),
            "last_update_time",
            "create_time",
            "assessment_id",
        )
    )


def _fails(query: Query, pass_if: str | None) -> Column:
    from pyspark.sql import functions as F

    score = F.col("score")
    if query.kind == "regression":
        return score < F.lit(query.threshold)
    return ~passes(score, pass_if)
