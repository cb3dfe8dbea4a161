"""Writes results to MLflow as feedback on their traces, each exactly once even if a run is interrupted or repeated.

Feedback is removed again when the trace has changed and its scorer returns no value for the new content.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from mlflow.entities import Assessment, AssessmentSource, Feedback
from mlflow.exceptions import MlflowException, RestException
from mlflow.store.tracking.rest_store import RestStore
from mlflow.tracing.constant import AssessmentMetadataKey, TraceMetadataKey

from monitoring_pipeline.errors import TrackingError
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.rows import from_dicts
from monitoring_pipeline.resources.tracking import TrackingResource, impatience, in_a_line
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.tables import ASSESSMENTS, NOT_APPLICABLE, WRITTEN_BACK
from monitoring_pipeline.traces.parts import ASSESSED_AT
from monitoring_pipeline.windows import Window, to_milliseconds

if TYPE_CHECKING:
    from mlflow.tracing.client import TracingClient

ID = ["assessment_id"]
IDENTITY = [*ID, "assessed_at"]
OF_RESULT = [*IDENTITY, "trace_hour", "scorer", "scorer_digest"]
COMMIT_RESULTS = 500
THREADS = 8  # requests to a server at a time; a database gets one
FAILURES = 20  # consecutive failures after which a server that answers reads is assumed to reject writes

WRITTEN, GONE, REFUSED, WITHDRAWN = "written", "gone", "refused", "withdrawn"
ALREADY_THERE, PENDING = "already_there", "pending"

DAGSTER_RUN_ID = "monitoring_pipeline.dagster_run_id"
SAMPLE_RATE = "monitoring_pipeline.sample_rate"
UNFINISHED = "monitoring_pipeline.unfinished"

log = logging.getLogger(__name__)


@dataclass
class WriteBackCounts:
    """Outcomes of the results that were not recorded as written back.

    `written`: sent. `already_there`: sent earlier by a run that could not record it. `gone`: the server no longer has
    the trace. `refused`: rejected by the server. `withdrawn`: removed, because the changed trace has no value now.
    `pending`: left for the next run, because of `reason` (None if zero).
    """

    written: int = 0
    already_there: int = 0
    gone: int = 0
    refused: int = 0
    withdrawn: int = 0
    pending: int = 0
    reason: str | None = None


def write_back(
    lake: LakeResource,
    tracking: TrackingResource,
    scorers: list[ConfiguredScorer],
    window: Window,
    on_progress: Callable[[WriteBackCounts], None] = lambda counts: None,
) -> WriteBackCounts:
    """Log the results of the scorers' current digests in `window` as feedback, and record them in `written_back`.

    A result is sent once, and updated in place after its trace is assessed again, or removed if that gave no value.
    Errors are not sent. If the store fails, the rest stays pending and no exception is raised. `on_progress` is called
    after each commit.
    """
    try:
        sender = _Sender(tracking.client, {scorer.name: scorer.model for scorer in scorers})
    except TrackingError as error:
        pending = sum(rows.num_rows for rows in _chunks(lake, scorers, window))
        return WriteBackCounts(pending=pending, reason=str(error) if pending else None)
    counts = WriteBackCounts()
    with impatience():
        for rows in _chunks(lake, scorers, window):
            counts.pending += rows.num_rows
            if not sender.has_stopped:
                chunk = rows.to_pylist()
                _record(lake, chunk, sender.send(chunk), counts)
                on_progress(counts)
    counts.reason = sender.reason if counts.pending else None
    return counts


def unsent(lake: LakeResource, scorers: list[ConfiguredScorer], window: Window) -> pa.Table:
    """What MLflow lacks of the results of the scorers' current digests in `window`, as rows of `assessments`.

    These are results not yet sent, without errors, and, with no value, feedback to be withdrawn: that was sent before
    a newer result for its trace became an error or not applicable.
    """
    results = _current(lake.read_columns(ASSESSMENTS, window, *OF_RESULT, "error_code"), scorers)
    valid = results.filter(pc.is_null(results["error_code"]))
    recorded = _current(lake.read_columns(WRITTEN_BACK, window, *OF_RESULT, "trace_id", "outcome"), scorers)
    wanted = valid.join(recorded.select(IDENTITY), IDENTITY, join_type="left anti")
    sent = recorded.filter(pc.equal(recorded["outcome"], WRITTEN))
    surplus = sent.join(valid.select(ID), ID, join_type="left anti")
    rows = ASSESSMENTS.columns.empty_table()
    if wanted.num_rows:  # reads the texts, which is rarely needed
        rows = lake.read_columns(ASSESSMENTS, window, *ASSESSMENTS.columns.names)
        rows = rows.filter(pc.is_in(rows["assessment_id"], wanted["assessment_id"].combine_chunks()))
    if surplus.num_rows:
        declined = lake.read_columns(NOT_APPLICABLE, window, *ID)
        without_value = pa.concat_tables([results.select(ID), declined])  # not results that were deleted
        surplus = surplus.join(without_value.group_by(ID).aggregate([]), ID, join_type="left semi")
        rows = pa.concat_tables([rows, from_dicts(ASSESSMENTS, surplus.drop_columns("outcome").to_pylist())])
    return rows.sort_by([("trace_id", "ascending"), ("assessment_id", "ascending")])


def as_feedback(row: dict[str, Any], model: str | None) -> Feedback:
    """A row of `assessments` as MLflow feedback; `model` is the judge's.

    Raises:
        Exception: whatever MLflow raises for a value that it cannot send.
    """
    metadata = {
        AssessmentMetadataKey.SCORER_NAME: row["scorer"],
        AssessmentMetadataKey.SCORER_DIGEST: row["scorer_digest"],
        AssessmentMetadataKey.SCORER_VERSION: row["scorer_version"],
        AssessmentMetadataKey.JUDGE_COST: row["cost_usd"],
        AssessmentMetadataKey.JUDGE_INPUT_TOKENS: row["input_tokens"],
        AssessmentMetadataKey.JUDGE_OUTPUT_TOKENS: row["output_tokens"],
        TraceMetadataKey.TRACE_SESSION: row["session_id"],
        ASSESSED_AT: _time(row),
        DAGSTER_RUN_ID: row["dagster_run_id"],
        SAMPLE_RATE: row["sample_rate"],
        UNFINISHED: "true" if row["unfinished"] else None,
    }
    assessed_ms = to_milliseconds(row["assessed_at"])
    feedback = Feedback(
        name=row["scorer"],
        value=json.loads(row["value"]),
        source=AssessmentSource(row["source_type"], model or f"monitoring-pipeline/{row['scorer']}"),
        trace_id=row["trace_id"],
        metadata={key: str(value) for key, value in metadata.items() if value is not None},
        create_time_ms=assessed_ms,
        last_update_time_ms=assessed_ms,
        # Not None, which would keep an earlier result's rationale. PostgreSQL does not accept NUL.
        rationale=(row["rationale"] or "").replace("\0", "\N{REPLACEMENT CHARACTER}"),
    )
    feedback.assessment_id = row["assessment_id"]
    feedback.to_proto()  # a database would accept values that no server can return
    return feedback


def _current(rows: pa.Table, scorers: list[ConfiguredScorer]) -> pa.Table:
    """The rows of the scorers' current digests."""
    digests = pa.array([f"{scorer.name}:{scorer.digest}" for scorer in scorers], pa.string())
    return rows.filter(pc.is_in(pc.binary_join_element_wise(rows["scorer"], rows["scorer_digest"], ":"), digests))


