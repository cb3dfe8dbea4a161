"""Functions with explicit settings read no monitoring.toml, not even an unreadable one in the working folder."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from monitoring_pipeline import api, lifecycle
from monitoring_pipeline.errors import MonitoringError, SettingsError
from monitoring_pipeline.settings import Settings, load_settings
from monitoring_pipeline_tests.made_project import FROM, TO, MadeProject

START, END = (datetime.fromisoformat(text).astimezone(UTC) for text in (FROM, TO))
NO_RECORDS: list[Any] = []
# The leading arguments of each function; `settings` is given by name.
CALLS: dict[str, tuple[Any, ...]] = {
    "analyze_historical_performance": (START, END),
    "analyze_trace_errors": (),
    "analyze_trace_performance": (),
    "analyze_trace_quality": (),
    "assess": (None, ["tr-unknown"]),
    "backfill_historical_metrics": ("stage_latency", START, END),
    "backfill_workflow": (["stage_latency"], START, END),
    "break_down": ("prompt_version",),
    "build_dataset_from_tagged_traces": ("env", "prod"),
    "build_dataset_from_traces": (),
    "build_dataset_with_expectations": (),
    "build_diverse_eval_dataset": (),
    "build_regression_tests": ("stage_latency",),
    "compare_releases": ("env", "prod", "dev"),
    "configure_trace_archival_experiment": ("made",),
    "daily_quality_report": (START.date(),),
    "enable_trace_archival": ("main", "monitoring"),
    "evaluate_production_traces": (START, END, ["stage_latency"]),
    "extract_failures_for_eval": ("stage_latency",),
    "merge_into_mlflow_dataset": (NO_RECORDS, "nothing"),
    "profile_trace_performance": ("tr-unknown",),
    "query_archived_traces": (START, END),
    "rebuild_dataset": ("nothing.json",),
    "search": (),
    "setup": (),
    "setup_trace_archival": ("main", "monitoring", "agent_traces", "made"),
    "with_traces": (NO_RECORDS,),
}
# Errors that a call may raise; they do not depend on the settings.
REFUSED = {
    "assess": MonitoringError,  # no such trace
    "compare_releases": MonitoringError,
    "configure_trace_archival_experiment": MonitoringError,  # MLflow is not Databricks'
    "enable_trace_archival": MonitoringError,
    "setup_trace_archival": MonitoringError,
    "profile_trace_performance": MonitoringError,  # no such trace
    "rebuild_dataset": (MonitoringError, OSError),  # no such file
    "break_down": MonitoringError,
}


@pytest.fixture
def unreadable(made: MadeProject, dagster_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeProject:
    """A project with explicit settings, in a working folder with an unreadable monitoring.toml."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "monitoring.toml").write_bytes(b"\xff[")
    monkeypatch.chdir(folder)
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings()
    return made


def test_each_function_that_takes_settings_is_called_below() -> None:
    public = {name: getattr(api, name) for name in api.__all__}
    assert {name for name, function in public.items() if "settings" in inspect.signature(function).parameters} == {
        *CALLS
    }


@pytest.mark.parametrize("name", CALLS)
def test_with_explicit_settings_no_file_is_read(unreadable: MadeProject, name: str) -> None:
    function: Callable[..., Any] = getattr(api, name)
    try:
        function(*CALLS[name], settings=unreadable.settings)
    except REFUSED.get(name, ()) as error:
        assert not isinstance(error, SettingsError), error
        assert "monitoring.toml" not in str(error)


@pytest.mark.parametrize(
    "call",
    [
        lambda settings: lifecycle.handle("stage_latency", settings),
        lambda settings: lifecycle.handles(settings),
        lambda settings: lifecycle.history("stage_latency", settings),
    ],
)
def test_with_explicit_settings_the_lifecycle_reads_no_file(
    unreadable: MadeProject, call: Callable[[Settings], object]
) -> None:
    call(unreadable.settings)
