"""Agreement of a scorer with people's feedback and with its other digests, on the traces that both assessed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from monitoring_pipeline.analysis.statistics import cohen_kappa
from monitoring_pipeline.analysis.verdicts import passes, score_of

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import Column, DataFrame

COUNTS = ["pass_pass", "pass_fail", "fail_pass", "fail_fail"]
KEY = ["day", "experiment_id", "scorer", "scorer_digest", "reference", "reference_name"]


class ComparedScorer(Protocol):
    """The scorer attributes that agreement needs; `compare_with` names the recorded assessments to compare with."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def pass_if(self) -> str | None: ...
    @property
    def compare_with(self) -> tuple[str, ...]: ...


def agreement(traces: DataFrame, assessments: DataFrame, scorers: Sequence[ComparedScorer]) -> pd.DataFrame:
    """How often the scorers' verdicts match those of a reference, by the day of the trace.

    `traces` are rows of agent_traces, `assessments` rows of assessments. Returns the columns of the table
    `scorer_agreement` (without `date`), with rows only for pairs that can be compared:

    - reference `human`: assessments recorded on the trace under a name in the scorer's `compare_with`, for each of the
      scorer's digests. Feedback and expectations from people count; those from programs, such as a benchmark's checker,
      count only if the name is not a scorer's, because the scorer's own results may be recorded under its name. With
      several assessments of one name, people take precedence over programs, then the latest counts. Assessments with
      an error or without a value do not count.
    - reference `digest`: each other digest of the scorer, compared with the current one.

    A verdict is pass or fail: a scorer's score passes by its `pass_if`, a recorded value from 0.5. A value without a
    score has no verdict.
    """
    import pandas as pd
    from pyspark.sql import functions as F

    verdicts = _verdicts(assessments, scorers)
    pairs = _with_recorded(verdicts, traces, scorers).unionByName(_with_other_digests(verdicts, scorers))

    def count(passed: bool, reference_passed: bool) -> Column:
        both = (F.col("passed") == passed) & (F.col("reference_passed") == reference_passed)
        return F.sum(both.cast("long"))

    rows = (
        pairs.groupBy(*KEY)
        .agg(
            count(True, True).alias("pass_pass"),
            count(True, False).alias("pass_fail"),
            count(False, True).alias("fail_pass"),
            count(False, False).alias("fail_fail"),
        )
        .toPandas()
    )
    return with_kappa(rows.assign(day=pd.to_datetime(rows["day"], utc=True)))


def with_kappa(counts: pd.DataFrame) -> pd.DataFrame:
    """Add agreement (a share), kappa, kappa_low and kappa_high to `counts`.

    `counts` has the columns pass_pass, pass_fail, fail_pass and fail_fail; see `cohen_kappa` for when kappa is missing.
    """
    import pandas as pd

    kappas = [cohen_kappa(*row) for row in counts[COUNTS].astype(int).to_numpy().tolist()]
    figures = pd.DataFrame(kappas, index=counts.index, columns=pd.Index(["kappa", "kappa_low", "kappa_high"]))
    same = counts["pass_pass"] + counts["fail_fail"]
    return counts.assign(agreement=same / counts[COUNTS].sum(axis="columns"), **figures.astype("float64"))


def _verdicts(assessments: DataFrame, scorers: Sequence[ComparedScorer]) -> DataFrame:
    """The scorers' verdicts: trace_id, day, experiment_id, scorer, scorer_digest, passed (never null)."""
    from pyspark.sql import functions as F

    passed = _of_scorer(scorers, "boolean", lambda scorer: passes(F.col("score"), scorer.pass_if))
    day = F.date_trunc("day", "trace_hour").alias("day")
    columns = ("trace_id", day, "experiment_id", "scorer", "scorer_digest", passed.alias("passed"))
    return assessments.select(*columns).where(F.col("passed").isNotNull())


def _with_recorded(verdicts: DataFrame, traces: DataFrame, scorers: Sequence[ComparedScorer]) -> DataFrame:
    from pyspark.sql import functions as F

    names = _of_scorer(scorers, "array<string>", lambda scorer: F.array(*map(F.lit, scorer.compare_with)))
    return (
        verdicts.withColumn("reference_name", F.explode(names))
        .join(_recorded(traces, scorers), ["trace_id", "reference_name"])
        .withColumn("reference", F.lit("human"))
    )


def _recorded(traces: DataFrame, scorers: Sequence[ComparedScorer]) -> DataFrame:
    """The recorded verdict that counts per trace and name: trace_id, reference_name, reference_passed (never null)."""
    from pyspark.sql import functions as F

    names = {name for scorer in scorers for name in scorer.compare_with}
    by_person = F.col("source_type") == "HUMAN"
    counts = (
        F.col("kind").isin("feedback", "expectation")
        & F.col("name").isin(*names)
        & (by_person | ~F.col("name").isin(*(scorer.name for scorer in scorers)))
        & F.col("error_code").isNull()
        & (F.col("value") != "null")
    )
    latest = F.struct(by_person, "last_update_time", "create_time", "assessment_id")
    return (
        traces.select("trace_id", F.explode("assessments").alias("entry"))
        .select("trace_id", "entry.*")
        .where(counts)
        .groupBy("trace_id", F.col("name").alias("reference_name"))
        .agg(F.max_by("value", latest).alias("value"))
        .select("trace_id", "reference_name", passes(score_of(F.col("value")), None).alias("reference_passed"))
        .where(F.col("reference_passed").isNotNull())
    )


def is_current(scorers: Sequence[ComparedScorer]) -> Column:
    """The condition that a row belongs to the current digest of one of the scorers."""
    from pyspark.sql import functions as F

    digests = [f"{scorer.name}:{scorer.digest}" for scorer in scorers]
    return F.concat_ws(":", "scorer", "scorer_digest").isin(*digests)


def _with_other_digests(verdicts: DataFrame, scorers: Sequence[ComparedScorer]) -> DataFrame:
    from pyspark.sql import functions as F

    current = is_current(scorers)
    others = verdicts.where(~current).select(
        "trace_id",
        "scorer",
        F.col("scorer_digest").alias("reference_name"),
        F.col("passed").alias("reference_passed"),
    )
    return verdicts.where(current).join(others, ["trace_id", "scorer"]).withColumn("reference", F.lit("digest"))


def _of_scorer(scorers: Sequence[ComparedScorer], type_name: str, value: Callable[[ComparedScorer], Column]) -> Column:
    """`value` for the row's scorer; null if the scorer is not one of `scorers`."""
    from pyspark.sql import functions as F

    values = (F.when(F.col("scorer") == scorer.name, value(scorer)) for scorer in scorers)
    return F.coalesce(F.lit(None).cast(type_name), *values)
