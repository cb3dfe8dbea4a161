"""MLflow's own scorers by name: built-in judges, make_judge, and scorers without a model."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from typing import Any, Literal

from mlflow.entities import Trace, TraceState
from mlflow.exceptions import MlflowException
from mlflow.genai.judges import make_judge
from mlflow.genai.judges.base import Judge
from mlflow.genai.judges.instructions_judge import InstructionsJudge
from mlflow.genai.scorers import Scorer, builtin_scorers
from mlflow.genai.utils.trace_utils import extract_outputs_from_trace, extract_retrieval_context_from_trace
from pydantic import ValidationError

from monitoring_pipeline.errors import one_line
from monitoring_pipeline.settings import ScorerSettings

MAKE_JUDGE = "make_judge"
VALUE_TYPES: dict[str, type] = {"bool": bool, "int": int, "float": float, "str": str}
# The rates that monitoring guides recommend; a judge not listed here is "custom".
RATES = {"safety": 1.0, "relevance": 0.2, "guidelines": 0.1}
CUSTOM_JUDGE_RATE = 0.05
RETRIEVAL_JUDGES = (
    builtin_scorers.RetrievalGroundedness,
    builtin_scorers.RetrievalRelevance,
    builtin_scorers.RetrievalSufficiency,
)
TOOL_JUDGES = (builtin_scorers.ToolCallCorrectness, builtin_scorers.ToolCallEfficiency)
# The expectations that a judge compares with; it needs at least one.
EXPECTATIONS = {
    builtin_scorers.Correctness: {"expected_response", "expected_facts"},
    builtin_scorers.Equivalence: {"expected_response"},
    builtin_scorers.ExpectationsGuidelines: {"guidelines"},
    builtin_scorers.RetrievalSufficiency: {"expected_response", "expected_facts"},
}


def names() -> list[str]:
    """Valid values of the setting `builtin`."""
    found = [
        name
        for name, value in vars(builtin_scorers).items()
        if inspect.isclass(value)
        and issubclass(value, builtin_scorers.BuiltInScorer)
        and not inspect.isabstract(value)
        and not name.startswith(("_", "BuiltIn"))
    ]
    return [*sorted(found), MAKE_JUDGE]


def build(entry: ScorerSettings) -> Scorer:
    """The scorer named by `entry.builtin`, with its model and parameters.

    Raises:
        ValueError: MLflow has no such scorer, or the scorer does not accept the parameters or a model.
    """
    known = names()
    if entry.builtin not in known:
        close = difflib.get_close_matches(str(entry.builtin), known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"MLflow has no built-in scorer {entry.builtin!r}; {hint}it has {', '.join(known)}")
    params = {**entry.params, **({"model": entry.model} if entry.model else {})}
    try:
        # Requests have their own timeout; MLflow's would leave the thread of a timed-out request running.
        if entry.builtin == MAKE_JUDGE:
            return make_judge(name=entry.name, **_with_value_type(params)).model_copy(update={"timeout": 0})
        scorer_class = getattr(builtin_scorers, str(entry.builtin))
        if unknown := sorted(set(params) - set(scorer_class.model_fields)):
            own = sorted(set(scorer_class.model_fields) - {"name", "aggregations", "required_columns", "timeout"})
            raise ValueError(f"{entry.builtin} has no parameter {', '.join(unknown)}; it has {', '.join(own)}")
        return scorer_class(name=entry.name, timeout=0, **params)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors())
        raise ValueError(f"invalid params for {entry.builtin}: {problems}") from error
    except (MlflowException, TypeError) as error:
        raise ValueError(f"invalid params for {entry.builtin}: {one_line(error)}") from error


def model_of(scorer: Scorer) -> str | None:
    """The model that the scorer calls, such as openai:/gpt-4.1-mini; None if it calls no model."""
    if not isinstance(scorer, Judge) or _needs_no_model(scorer):
        return None
    from mlflow.genai.judges.utils import get_default_model

    return getattr(scorer, "model", None) or get_default_model()


def default_rate(scorer: Scorer) -> float:
    """The default sample rate for the scorer's kind: 1.0 if it calls no model."""
    if model_of(scorer) is None:
        return 1.0
    kind = type(scorer).__name__.lower()
    return next((rate for word, rate in RATES.items() if word in kind), CUSTOM_JUDGE_RATE)


