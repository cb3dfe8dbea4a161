"""The SQL for dashboards: the same text returns the same, correct rows on DuckDB and on Spark."""

from __future__ import annotations

import math
import shutil
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable
from mlflow import MlflowClient

from monitoring_pipeline.analysis.estimation import Stratum, figure
from monitoring_pipeline.analysis.statistics import cohen_kappa
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.tables import (
    AGENT_TRACES,
    ALERTS,
    ASSESSMENTS,
    HOURLY_PERFORMANCE,
    SCORER_AGREEMENT,
    SCORER_COVERAGE,
    SPAN_PROFILE,
    TABLES,
    TRACE_PERFORMANCE,
    Table,
)
from monitoring_pipeline_tests.conftest import RECORDED_WINDOW
from monitoring_pipeline_tests.docs.conftest import RecordedProject, documentation

FILES = sorted((documentation() / "sql").glob("*.sql"))
Rows = list[dict[str, Any]]


class Engines:
    """DuckDB and Spark with a view of each table of the lake, under its name."""

    def __init__(self, lake: LakeResource) -> None:
        self.lake = lake
        self.duckdb = duckdb.connect()
        self.duckdb.execute("SET timezone = 'UTC'")
        for table in TABLES:
            lake.version(table)  # creates a table that has no rows yet
            self.duckdb.register(table.name, DeltaTable(lake.path(table)).to_pyarrow_dataset())

    def rows(self, name: str) -> Rows:
        """The rows of the query in the file of that name, by DuckDB."""
        return plain(self.duckdb.sql(text_of(name)).to_arrow_table())

    def rows_by_spark(self, name: str) -> Rows:
        """The rows by Spark; tests share its session, so the views exist only during the query."""
        spark = self.lake.spark.session
        for table in TABLES:
            self.lake.read(table).createOrReplaceTempView(table.name)
        try:
            return plain(spark.sql(text_of(name)).toArrow())
        finally:
            for table in TABLES:
                spark.catalog.dropTempView(table.name)

    def frame(self, name: str) -> pd.DataFrame:
        return pd.DataFrame(self.rows(name))


def text_of(name: str) -> str:
    return (documentation() / "sql" / f"{name}.sql").read_text(encoding="utf-8")


def plain(rows: pa.Table) -> Rows:
    """Rows with sums as floats: DuckDB's sums of whole numbers are decimals."""
    return [
        {name: float(value) if isinstance(value, Decimal) else value for name, value in row.items()}
        for row in rows.to_pylist()
    ]


def frame_of(lake: LakeResource, table: Table) -> pd.DataFrame:
    return lake.read(table).toArrow().to_pandas()


@pytest.fixture(scope="module")
def lake(recorded_project: RecordedProject) -> LakeResource:
    """The lake of the recorded conversations, with three alerts, two of them open."""
    lake = recorded_project.lake
    alerts = [("slow", "warning", "open"), ("errors", "critical", "open"), ("over", "critical", "resolved")]
    opened = RECORDED_WINDOW.start + timedelta(hours=3)
    rows = [
        {"hour": opened, "rule": rule, "scope": "airline", "severity": severity, "state": state}
        | {"opened_at": opened + timedelta(minutes=number), "measured": 0.25, "held_against": 0.1, "revision": 1}
        for number, (rule, severity, state) in enumerate(alerts)
    ]
    rows = [row | {"date": opened.date()} for row in rows]
    lake.upsert(ALERTS, pa.Table.from_pylist(rows, schema=ALERTS.schema))
    return lake


@pytest.fixture(scope="module")
def engines(lake: LakeResource) -> Engines:
    return Engines(lake)


def same(name: str, one: object, other: object) -> bool:
    """Whether two values are equal, within rounding of sums; percentile_cont of the embedded engine is less exact."""
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-5 if name.startswith("p9") else 1e-9, abs_tol=1e-12)
    return one == other


def assert_same_rows(engines: Engines, name: str) -> None:
    rows, by_spark = engines.rows(name), engines.rows_by_spark(name)
    assert rows, "a query that finds nothing shows nothing"
    assert [list(row) for row in by_spark] == [list(row) for row in rows]
    different = [
        (name, row, other)
        for row, other in zip(rows, by_spark, strict=True)
        for name in row
        if not same(name, row[name], other[name])
    ]
    assert different == []


