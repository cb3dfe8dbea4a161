"""Scorers that need no key and no model: ordinary MLflow scorers, for `mlflow.genai.evaluate` as for production.

A scorer's digest covers the text of its function, so each function holds all that decides its score. None is returned
where a trace has nothing to be scored; such a trace gets no row.
"""

from __future__ import annotations

from typing import Any

from mlflow.entities import Feedback, Trace
from mlflow.genai.scorers import scorer


@scorer
def response_quality(outputs: Any, min_characters: int = 10, error_keyword: str = "error") -> Feedback:
    """Score 1 for a response; 0.5 less when it is short, 0.3 less when it has the error keyword; 0 when it is empty."""
    import json

    text = outputs
    if isinstance(text, dict) and text.get("choices"):
        text = text["choices"][0].get("message")
    if isinstance(text, dict) and text.get("messages"):
        text = text["messages"][-1]
    if isinstance(text, dict):
        text = next((text[key] for key in ("content", "response", "output", "text", "answer") if key in text), text)
    if text is not None and not isinstance(text, str):
        text = json.dumps(text)
    text = (text or "").strip()
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
    """The share of the trace's TOOL spans that failed: 0 is best, 1 worst. None without a TOOL span."""
    tools = [span for span in trace.data.spans if span.span_type == "TOOL"]
    if not tools:
        return None
    failed = [span.name for span in tools if span.status.status_code == "ERROR"]
    names = f": {', '.join(sorted(set(failed)))}" if failed else ""
    return Feedback(value=len(failed) / len(tools), rationale=f"{len(failed)} of {len(tools)} tool calls failed{names}")


@scorer
def tool_selection_accuracy(trace: Trace, expectations: dict[str, Any] | None) -> Feedback | None:
    """Overlap of the tools called with the expectation `expected_tools`, repetitions counted: common / all, 0 to 1.

    1 where both are empty. None without the expectation.
    """
    from collections import Counter

    expected = (expectations or {}).get("expected_tools")
    if expected is None:
        return None
    wanted = Counter(expected)
    called = Counter(span.name for span in trace.data.spans if span.span_type == "TOOL")
    union = (wanted | called).total()
    score = (wanted & called).total() / union if union else 1.0
    missing, unexpected = sorted((wanted - called).elements()), sorted((called - wanted).elements())
    parts = [
        f"{label}: {', '.join(names)}" for label, names in (("missing", missing), ("unexpected", unexpected)) if names
    ]
    return Feedback(value=score, rationale="; ".join(parts) or "exactly the expected tools")


@scorer
def stage_latency(trace: Trace, limits_ms: dict[str, float] | None = None) -> Feedback | None:
    """Whether every span type stayed within its limit of milliseconds in total; the worst one is the rationale.

    None where the trace has no finished span of a type with a limit.
    """
    limits = limits_ms or {"AGENT": 10_000, "CHAT_MODEL": 8_000, "RETRIEVER": 1_000, "TOOL": 2_000}
    total_ms: dict[str, float] = {}
    for span in trace.data.spans:
        if span.span_type in limits and span.end_time_ns is not None:
            duration_ms = (span.end_time_ns - span.start_time_ns) / 1e6
            total_ms[span.span_type] = total_ms.get(span.span_type, 0.0) + duration_ms
    if not total_ms:
        return None
    worst = max(total_ms, key=lambda stage: total_ms[stage] / limits[stage])
    passed = total_ms[worst] <= limits[worst]
    return Feedback(value=passed, rationale=f"{worst} took {total_ms[worst]:.0f} ms of {limits[worst]:.0f} ms")
