"""A small multi-agent application and its evaluation stage by stage.

    .venv/bin/python examples/multi_agent.py

A classifier decides the type of a question, an analyst calls the tools for it, and a writer words the answer. All three
are plain functions without a model, so that results are reproducible; an application with models would log the
same traces. Results go to the experiment multi-agent-example of the MLflow store in use (MLFLOW_TRACKING_URI).
"""

from __future__ import annotations

from typing import Any

import mlflow
from mlflow.entities import Feedback, SpanType, Trace
from mlflow.genai import evaluate
from mlflow.genai.scorers import scorer

from monitoring_pipeline.api import validate_dataset
from monitoring_pipeline.scoring.scorers import classifier_accuracy, stage_latency_scorer, tool_selection_accuracy

EXPERIMENT = "multi-agent-example"
# Account, its vertical, and its consumption in each of the last four months.
ACCOUNTS = {
    "Arkon": ("MFG", [120, 150, 210, 330]),
    "Belwerk": ("MFG", [400, 410, 405, 420]),
    "Cirrus Bank": ("FIN", [80, 120, 90, 200]),
    "Dovetail": ("RETAIL", [60, 55, 50, 40]),
}
VERTICALS = {vertical for vertical, _ in ACCOUNTS.values()}
KEYWORDS = {"growth_analysis": ("growth", "grew", "growing"), "consumption_trend": ("trend", "over time", "months")}
DECLINED = "I can only answer questions about the accounts' consumption."

DATASET: list[dict[str, Any]] = [
    {
        "inputs": {"question": "Which MFG accounts have the strongest growth?"},
        "expectations": {
            "expected_facts": ["Arkon grew most"],
            "expected_query_type": "growth_analysis",
            "expected_tools": ["account_growth"],
            "expected_filters": {"vertical": "MFG"},
        },
        "metadata": {
            "test_id": "growth_by_vertical",
            "category": "growth_analysis",
            "difficulty": "easy",
            "architecture": "multi_agent",
        },
    },
    {
        "inputs": {"question": "What is the trend of Cirrus Bank, and how has it grown against FIN?"},
        "expectations": {
            "expected_query_type": "consumption_trend",
            "expected_tools": ["account_consumption", "account_growth"],
            "expected_filters": {"account": "Cirrus Bank", "vertical": "FIN"},
        },
        "metadata": {"test_id": "two_tools", "category": "consumption_trend", "difficulty": "hard"},
    },
    {
        "inputs": {"question": "Is Dovetail using less than it did?"},
        "expectations": {
            "expected_query_type": "consumption_trend",
            "expected_tools": ["account_consumption"],
            "expected_filters": {"account": "Dovetail"},
        },
        "metadata": {
            "test_id": "no_keyword",
            "category": "consumption_trend",
            "difficulty": "medium",
            "notes": "The classifier knows only keywords, and fails here",
        },
    },
    {
        "inputs": {"question": "Show me the weather forecast"},
        "expectations": {
            "expected_facts": [],
            "expected_query_type": None,
            "expected_tools": [],
            "guidelines": ["Says politely what it can answer"],
        },
        "metadata": {"test_id": "out_of_scope", "category": "edge_case", "difficulty": "easy"},
    },
]


@mlflow.trace(name="classifier", span_type=SpanType.CHAIN)
def classify(question: str) -> dict[str, Any]:
    """The type of the question (None if unknown), and the filters that it names."""
    words = question.lower()
    query_type = next((kind for kind, keys in KEYWORDS.items() if any(key in words for key in keys)), None)
    account = next((name for name in ACCOUNTS if name.lower() in words), None)
    vertical = next((name for name in sorted(VERTICALS) if name in question.split()), None)
    if account and query_type:
        query_type = "consumption_trend"
    filters = {
        "account": account,
        "vertical": vertical or (account and ACCOUNTS[account][0] if "against" in words else None),
    }
    return {"query_type": query_type, "filters": {name: value for name, value in filters.items() if value}}


@mlflow.trace(span_type=SpanType.TOOL)
def account_growth(vertical: str | None = None) -> list[dict[str, Any]]:
    """The growth of each account (of a vertical, or of all) from the first month to the last, highest first."""
    rows = [
        {"account": name, "growth": round(used[-1] / used[0] - 1, 2)}
        for name, (its_vertical, used) in ACCOUNTS.items()
        if vertical in (None, its_vertical)
    ]
    return sorted(rows, key=lambda row: -row["growth"])


@mlflow.trace(span_type=SpanType.TOOL)
def account_consumption(account: str) -> list[int]:
    """The consumption of the account by month."""
    return ACCOUNTS[account][1]


@mlflow.trace(name="analyst", span_type=SpanType.AGENT)
def analyse(query_type: str | None, filters: dict[str, str]) -> dict[str, Any]:
    """The results of the tools that this type of question needs."""
    found: dict[str, Any] = {}
    if query_type == "consumption_trend" and "account" in filters:
        found["consumption"] = account_consumption(filters["account"])
    if query_type == "growth_analysis" or (found and "vertical" in filters):
        found["growth"] = account_growth(filters.get("vertical"))
    return found


@mlflow.trace(name="writer", span_type=SpanType.CHAIN)
def write(findings: dict[str, Any]) -> str:
    """The findings in words."""
    parts = []
    if "consumption" in findings:
        parts.append(f"It consumed {', '.join(map(str, findings['consumption']))} in the last months.")
    if "growth" in findings:
        first = findings["growth"][0]
        parts.append(f"{first['account']} grew most, by {first['growth']:.0%}.")
    return " ".join(parts) or DECLINED


@mlflow.trace(name="assistant", span_type=SpanType.AGENT)
def answer(question: str) -> str:
    """The application: classifier, analyst and writer in turn."""
    query = classify(question)
    return write(analyse(query["query_type"], query["filters"]))


@scorer
def filters_used(trace: Trace, expectations: dict[str, Any]) -> Feedback | None:
    """Whether the tools were called with exactly the filters in the expectation `expected_filters`."""
    expected = expectations.get("expected_filters")
    if expected is None:
        return None
    used: dict[str, Any] = {}
    for span in trace.data.spans:
        if span.span_type == SpanType.TOOL:
            used |= span.inputs
    return Feedback(value=used == expected, rationale=f"used {used}, expected {expected}")


def run() -> Any:
    """Run the application over the dataset and score each stage; returns MLflow's evaluation result."""
    mlflow.set_experiment(EXPERIMENT)
    return evaluate(
        data=validate_dataset(DATASET),
        predict_fn=answer,
        scorers=[classifier_accuracy, tool_selection_accuracy, stage_latency_scorer, filters_used],
    )


if __name__ == "__main__":
    for metric, value in run().metrics.items():
        print(f"{metric}: {value:.2f}")
