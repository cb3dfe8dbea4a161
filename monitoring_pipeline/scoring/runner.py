"""Runs one scorer on one trace or session and returns its row: a result, or 'not applicable'."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from traceback import format_exception_only
from typing import Any

from mlflow.entities import AssessmentError, AssessmentSourceType, Feedback, Trace
from mlflow.genai.judges.base import Judge
from mlflow.tracing.constant import AssessmentMetadataKey
from pydantic import TypeAdapter, ValidationError

from monitoring_pipeline.analysis.verdicts import as_score
from monitoring_pipeline.scoring.builtins import applies
from monitoring_pipeline.scoring.metering import Call, Meter
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.text import without_secrets
from monitoring_pipeline.traces.flatten import topmost

MESSAGE_CHARACTERS = 2000
# Of a rationale, which is cut, and of a value's JSON, which is refused: so that results fit into memory and tables.
LONGEST_RESULT = 50_000
SCORER_ERROR = "SCORER_ERROR"
INVALID_VALUE = "INVALID_VALUE"
MODEL_UNAVAILABLE = "MODEL_UNAVAILABLE"
MALFORMED_OUTPUT = "MALFORMED_OUTPUT"
Result = tuple[dict[str, Any], bool]  # a row, and whether the scorer applies to its trace
UNFINISHED_NOTE = "(The trace had not ended when it was scored.)"


@dataclass(frozen=True)
class Spent:
    """A judge's usage: tokens, and dollars if the price is known."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            _sum(self.input_tokens, other.input_tokens),
            _sum(self.output_tokens, other.output_tokens),
            _sum(self.cost_usd, other.cost_usd),
        )


@dataclass(frozen=True)
class PendingTrace:
    """A trace to be scored, or a session identified by its first trace.

    `traces` is the trace's JSON, or the JSON of all traces of the session in order; `prompt_bytes` the size of the text
    that goes into a judge's prompt; `spent` the usage of earlier attempts at the same assessment. `content_digest`
    stands for what the scorer reads; `unfinished` tells that a trace had not ended.
    """

    trace_id: str
    trace_hour: datetime
    experiment_id: str | None
    traces: tuple[str, ...]
    session_id: str | None = None
    session_trace_ids: tuple[str, ...] = ()
    prompt_bytes: int = 0
    spent: Spent = field(default_factory=Spent)
    content_digest: str | None = None
    unfinished: bool = False


@dataclass(frozen=True)
class Verdict:
    """A scorer's outcome: a value (with a rationale) or an error."""

    value: Any = None
    rationale: str | None = None
    error: AssessmentError | None = None
    source_type: str = AssessmentSourceType.CODE


def assessment_id(trace_id: str, scorer: ConfiguredScorer) -> str:
    """The deterministic id of the scorer's assessment of the trace."""
    identity = f"{trace_id}:{scorer.name}:{scorer.digest}"
    return f"a-{hashlib.sha256(identity.encode()).hexdigest()[:32]}"


def assess(scorer: ConfiguredScorer, pending: PendingTrace, dagster_run_id: str, meter: Meter) -> Result:
    """Run the scorer; returns its row for the trace and whether the scorer applies.

    The row has the columns of `assessments` if it applies (with the error if the scorer raised), and those of
    `not_applicable` if the scorer returned None.
    """
    started = time.perf_counter()
    with meter.call() as call:
        verdict, reported = _run(scorer, pending, call)
    duration_ms = (time.perf_counter() - started) * 1000
    if verdict is None:
        return _identity(scorer, pending), False
    spent = pending.spent + (_used(scorer, call) if call.requests else reported)
    return _row(scorer, pending, verdict, spent, duration_ms, dagster_run_id), True


def failed_row(
    scorer: ConfiguredScorer, pending: PendingTrace, error: AssessmentError, duration_ms: float, dagster_run_id: str
) -> dict[str, Any]:
    """The row of `assessments` for a trace on which the scorer could not be run to its end."""
    return _row(scorer, pending, Verdict(error=error), pending.spent, duration_ms, dagster_run_id)