@pytest.mark.parametrize("name", [file.stem for file in FILES])
def test_both_engines_return_the_same_rows(engines: Engines, name: str) -> None:
    assert_same_rows(engines, name)


@pytest.fixture(scope="module")
def odd_engines(lake: LakeResource, tmp_path_factory: pytest.TempPathFactory) -> Engines:
    """Engines on a lake with all rows twice, once with unknown experiment, trace name and type of span."""
    folder = tmp_path_factory.mktemp("odd") / "lake"
    shutil.copytree(lake.location, folder)
    odd = LakeResource(location=str(folder), spark=lake.spark)
    for table in TABLES:
        rows = odd.read(table).toArrow()
        for name in rows.column_names:
            if name == "trace_name" and table is HOURLY_PERFORMANCE:
                continue  # there, null stands for all names
            if name in ("experiment_id", "trace_name", "span_type"):
                rows = rows.set_column(rows.column_names.index(name), name, pa.nulls(len(rows), pa.string()))
            elif name in ("trace_id", "assessment_id", "rule"):
                ids = pc.binary_join_element_wise("odd", rows[name], "-")
                rows = rows.set_column(rows.column_names.index(name), name, ids)
        odd.upsert(table, rows)
    return Engines(odd)


@pytest.mark.parametrize("name", [file.stem for file in FILES])
def test_both_engines_return_the_same_rows_if_values_are_unknown(odd_engines: Engines, name: str) -> None:
    assert_same_rows(odd_engines, name)
    experiments = {row["experiment_id"] for row in odd_engines.rows(name) if "experiment_id" in row}
    assert experiments in (set(), {None, "1"})


@pytest.mark.parametrize("name", [file.stem for file in FILES])
def test_a_lake_without_rows_returns_none(lake: LakeResource, name: str) -> None:
    with duckdb.connect() as connection:
        for table in TABLES:
            connection.register(table.name, table.schema.empty_table())
        assert connection.sql(text_of(name)).fetchall() == []


def test_the_page_names_every_file_with_its_purpose() -> None:
    page = (documentation() / "sql.md").read_text(encoding="utf-8")
    for file in FILES:
        purpose = file.read_text(encoding="utf-8").splitlines()[0].removeprefix("-- ")
        subject, _, rest = purpose.partition(": ")
        assert rest.endswith("."), f"{file.name} begins with no sentence `-- Subject: what it shows.`"
        assert f"| [{file.name}](sql/{file.name}) | {subject} | {rest} |" in page, f"{file.name}: {purpose}"
    assert page.count("](sql/") == len(FILES)


# The rows against values computed in another way


def test_latency_equals_that_of_the_store(engines: Engines, recorded_store: str) -> None:
    client = MlflowClient(recorded_store)
    experiment = client.get_experiment_by_name("airline")
    assert experiment is not None
    found = client.search_traces([experiment.experiment_id], max_results=1000, include_spans=False)
    times = pd.DataFrame(
        {"date": pd.to_datetime(trace.info.timestamp_ms, unit="ms").date(), "ms": trace.info.execution_time_ms}
        for trace in found
    )
    latency = engines.frame("latency").set_index("date")
    for day, durations in times.groupby("date")["ms"]:
        row = latency.loc[day]
        assert row["trace_count"] == len(durations)
        for column, share in (("p50_duration_ms", 50), ("p95_duration_ms", 95), ("p99_duration_ms", 99)):
            assert row[column] == pytest.approx(np.percentile(durations, share))


def test_traffic_cost_and_tokens_add_up_to_the_traces(engines: Engines, lake: LakeResource) -> None:
    traces = frame_of(lake, TRACE_PERFORMANCE)
    traffic, cost, tokens = (engines.frame(name) for name in ("traffic", "cost", "tokens"))
    by_hour = traces.groupby("trace_hour")
    assert dict(zip(traffic["hour"], traffic["trace_count"], strict=True)) == by_hour.size().to_dict()
    failed = by_hour["status"].apply(lambda status: (status == "ERROR").mean())
    assert traffic["error_rate"].tolist() == pytest.approx(failed.tolist())
    for frame in (cost, tokens):
        assert frame["trace_count"].sum() == len(traces)
    assert cost["agent_cost_usd"].tolist() == pytest.approx(traces.groupby("date")["cost_usd"].sum().tolist())
    assert tokens["total_tokens"].tolist() == traces.groupby("date")["total_tokens"].sum().tolist()


