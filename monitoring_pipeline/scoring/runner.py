"""One scorer run on one trace, as a row of `assessments` or as nothing to say."""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from traceback import format_exception_only
from typing import Any

from dagster import DagsterExecutionInterruptedError
from mlflow.entities import AssessmentError, AssessmentSourceType, Feedback, Trace

from monitoring_pipeline.scoring.registry import ConfiguredScorer

MESSAGE_CHARACTERS = 2000
SCORER_ERROR = "SCORER_ERROR"
PASS_WORDS = {"true", "yes", "pass"}
FAIL_WORDS = {"false", "no", "fail"}


@dataclass(frozen=True)
class PendingTrace:
    """A trace that a scorer has yet to see."""

    trace_id: str
    trace_hour: datetime
    experiment_id: str | None
    trace_json: str


@dataclass(frozen=True)
class Verdict:
    """What came of a scorer: a value (with a rationale), an error, or neither where it does not apply."""

    value: Any = None
    rationale: str | None = None
    error: AssessmentError | None = None
    source_type: str = AssessmentSourceType.CODE


def assessment_id(trace_id: str, scorer: ConfiguredScorer) -> str:
    """The id of the scorer's assessment of the trace: the same whenever and wherever it is made."""
    identity = f"{trace_id}:{scorer.name}:{scorer.digest}"
    return f"a-{hashlib.sha256(identity.encode()).hexdigest()[:32]}"


def assess(scorer: ConfiguredScorer, pending: PendingTrace, dagster_run_id: str) -> tuple[dict[str, Any], bool]:
    """The scorer's row on the trace, and whether it applies.

    The row has the columns of `assessments` where it does (a scorer that raises gives one with the error), and those
    of `not_applicable` where the scorer returned None.
    """
    started = time.perf_counter()
    verdict = _run(scorer, pending)
    duration_ms = (time.perf_counter() - started) * 1000
    row = {
        "trace_id": pending.trace_id,
        "trace_hour": pending.trace_hour,
        "experiment_id": pending.experiment_id,
        "scorer": scorer.name,
        "scorer_digest": scorer.digest,
        "assessed_at": datetime.now(UTC),
        "assessment_id": assessment_id(pending.trace_id, scorer),
    }
    if verdict is None:
        return row, False
    error = verdict.error
    return {
        **row,
        "scorer_version": None,
        "value": None if error else json.dumps(verdict.value),
        "score": None if error else as_score(verdict.value),
        "rationale": None if verdict.rationale is None else _text(verdict.rationale),
        "error_code": _text(error.error_code or SCORER_ERROR) if error else None,
        "error_message": _text(error.error_message or "")[:MESSAGE_CHARACTERS] if error else None,
        "source_type": verdict.source_type,
        "sample_rate": scorer.sample_rate,
        "duration_ms": duration_ms,
        "input_tokens": None,
        "output_tokens": None,
        "cost_usd": None,
        "dagster_run_id": dagster_run_id,
    }, True


def as_score(value: Any) -> float | None:
    """The number that a value counts as: true, yes, pass 1; false, no, fail 0; numbers themselves; else None."""
    if isinstance(value, bool | int | float):
        return float(value)
    word = value.strip().lower() if isinstance(value, str) else None
    return 1.0 if word in PASS_WORDS else 0.0 if word in FAIL_WORDS else None


def _run(scorer: ConfiguredScorer, pending: PendingTrace) -> Verdict | None:
    from mlflow.genai.utils.trace_utils import (
        extract_expectations_from_trace,
        extract_inputs_from_trace,
        extract_outputs_from_trace,
    )

    try:
        trace = Trace.from_json(pending.trace_json)
        result = scorer.scorer.run(
            inputs=extract_inputs_from_trace(trace),
            outputs=extract_outputs_from_trace(trace),
            expectations=extract_expectations_from_trace(trace),
            trace=trace,
        )
    except (KeyboardInterrupt, DagsterExecutionInterruptedError):  # the run was told to stop
        raise
    except BaseException as error:  # noqa: BLE001 - a scorer may raise anything; its failure is a row, never a crash
        return Verdict(error=AssessmentError(SCORER_ERROR, "".join(format_exception_only(error)).strip()))
    return _verdict(result)


def _verdict(result: Any) -> Verdict | None:
    if isinstance(result, list):
        if len(result) != 1:
            return _refused(f"the scorer returned {len(result)} assessments; return one")
        result = result[0]
    if result is None:
        return None
    if not isinstance(result, Feedback):
        result = Feedback(value=result) if isinstance(result, bool | int | float | str) else None
    if result is None:
        return _refused("the scorer returned an assessment that is not feedback")
    source_type = result.source.source_type if result.source else AssessmentSourceType.CODE
    if result.error is not None:
        return Verdict(error=result.error, source_type=source_type)
    if result.value is None:
        return None
    if isinstance(result.value, float) and not math.isfinite(result.value):
        return _refused(f"the scorer returned {result.value}; a value must be finite")
    try:
        json.dumps(result.value, allow_nan=False)
        as_score(result.value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        return _refused(f"the scorer's value cannot be kept: {error}")
    return Verdict(result.value, result.rationale, source_type=source_type)


def _text(text: Any) -> str:
    # A lone surrogate, which a trace may hold, has no place in a table.
    return str(text).encode(errors="replace").decode()


def _refused(message: str) -> Verdict:
    return Verdict(error=AssessmentError("INVALID_VALUE", message))