def _identity(scorer: ConfiguredScorer, pending: PendingTrace) -> dict[str, Any]:
    return {
        "trace_id": pending.trace_id,
        "trace_hour": pending.trace_hour,
        "experiment_id": pending.experiment_id,
        "scorer": scorer.name,
        "scorer_digest": scorer.digest,
        "assessed_at": datetime.now(UTC),
        "assessment_id": assessment_id(pending.trace_id, scorer),
        "session_traces": None if scorer.session_idle is None else len(pending.traces),
        "content_digest": pending.content_digest,
    }


def _row(
    scorer: ConfiguredScorer,
    pending: PendingTrace,
    verdict: Verdict,
    spent: Spent,
    duration_ms: float,
    dagster_run_id: str,
) -> dict[str, Any]:
    error = verdict.error
    return {
        **_identity(scorer, pending),
        "scorer_version": scorer.version,
        "value": None if error else without_secrets(json.dumps(verdict.value)),
        "score": None if error else as_score(verdict.value),
        "rationale": _rationale(verdict, pending),
        "error_code": _text(error.error_code or SCORER_ERROR) if error else None,
        "error_message": _text(error.error_message or "")[:MESSAGE_CHARACTERS] if error else None,
        "source_type": verdict.source_type,
        "sample_rate": scorer.sample_rate,
        "duration_ms": duration_ms,
        "input_tokens": spent.input_tokens,
        "output_tokens": spent.output_tokens,
        "cost_usd": spent.cost_usd,
        "dagster_run_id": dagster_run_id,
        "session_id": pending.session_id,
        "unfinished": pending.unfinished,
        "session_trace_ids": None if scorer.session_idle is None else [*pending.session_trace_ids],
    }


def _run(scorer: ConfiguredScorer, pending: PendingTrace, call: Call) -> tuple[Verdict | None, Spent]:
    """The verdict (None: not applicable), and the usage that the scorer itself reports."""
    source_type = AssessmentSourceType.LLM_JUDGE if scorer.model else AssessmentSourceType.CODE
    reported = Spent()
    try:
        result = _result(scorer, pending)
        reported = _reported(result)
        return _verdict(scorer, result), reported
    except _RefusedError as error:
        code = MALFORMED_OUTPUT if scorer.model else INVALID_VALUE
        return Verdict(error=AssessmentError(code, str(error)), source_type=source_type), reported
    except BaseException as error:
        if _stops_the_run(error):
            raise
        code = (MALFORMED_OUTPUT if call.answered else MODEL_UNAVAILABLE) if call.requests else SCORER_ERROR
        message = "".join(format_exception_only(error)).strip()
        return Verdict(error=AssessmentError(code, message), source_type=source_type), reported


def _stops_the_run(error: BaseException) -> bool:
    """Whether it is an interrupt; whatever else a scorer raises is a row, never a crash."""
    dagster = sys.modules.get("dagster")  # it takes a second to load, and raises nothing before
    interrupts = (KeyboardInterrupt, *([dagster.DagsterExecutionInterruptedError] if dagster else []))
    return isinstance(error, interrupts)


def _result(scorer: ConfiguredScorer, pending: PendingTrace) -> Any:
    from mlflow.genai.utils.trace_utils import extract_expectations_from_trace

    trace = Trace.from_json(pending.traces[0])
    expectations = extract_expectations_from_trace(trace)
    if not applies(scorer.scorer, trace, expectations):
        return None
    if scorer.session_idle is not None:
        session = [Trace.from_json(text) for text in pending.traces]
        return scorer.scorer.run(session=session, expectations=expectations)
    top = topmost(trace.data.spans, lambda span: (span.span_id, span.parent_id, span.start_time_ns))
    inputs, outputs = (top.inputs, top.outputs) if top else (None, None)
    return scorer.scorer.run(inputs=inputs, outputs=outputs, expectations=expectations, trace=trace)


class _RefusedError(Exception):
    """A scorer's answer that is not a valid result."""


def _verdict(scorer: ConfiguredScorer, result: Any) -> Verdict | None:
    verdicts = [verdict for item in _items(scorer, result) if (verdict := _checked(scorer, item)) is not None]
    failed = next((verdict for verdict in verdicts if verdict.error), None)
    if failed or len(verdicts) <= 1:
        return failed or next(iter(verdicts), None)
    scores = [as_score(verdict.value) or 0.0 for verdict in verdicts]
    reasons = [f"{verdict.value}: {verdict.rationale}" for verdict in verdicts]
    return Verdict(sum(scores) / len(scores), "\n".join(reasons), source_type=verdicts[0].source_type)