def strata_by(keys: list[str], lake: LakeResource) -> dict[Any, list[Stratum]]:
    """The hours with traces, with their scores, for each combination of the keys."""
    results = frame_of(lake, ASSESSMENTS).rename(columns={"trace_hour": "hour"})
    scores = results.dropna(subset="score").groupby([*keys, "hour"])
    by_hour = pd.DataFrame({"scores": scores["score"].apply(list), "rate": scores["sample_rate"].max()})
    coverage = frame_of(lake, SCORER_COVERAGE).groupby([*keys, "hour"])[["eligible", "unsampled"]].sum().sum(axis=1)
    hours = by_hour.join(coverage.rename("population"), how="outer")
    return {
        key: [
            Stratum(row["scores"] if isinstance(row["scores"], list) else [], int(row["population"]), 0, row["rate"])
            for row in of_key.to_dict("records")
        ]
        for key, of_key in hours[(hours["population"] > 0)].groupby(keys)
    }


def test_intervals_of_quality_equal_those_of_the_statistics(engines: Engines, lake: LakeResource) -> None:
    keys = ["date", "scorer", "scorer_digest"]
    rows = {tuple(row[key] for key in keys): row for row in engines.rows("quality")}
    checked = {"complete": 0, "pass or fail": 0, "measured": 0}
    for key, strata in strata_by(keys, lake).items():
        expected = figure(strata)
        if expected is None:
            continue
        row, values = rows.pop(key), [score for stratum in strata for score in stratum.scores]
        assert row["mean_score"] == pytest.approx(expected.mean)
        assert (row["scored"], row["population"]) == (len(values), expected.population)
        assert (row["covered_hours"], row["hours"]) == (expected.covered, expected.hours)
        assert expected.low is not None
        assert expected.high is not None
        if expected.low == expected.high or (set(values) <= {0, 1} and expected.covered > 1):
            assert (row["ci_low"], row["ci_high"]) == pytest.approx((expected.low, expected.high))
            checked["complete" if expected.low == expected.high else "pass or fail"] += 1
        else:  # the normal distribution's 1.96 instead of Student's t
            assert row["ci_high"] - row["ci_low"] == pytest.approx(expected.high - expected.low, rel=0.15)
            checked["measured"] += 1
    assert rows == {}
    assert all(checked.values()), checked


def test_the_ledger_adds_up_and_pending_traces_are_counted(engines: Engines, lake: LakeResource) -> None:
    coverage = engines.frame("coverage")
    assert coverage["adds_up"].all()
    assert set(coverage.groupby(["scorer", "scorer_digest"])["archived"].sum()) >= {681}
    pending, waiting = engines.frame("pending"), frame_of(lake, SCORER_COVERAGE)
    waiting = waiting[waiting["pending"] + waiting["over_budget"] > 0]
    assert pending["over_budget"].sum() == waiting["over_budget"].sum() == 681 - 100
    assert set(pending["scorer"]) == set(waiting["scorer"])


def test_failing_scorers_are_counted_by_their_errors(engines: Engines, lake: LakeResource) -> None:
    results = frame_of(lake, ASSESSMENTS)
    of_scorer = results[results["scorer"] == "even"].groupby("date")["error_code"]
    for row in engines.rows("failing_scorers"):
        assert row["scorer"] == "even"
        assert row["failed"] == of_scorer.count()[row["date"]]
        assert row["failure_rate"] == pytest.approx(of_scorer.count()[row["date"]] / of_scorer.size()[row["date"]])
        assert "five divides it" in row["example"]


def test_a_change_of_digest_is_compared_on_the_same_traces(engines: Engines, lake: LakeResource) -> None:
    results = frame_of(lake, ASSESSMENTS)
    results = results[results["scorer"] == "response_quality"]
    first, second = results.groupby("scorer_digest")["assessed_at"].min().sort_values().index
    scores = results.pivot(index="trace_id", columns="scorer_digest", values="score").dropna()
    (row,) = engines.rows("digest_change")
    assert (row["digest_before"], row["digest_after"], row["traces"]) == (first, second, len(scores))
    assert (row["mean_score_before"], row["mean_score_after"]) == pytest.approx(
        (scores[first].mean(), scores[second].mean())
    )
    assert row["went_down"] == (scores[second] < scores[first]).sum() > 0
    assert row["went_up"] == (scores[second] > scores[first]).sum()

    strata = {digest: hours for (_, digest), hours in strata_by(["scorer", "scorer_digest"], lake).items()}
    digests = engines.frame("digests").query("scorer == 'response_quality'")
    for digest, of_digest in results.groupby("scorer_digest")["score"]:
        (found,) = digests[digests["scorer_digest"] == digest].to_dict("records")
        assert found["scored"] == len(of_digest)
        expected = figure(strata[digest])
        assert expected
        assert found["mean_score"] == pytest.approx(expected.mean)
        passed = [Stratum([score >= 0.8 for score in hour.scores], hour.population) for hour in strata[digest]]
        rate = figure(passed)
        assert rate
        assert found["pass_rate"] == pytest.approx(rate.mean)


