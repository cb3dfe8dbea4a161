"""A scorer for benchmarks that takes its time, as many a team's own do."""

from __future__ import annotations

from mlflow.entities import Feedback, Trace
from mlflow.genai.scorers import scorer


@scorer
def verbatim_share(trace: Trace) -> Feedback | None:
    """The share of the response's characters that stand, in passages of 20 or more, in what a tool or search found."""
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