def _items(scorer: ConfiguredScorer, result: Any) -> list[Any]:
    """The assessments that a scorer returned: one, or several if an MLflow judge assesses each retrieval."""
    if not isinstance(result, list):
        return [] if result is None else [result]
    if scorer.model:
        return [item for item in result if item.name == scorer.scorer.name]
    if len(result) != 1:
        raise _RefusedError(f"the scorer returned {len(result)} assessments; return one")
    return result


def _checked(scorer: ConfiguredScorer, item: Any) -> Verdict | None:
    feedback = Feedback(value=item) if isinstance(item, bool | int | float | str) else item
    if not isinstance(feedback, Feedback):
        raise _RefusedError("the scorer returned an assessment that is not feedback")
    source_type = feedback.source.source_type if feedback.source else AssessmentSourceType.CODE
    if feedback.error is not None:
        return Verdict(error=feedback.error, source_type=source_type)
    value = feedback.value
    if scorer.model and isinstance(scorer.scorer, Judge):
        value = _of_its_type(scorer.scorer, value)
    elif value is None:
        return None
    if isinstance(value, float) and not math.isfinite(value):
        raise _RefusedError(f"the scorer returned {value}; a value must be finite")
    try:
        size = len(json.dumps(value, allow_nan=False))
        as_score(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _RefusedError(f"the scorer's value cannot be stored: {error}") from error
    if size > LONGEST_RESULT:
        raise _RefusedError(f"the scorer's value has {size:,} characters; at most {LONGEST_RESULT:,} are stored")
    return Verdict(value, feedback.rationale, source_type=source_type)


def _of_its_type(judge: Judge, value: Any) -> Any:
    """`value` converted to the type that the judge requested; models also answer with other types."""
    try:
        return TypeAdapter(judge.feedback_value_type).validate_python(value)
    except ValidationError as error:
        shown = str(value) if isinstance(value, str) else value  # hides MLflow's class name
        raise _RefusedError(f"the judge answered {shown!r}: {error.errors()[0]['msg']}") from error


def _used(scorer: ConfiguredScorer, call: Call) -> Spent:
    cost_usd = scorer.price.cost_usd(call.input_tokens, call.output_tokens) if scorer.price else None
    return Spent(call.input_tokens, call.output_tokens, cost_usd)


def _reported(result: Any) -> Spent:
    """A judge's usage as reported by MLflow, for models whose requests do not pass the meter."""
    items = [item for item in (result if isinstance(result, list) else [result]) if isinstance(item, Feedback)]
    spent = Spent()
    for item in items:
        found: dict[str, Any] = dict(item.metadata or {})
        spent += Spent(
            found.get(AssessmentMetadataKey.JUDGE_INPUT_TOKENS),
            found.get(AssessmentMetadataKey.JUDGE_OUTPUT_TOKENS),
            found.get(AssessmentMetadataKey.JUDGE_COST),
        )
    return spent


def _sum(one: Any, other: Any) -> Any:
    return other if one is None else one if other is None else one + other


def _rationale(verdict: Verdict, pending: PendingTrace) -> str | None:
    """The scorer's rationale, after a note if the trace had not ended."""
    if not pending.unfinished:
        return None if verdict.rationale is None else _cut(verdict.rationale)
    return _cut(f"{UNFINISHED_NOTE} {verdict.rationale or ''}").strip()


def _cut(rationale: Any) -> str:
    """The rationale, at most `LONGEST_RESULT` characters and a note of the cut."""
    whole = str(rationale)
    text = _text(whole[: 2 * LONGEST_RESULT])  # a secret is found whole, also across the place of the cut
    if len(whole) <= LONGEST_RESULT:
        return text
    return f"{text[:LONGEST_RESULT]}… (cut: {len(whole):,} characters)"


def _text(text: Any) -> str:
    # Traces may contain lone surrogates, which a table cannot store; a scorer may quote its own keys.
    return without_secrets(str(text).encode(errors="replace").decode())
