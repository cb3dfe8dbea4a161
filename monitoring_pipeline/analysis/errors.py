"""Groups rows of `trace_errors` by error signature and span."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitoring_pipeline.analysis.signatures import signature_column, telling_line_column

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame

NO_FAILED_SPAN = "(no failed span)"
GROUP = ["signature", "span_name", "span_type"]
SAMPLE_TRACES = 5


def error_groups(errors: DataFrame) -> DataFrame:
    """One row for each error signature and the span in which it arose, most traces first.

    Columns: signature (see `signatures.error_signature`), span_name, span_type, trace_count, span_count, first_seen and
    last_seen (UTC, starts of traces), sample_trace_ids (the first five), sample_message (telling line of the first).

    Of a trace's spans with the same message only the last counts, because an exception that propagates through parent
    spans arose in the innermost one. `span_count` counts the spans with that name and message. A trace in ERROR without
    a failed span gets the signature NO_FAILED_SPAN, without name and type.
    """
    from pyspark.sql import functions as F

    traces = _causes(errors).groupBy("trace_id", "seen", *GROUP)
    traces = traces.agg(F.sum("spans").alias("spans"), F.min("message").alias("message"))
    occurrence = F.struct("seen", "trace_id", "message")
    groups = traces.groupBy(*GROUP).agg(
        F.count("*").alias("trace_count"),
        F.sum("spans").alias("span_count"),
        F.min("seen").alias("first_seen"),
        F.max("seen").alias("last_seen"),
        F.slice(F.array_sort(F.collect_list(F.struct("seen", "trace_id"))), 1, SAMPLE_TRACES).alias("samples"),
        F.min(occurrence).alias("first"),
    )
    return groups.select(
        *GROUP,
        "trace_count",
        "span_count",
        "first_seen",
        "last_seen",
        F.col("samples.trace_id").alias("sample_trace_ids"),
        F.col("first.message").alias("sample_message"),
    ).orderBy(F.desc("trace_count"), *GROUP)


def new_groups(groups: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """Rows of `groups` (from `error_groups`) whose signature and span are not in `known`."""
    import numpy as np

    before = set(known[GROUP].itertuples(index=False, name=None))
    is_new = [group not in before for group in groups[GROUP].itertuples(index=False, name=None)]
    # An array of bool: pandas interprets an empty list as column names.
    return groups[np.array(is_new, bool)].reset_index(drop=True)


def _causes(errors: DataFrame) -> DataFrame:
    """One row for each trace and message: the span in which it arose, and the number of spans with it."""
    from pyspark.sql import functions as F

    spans = errors.select(
        "trace_id",
        F.coalesce("timestamp", "trace_hour").alias("seen"),
        F.posexplode_outer("error_spans").alias("position", "span"),
    ).select(
        "trace_id",
        "seen",
        "position",
        F.col("span.name").alias("span_name"),
        F.col("span.span_type").alias("span_type"),
        telling_line_column(F.col("span.status_message")).alias("message"),
    )
    # Spans without a message are distinguished by name.
    same = F.when(F.col("message") == "", F.col("span_name")).otherwise(F.col("message")).alias("same")
    by_span = spans.groupBy("trace_id", "seen", "message", same, "span_name", "span_type").agg(
        F.max("position").alias("position"), F.count("position").alias("spans")
    )
    innermost = F.max(F.struct("position", "span_name", "span_type", "spans")).alias("cause")
    causes = by_span.groupBy("trace_id", "seen", "message", "same").agg(innermost)
    return causes.select(
        "trace_id",
        "seen",
        "message",
        F.when(F.col("cause.position").isNull(), NO_FAILED_SPAN)
        .otherwise(signature_column(F.col("message")))
        .alias("signature"),
        "cause.span_name",
        "cause.span_type",
        F.col("cause.spans").alias("spans"),
    )
