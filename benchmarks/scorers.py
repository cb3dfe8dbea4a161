"""Code scorers for benchmarks, such as many teams write: a quick one and a slow one."""

from __future__ import annotations

from mlflow.entities import Feedback, Trace
from mlflow.genai.scorers import scorer


@scorer
def answer_words(trace: Trace) -> int:
    """The number of words of the response."""
    return len(str(trace.data.response or "").split())


@scorer
def verbatim_share(trace: Trace) -> Feedback | None:
    """The share of the response that repeats, in passages of at least 20 characters, the output of a tool or search."""
    import difflib

    response = str(trace.data.response or "")
    outputs = [str(span.outputs) for span in trace.data.spans if span.span_type in ("TOOL", "RETRIEVER")]
    if not response or not outputs:
        return None
    shared = 0
    for output in outputs:
        blocks = difflib.SequenceMatcher(None, response, output, autojunk=False).get_matching_blocks()
        shared = max(shared, sum(block.size for block in blocks if block.size >= 20))
    return Feedback(value=shared / len(response), rationale=f"{shared} of {len(response)} characters")
