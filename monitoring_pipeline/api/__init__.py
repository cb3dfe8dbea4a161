"""The functions for notebooks and scripts, under the names that guides to monitoring use.

Times without a zone are local ones. Settings are those of monitoring.toml and the environment unless given.
"""

from monitoring_pipeline.api.archival import (
    configure_trace_archival_experiment,
    enable_trace_archival,
    setup,
    setup_trace_archival,
)
from monitoring_pipeline.api.assessing import assess, evaluate_production_traces
from monitoring_pipeline.api.backfilling import backfill_historical_metrics, backfill_workflow

__all__ = [
    "assess",
    "backfill_historical_metrics",
    "backfill_workflow",
    "configure_trace_archival_experiment",
    "enable_trace_archival",
    "evaluate_production_traces",
    "setup",
    "setup_trace_archival",
]
