"""Results on sessions one of whose traces is deleted, before, while or after they are written."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg
import pytest
from mlflow.entities import Feedback, Trace

from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.run import score_window
from monitoring_pipeline.settings import ReportSettings, Settings
from monitoring_pipeline.tables import ASSESSMENTS
from monitoring_pipeline.upkeep import deletion
from monitoring_pipeline.upkeep.recount import Recount
from monitoring_pipeline_tests.scoring.test_sessions import DAY, HOUR, at, hour_of, put, rows, scorer_of
from monitoring_pipeline_tests.sources.stores import trace_id

QUOTED = "ids: "


def quoting(*do: object) -> ConfiguredScorer:
    """A scorer of sessions whose rationale quotes its traces; it calls `do` first."""

    def judge(session: list[Trace]) -> Feedback:
        for each in do:
            assert callable(each)
            each()
        return Feedback(value=True, rationale=QUOTED + " ".join(trace.info.trace_id for trace in session))

    return scorer_of([], judge)


def delete(lake: LakeResource, number: int) -> None:
    settings = Settings(reports=ReportSettings(location=f"{lake.location}-reports"))
    recount = Recount(lake, [], {}, settings, TrackingResource(tracking_uri="sqlite:///nowhere.db"))
    deletion.delete(lake, recount, dg.DagsterInstance.ephemeral(), None, [trace_id(number)], [])


@pytest.fixture
def two_days(lake: LakeResource) -> LakeResource:
    """A session of three traces over two days, and one of a single trace."""
    put(lake, at(1, timedelta(0)), at(2, timedelta(minutes=5)), at(3, DAY), at(9, timedelta(0), "other"))
    return lake


def test_a_result_names_the_traces_of_its_session(two_days: LakeResource) -> None:
    score_window(two_days, quoting(), HOUR, "a run")
    named = {row["trace_id"]: row["session_trace_ids"] for row in rows(two_days)}
    assert named == {trace_id(1): [trace_id(1), trace_id(2), trace_id(3)], trace_id(9): [trace_id(9)]}


def test_a_result_that_was_computed_before_a_later_trace_was_deleted_is_not_written(two_days: LakeResource) -> None:
    deleted: list[int] = []

    def delete_once() -> None:
        if not deleted:
            deleted.append(3)
            delete(two_days, 3)

    score_window(two_days, quoting(delete_once), HOUR, "a run")
    assert deleted
    assert [row["trace_id"] for row in rows(two_days)] == [trace_id(9)]
    assert not deletion.has_unfinished(two_days)

    score_window(two_days, quoting(), HOUR, "a later run")
    assert {row["rationale"] for row in rows(two_days) if row["trace_id"] == trace_id(1)} == {
        f"{QUOTED}{trace_id(1)} {trace_id(2)}"
    }


def test_a_result_of_a_session_whose_later_trace_has_lost_its_session_goes_too(two_days: LakeResource) -> None:
    score_window(two_days, quoting(), HOUR, "a run")
    two_days.remove(ASSESSMENTS, hour_of(DAY), "trace_id", {trace_id(3)})
    put(two_days, at(3, DAY, session="moved", tags={"changed": "yes"}))
    delete(two_days, 3)
    assert [row["trace_id"] for row in rows(two_days)] == [trace_id(9)]