def _chunks(lake: LakeResource, scorers: list[ConfiguredScorer], window: Window) -> Iterator[pa.Table]:
    # By day, so that a commit touches one folder of files and a large backfill holds one day's results at a time.
    for part in window.by_day():
        rows = unsent(lake, scorers, part)
        for first in range(0, rows.num_rows, COMMIT_RESULTS):
            yield rows.slice(first, COMMIT_RESULTS)


def _record(lake: LakeResource, chunk: list[dict[str, Any]], outcomes: list[str], counts: WriteBackCounts) -> None:
    """Record the outcomes of the results; pending results get no row."""
    now = datetime.now(UTC)
    columns = ("assessment_id", "trace_id", "trace_hour", "scorer", "scorer_digest", "assessed_at")
    recorded = [
        {
            **{name: row[name] for name in columns},
            "written_at": now,
            "outcome": WRITTEN if outcome == ALREADY_THERE else outcome,
        }
        for row, outcome in zip(chunk, outcomes, strict=True)
        if outcome != PENDING
    ]
    lake.upsert(WRITTEN_BACK, from_dicts(WRITTEN_BACK, recorded))
    seen = Counter(outcomes)
    counts.written += seen[WRITTEN]
    counts.already_there += seen[ALREADY_THERE]
    counts.gone += seen[GONE]
    counts.refused += seen[REFUSED]
    counts.withdrawn += seen[WITHDRAWN]
    counts.pending -= len(recorded)


