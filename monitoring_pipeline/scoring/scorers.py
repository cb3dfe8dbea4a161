"""Scorers without a model or API key: ordinary MLflow scorers that also work with `mlflow.genai.evaluate`.

A scorer's digest covers the source of its function and of the modules of this package that it imports, so each function
contains or imports everything that determines its score. A scorer returns None for a trace it does not apply to; such a
trace gets no row.
"""

from __future__ import annotations

from typing import Any

from mlflow.entities import Feedback, Trace
from mlflow.genai.scorers import scorer


@scorer
def response_quality(outputs: Any, min_characters: int = 10, error_keyword: str = "error") -> Feedback:
    """Score 1 for a response; 0.5 less when it is short, 0.3 less when it has the error keyword; 0 when it is empty.

    The response is the text that a person reads, whatever the shape of the outputs.
    """
    from monitoring_pipeline.traces.reading import answer_text

    text = answer_text(outputs)
    if not text:
        return Feedback(value=0.0, rationale="empty response")
    score, issues = 1.0, []
    if len(text) < min_characters:
        score -= 0.5
        issues.append(f"{len(text)} characters, fewer than {min_characters}")
    if error_keyword.lower() in text.lower():
        score -= 0.3
        issues.append(f"contains {error_keyword!r}")
    return Feedback(value=round(score, 3), rationale="; ".join(issues) or "long enough, without the error keyword")


@scorer
def tool_errors(trace: Trace) -> Feedback | None:
    """The share of the trace's TOOL spans that failed: 0 is best, 1 worst. None without a TOOL span.

    A call failed if its status is ERROR or its output reports an error; the rationale names both tool and reason.
    """
    from monitoring_pipeline.traces.reading import tool_failure

    tools = [span for span in trace.data.spans if span.span_type == "TOOL"]
    if not tools:
        return None
    reasons = [(span.name, tool_failure(span.status.status_code, span.outputs)) for span in tools]
    failed = [f"{name} ({reason})" for name, reason in reasons if reason]
    names = f": {', '.join(sorted(set(failed)))}" if failed else ""
    return Feedback(value=len(failed) / len(tools), rationale=f"{len(failed)} of {len(tools)} tool calls failed{names}")


@scorer
def tool_selection_accuracy(trace: Trace, expectations: dict[str, Any] | None, mode: str = "set") -> Feedback | None:
    """Agreement of the tools called with those expected, 0 to 1; 1 where both are none, None without the expectation.

    By `mode`: "set", overlap with the names `expected_tools`, repetitions counted: common / all. "order", the longest
    common subsequence with them / the longer of both. "arguments", overlap with the calls `expected_tool_calls`, a list
    of {"name", "arguments"}, where arguments must be equal, and may be left out.
    """
    import json

    modes = ("set", "order", "arguments")
    if mode not in modes:
        raise ValueError(f"mode = {mode!r}: must be one of {', '.join(modes)}")
    expected = (expectations or {}).get("expected_tool_calls" if mode == "arguments" else "expected_tools")
    if expected is None:
        return None
    tools = sorted((span for span in trace.data.spans if span.span_type == "TOOL"), key=lambda span: span.start_time_ns)
    called = [(span.name, span.inputs if mode == "arguments" else None) for span in tools]
    wanted = [(item["name"], item.get("arguments")) if mode == "arguments" else (item, None) for item in expected]
    if mode == "order":
        lengths = [0] * (len(called) + 1)  # of the longest common subsequence with the first calls
        for name, _ in wanted:
            shorter = lengths
            lengths = [0]
            for place, (other, _) in enumerate(called):
                lengths.append(shorter[place] + 1 if name == other else max(shorter[place + 1], lengths[place]))
        longer = max(len(wanted), len(called))
        return Feedback(
            value=lengths[-1] / longer if longer else 1.0,
            rationale=f"{lengths[-1]} of {len(wanted)} expected tools in order, among {len(called)} calls",
        )

    def shown(calls: list[tuple[str, Any]]) -> str:
        texts = (name if values is None else f"{name}({json.dumps(values, default=str)})" for name, values in calls)
        return ", ".join(sorted(texts))

    missing, unexpected = [], list(called)
    for name, arguments in sorted(wanted, key=lambda call: call[1] is None):  # what fits fewer calls first
        fits = (call for call in unexpected if call[0] == name and (arguments is None or call[1] == arguments))
        found = next(fits, None)
        if found is None:
            missing.append((name, arguments))
        else:
            unexpected.remove(found)
    total = len(called) + len(missing)
    score = (len(called) - len(unexpected)) / total if total else 1.0
    parts = [f"{label}: {shown(calls)}" for label, calls in (("missing", missing), ("unexpected", unexpected)) if calls]
    return Feedback(value=score, rationale="; ".join(parts) or "exactly the expected tools")


@scorer
def classifier_accuracy(
    trace: Trace, expectations: dict[str, Any] | None, stage: str = "classifier", attribute: str = "query_type"
) -> Feedback | None:
    """Whether the classifier gave the expectation `expected_query_type`; None without the expectation.

    The query type is the `attribute` of the last span named `stage`, or that of its outputs, or its outputs where they
    are a text. Without such a span there is none. None, "none" and "" are the same: no query type.
    """
    if not expectations or "expected_query_type" not in expectations:
        return None
    given = None
    for span in trace.data.spans:
        if span.name == stage:
            said = {attribute: span.outputs} if isinstance(span.outputs, str) else span.outputs or {}
            given = span.attributes.get(attribute, said.get(attribute) if isinstance(said, dict) else None)
    wanted = expectations["expected_query_type"]
    wanted, given = (None if value in (None, "", "none") else str(value) for value in (wanted, given))
    return Feedback(value=wanted == given, rationale=f"classified as {given}, expected {wanted}")


@scorer
def stage_latency(trace: Trace, limits_ms: dict[str, float] | None = None) -> Feedback | None:
    """Whether every stage stayed within its limit of milliseconds in total; the worst one is the rationale.

    A stage is all spans of a name or, where their name has no limit, of a type, such as {"classifier": 500, "TOOL":
    2000}. None where the trace has no finished span of a stage with a limit.
    """
    limits = limits_ms or {"AGENT": 10_000, "CHAT_MODEL": 8_000, "RETRIEVER": 1_000, "TOOL": 2_000}
    total_ms: dict[str, float] = {}
    for span in trace.data.spans:
        stage = span.name if span.name in limits else span.span_type
        if stage in limits and span.end_time_ns is not None:
            total_ms[stage] = total_ms.get(stage, 0.0) + (span.end_time_ns - span.start_time_ns) / 1e6
    if not total_ms:
        return None
    worst = max(total_ms, key=lambda stage: total_ms[stage] / limits[stage])
    passed = total_ms[worst] <= limits[worst]
    return Feedback(value=passed, rationale=f"{worst} took {total_ms[worst]:.0f} ms of {limits[worst]:.0f} ms")


stage_latency_scorer = stage_latency  # the name used by guides to multi-agent evaluation
