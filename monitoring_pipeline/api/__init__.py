"""Functions for notebooks and scripts.

Times without a zone are local times. Settings come from monitoring.toml and the environment unless you pass them.
"""

from monitoring_pipeline.api.analyses import (
    analyze_historical_performance,
    analyze_trace_errors,
    analyze_trace_performance,
    analyze_trace_quality,
    break_down,
    compare_releases,
    profile_trace_performance,
    query_archived_traces,
    search,
)
from monitoring_pipeline.api.archival import (
    configure_trace_archival_experiment,
    enable_trace_archival,
    setup,
    setup_trace_archival,
)
from monitoring_pipeline.api.assessing import assess, evaluate_production_traces
from monitoring_pipeline.api.backfilling import backfill_historical_metrics, backfill_workflow
from monitoring_pipeline.api.datasets import (
    build_dataset_from_tagged_traces,
    build_dataset_from_traces,
    build_dataset_with_expectations,
    build_diverse_eval_dataset,
    build_regression_tests,
    extract_failures_for_eval,
    merge_into_mlflow_dataset,
    read_dataset,
    rebuild_dataset,
    validate_dataset,
    with_guidelines,
    with_traces,
    write_dataset,
)
from monitoring_pipeline.api.reports import daily_quality_report

__all__ = [
    "analyze_historical_performance",
    "analyze_trace_errors",
    "analyze_trace_performance",
    "analyze_trace_quality",
    "assess",
    "backfill_historical_metrics",
    "backfill_workflow",
    "break_down",
    "build_dataset_from_tagged_traces",
    "build_dataset_from_traces",
    "build_dataset_with_expectations",
    "build_diverse_eval_dataset",
    "build_regression_tests",
    "compare_releases",
    "configure_trace_archival_experiment",
    "daily_quality_report",
    "enable_trace_archival",
    "evaluate_production_traces",
    "extract_failures_for_eval",
    "merge_into_mlflow_dataset",
    "profile_trace_performance",
    "query_archived_traces",
    "read_dataset",
    "rebuild_dataset",
    "search",
    "setup",
    "setup_trace_archival",
    "validate_dataset",
    "with_guidelines",
    "with_traces",
    "write_dataset",
]