def reads_spans(scorer: Scorer) -> bool:
    """Whether a judge's prompt contains more of a trace than its request and response."""
    if isinstance(scorer, InstructionsJudge):
        return "trace" in scorer.template_variables
    return isinstance(scorer, (*RETRIEVAL_JUDGES, *TOOL_JUDGES, builtin_scorers.ConversationalToolCallEfficiency))


def takes_expectations(scorer: Scorer) -> bool:
    """Whether the scorer reads the expectations of a trace: a judge that compares with them, or a function of them."""
    if isinstance(scorer, InstructionsJudge):
        return "expectations" in scorer.template_variables
    if isinstance(scorer, Judge):
        return bool(_needed_expectations(scorer))
    return "expectations" in inspect.signature(scorer.__call__).parameters


def applies(scorer: Scorer, trace: Trace, expectations: dict[str, Any] | None) -> bool:
    """Whether the trace has what a judge needs: retrieved context, expectations, and, if the trace failed, an output.

    True for all other scorers.
    """
    # For a trace without an output, MLflow lets the model search it with tools, in many requests; a failed trace has
    # no output to find.
    if trace.info.state == TraceState.ERROR and _needs_output(scorer) and extract_outputs_from_trace(trace) is None:
        return False
    if isinstance(scorer, RETRIEVAL_JUDGES) and all(span.span_type != "RETRIEVER" for span in trace.data.spans):
        return False
    if isinstance(scorer, InstructionsJudge):
        return bool(expectations) or "expectations" not in scorer.template_variables
    needed = _needed_expectations(scorer)
    return not needed or not needed.isdisjoint(expectations or {})


def asks_repeatedly(scorer: Scorer) -> bool:
    """Whether a judge may send more than one request per trace or session."""
    return isinstance(scorer, (builtin_scorers.KnowledgeRetention, *TOOL_JUDGES, *RETRIEVAL_JUDGES))


def request_count(scorer: Scorer, traces: Sequence[str]) -> int:
    """Minimum number of requests a judge sends for a trace or session (JSON); some judges send one per part."""
    if isinstance(scorer, builtin_scorers.KnowledgeRetention):
        return len(traces)
    if isinstance(scorer, TOOL_JUDGES):
        return 2  # the first request asks which tools were available
    if isinstance(scorer, RETRIEVAL_JUDGES):
        try:
            retrieved = extract_retrieval_context_from_trace(Trace.from_json(traces[0])).values()
        except Exception:  # noqa: BLE001 - an unreadable trace costs no request; its row will hold the error
            return 0
        by_chunk = isinstance(scorer, builtin_scorers.RetrievalRelevance)
        return sum(map(len, retrieved)) if by_chunk else len(retrieved)
    return 1


def _needed_expectations(scorer: Scorer) -> set[str]:
    """The expectations of which a judge needs at least one; empty for all other scorers."""
    if isinstance(scorer, builtin_scorers.ToolCallCorrectness) and scorer.should_exact_match:
        return {"expected_tool_calls"}
    return EXPECTATIONS.get(type(scorer), set())


def _needs_output(scorer: Scorer) -> bool:
    return isinstance(scorer, Judge) and any(field.name == "outputs" for field in scorer.get_input_fields())


def _needs_no_model(scorer: Scorer) -> bool:
    return isinstance(scorer, builtin_scorers.BuiltInScorer) and "model" not in type(scorer).model_fields


def _with_value_type(params: dict[str, Any]) -> dict[str, Any]:
    """`params` of make_judge with feedback_value_type, in TOML a name or a list of values, converted to its type."""
    given = params.get("feedback_value_type")
    if given is None:
        return params
    if given and isinstance(given, list):
        return {**params, "feedback_value_type": Literal[tuple(given)]}
    if not isinstance(given, str) or given not in VALUE_TYPES:
        raise ValueError(
            f"feedback_value_type = {given!r}: must be one of {', '.join(VALUE_TYPES)}, or a list of values"
        )
    return {**params, "feedback_value_type": VALUE_TYPES[given]}