class _Sender:
    """Sends results until the store fails; `reason` is the last failure."""

    def __init__(self, client: TracingClient, models: dict[str, str | None]):
        self.client = client
        self.models = models
        self.is_remote = isinstance(client.store, RestStore)
        self.has_stopped = False
        self.reason: str | None = None
        self.failures = 0

    def send(self, rows: list[dict[str, Any]]) -> list[str]:
        """Send the rows; returns the outcome of each."""
        known = self._known(rows)
        with ThreadPoolExecutor(THREADS if self.is_remote else 1, thread_name_prefix="write-back") as pool:
            return list(pool.map(lambda row: self._send(row, known), rows))

    def _known(self, rows: list[dict[str, Any]]) -> dict[str, Assessment] | None:
        """All assessments of the rows' traces by id; None if they cannot be read in one batch."""
        try:
            infos = self.client.store.batch_get_trace_infos(sorted({row["trace_id"] for row in rows}))
            return {str(found.assessment_id): found for info in infos for found in info.assessments}
        except Exception as error:  # noqa: BLE001 - one malformed trace fails the batch, with any exception
            log.warning("reading %d results one by one after a batch failed: %s", len(rows), in_a_line(error))
            self._stop_unless_answering(rows[0])
            return None

    def _send(self, row: dict[str, Any], known: dict[str, Assessment] | None) -> str:
        if self.has_stopped:
            return PENDING
        try:
            feedback = None if row["value"] is None else as_feedback(row, self.models[row["scorer"]])
        except Exception as error:  # noqa: BLE001 - protocol buffers raise many kinds
            return _refused(row, error)
        try:
            stored = self._stored(row) if known is None else known.get(row["assessment_id"])
            outcome = self._put(row, feedback, stored) if feedback else self._withdraw(row, stored)
        except Exception as error:  # noqa: BLE001 - a server, a proxy or a database driver may raise anything
            return self._failed(row, error)
        self.failures = 0
        return outcome

    def _put(self, row: dict[str, Any], feedback: Feedback, stored: Assessment | None) -> str:
        if stored is None:
            self.client.log_assessment(row["trace_id"], feedback)
        elif _time_of(stored) >= _time(row):
            return ALREADY_THERE
        else:
            self.client.update_assessment(row["trace_id"], row["assessment_id"], feedback)
        return WRITTEN

    def _withdraw(self, row: dict[str, Any], stored: Assessment | None) -> str:
        if stored is not None:
            if _time_of(stored) > _time(row):  # another run has a value for still newer content
                return ALREADY_THERE
            self.client.delete_assessment(row["trace_id"], row["assessment_id"])
        return WITHDRAWN

    def _failed(self, row: dict[str, Any], error: Exception) -> str:
        """The outcome of a failed attempt: the store's verdict on the result, or pending."""
        match self._answer(error):
            case "RESOURCE_DOES_NOT_EXIST":
                return GONE
            case "INVALID_PARAMETER_VALUE" | "BAD_REQUEST":
                return _refused(row, error)
        stored = self._stop_unless_answering(row)
        # Another run was faster, or only the reply was lost.
        if stored and row["value"] is not None and _time_of(stored) >= _time(row):
            return ALREADY_THERE
        self.failures += 1
        self.reason = in_a_line(error)
        self.has_stopped = self.has_stopped or self.failures >= FAILURES
        return PENDING

    def _stop_unless_answering(self, row: dict[str, Any]) -> Assessment | None:
        """The row's feedback in the store; if the store does not answer, return None and stop sending."""
        try:
            return self._stored(row)
        except Exception as error:  # noqa: BLE001 - a server, a proxy or a database driver may raise anything
            self.reason = in_a_line(error)
            self.has_stopped = True
            return None

    def _stored(self, row: dict[str, Any]) -> Assessment | None:
        try:
            return self.client.get_assessment(row["trace_id"], row["assessment_id"])
        except MlflowException as error:
            if self._answer(error) == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def _answer(self, error: Exception) -> str | None:
        """The error code, if the store itself returned it; MLflow's client uses the same codes for other failures."""
        return error.error_code if isinstance(error, RestException if self.is_remote else MlflowException) else None


def _time(row: dict[str, Any]) -> str:
    return row["assessed_at"].isoformat(timespec="microseconds")


def _time_of(stored: Assessment) -> str:
    """The time of a stored result, as `_time` spells it; empty for feedback of others."""
    return (stored.metadata or {}).get(ASSESSED_AT, "")


def _refused(row: dict[str, Any], error: Exception) -> str:
    log.warning("MLflow rejected result %s of %s: %s", row["assessment_id"], row["scorer"], in_a_line(error))
    return REFUSED