def test_agreement_is_pooled_over_days(engines: Engines, lake: LakeResource) -> None:
    counts = ["pass_pass", "pass_fail", "fail_pass", "fail_fail"]
    days = frame_of(lake, SCORER_AGREEMENT).query("reference == 'human'")
    assert days["day"].nunique() == 2
    pooled = days.groupby(["scorer", "scorer_digest"])[counts].sum()
    for row in engines.rows("agreement"):
        expected = [int(count) for count in pooled.loc[(row["scorer"], row["scorer_digest"])]]
        assert [row[count] for count in counts] == expected
        assert row["agreement"] == pytest.approx((expected[0] + expected[3]) / sum(expected))
        assert same("kappa", row["kappa"], cohen_kappa(*expected).value)


def test_stages_and_their_errors(engines: Engines, lake: LakeResource) -> None:
    profile = frame_of(lake, SPAN_PROFILE).dropna(subset="span_name")
    stages = engines.frame("slowest_stages")
    assert stages.groupby("date")["share_of_time"].sum().tolist() == pytest.approx([1, 1])
    assert stages["self_time_ms"].sum() == pytest.approx(profile["self_time_ms"].sum())
    assert list(stages.groupby("date").head(1)["span_name"]) == ["gpt-4o", "gpt-4o"]
    errors, failed = engines.frame("errors_by_stage"), profile.groupby("span_name")[["error_count", "span_count"]].sum()
    assert set(errors["span_name"]) == set(failed.index[failed["error_count"] > 0])
    for row in errors.itertuples():
        assert (row.error_count, row.span_count) == tuple(failed.loc[str(row.span_name)])


def test_sessions_and_users(engines: Engines, recorded_conversations: list[dict]) -> None:
    sessions, users = engines.frame("sessions"), engines.frame("users")
    assert sessions["sessions"].sum() == len(recorded_conversations)
    assert (sessions["sessions"] * sessions["traces_per_session"]).sum() == pytest.approx(681)
    names = {conversation["info"]["task"]["user_id"] for conversation in recorded_conversations}
    assert set(users["user_id"]) == names
    assert users["trace_count"].is_monotonic_decreasing


def test_the_latest_failures_come_first(engines: Engines) -> None:
    failures = engines.frame("recent_failures")
    assert failures["timestamp"].is_monotonic_decreasing
    assert (failures["status"].eq("ERROR") | failures["error_span_count"].gt(0)).all()
    assert failures["request"].str.len().gt(0).all()


def test_freshness_and_open_alerts(engines: Engines, lake: LakeResource) -> None:
    freshness = engines.frame("freshness").set_index("what")
    latest: datetime = frame_of(lake, HOURLY_PERFORMANCE)["hour"].max()
    assert freshness.loc["performance", "latest_hour"] == latest
    assert freshness.loc["archive", "last_written"] == frame_of(lake, AGENT_TRACES)["created_at"].max()
    assert set(freshness.index) == {
        "archive",
        "performance",
        "response_quality",
        "tool_selection_accuracy",
        "even",
        "limited",
    }
    assert freshness["is_old"].all()
    assert [alert["rule"] for alert in engines.rows("open_alerts")] == ["errors", "slow"]


def test_a_folder_of_the_lake_is_enough_for_duckdb(lake: LakeResource) -> None:
    """Runs the Python of the page."""
    page = (documentation() / "sql.md").read_text(encoding="utf-8")
    lines = page.split("```python\n")[1].split("```")[0]
    used: dict[str, Any] = {}
    exec(lines.replace("data/lake", lake.location).replace("docs/sql", str(documentation() / "sql")), used)
    assert len(used["rows"]) == 48
