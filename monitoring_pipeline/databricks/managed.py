"""Scorers that Databricks runs, and their lifecycle there.

The record of a scorer's state is our own log. Databricks is made to match it, and `drift` says where it differs.
"""

from __future__ import annotations

import ast
import builtins
import dis
import functools
import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import getsource
from types import CodeType
from typing import Any

from mlflow.genai.scorers import ScorerSamplingConfig, delete_scorer
from mlflow.genai.scorers.base import ScorerKind

from monitoring_pipeline.databricks.agents import DATABRICKS, asked, at_databricks, patiently
from monitoring_pipeline.databricks.workspace import connect
from monitoring_pipeline.errors import SettingsError
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.states import LifecycleError, ScorerState, Standing
from monitoring_pipeline.settings import without_password

MAX_SCORERS = 20  # of an experiment
# What MLflow has at hand where it runs the source of a function.
AT_HAND = {
    *("mlflow", "Assessment", "AssessmentError", "AssessmentSource", "AssessmentSourceType"),
    *("CategoricalRating", "Feedback", "Trace"),
    *dir(builtins),
}


def is_managed(scorer: ConfiguredScorer) -> bool:
    """Whether Databricks runs the scorer."""
    return scorer.settings is not None and scorer.settings.managed == DATABRICKS


def check_managed(tracking: TrackingResource, scorers: list[ConfiguredScorer]) -> None:
    """Refuse the managed ones of `scorers` that Databricks cannot run in the monitored experiments; it is not asked.

    Raises:
        SettingsError: with a line for each problem.
    """
    managed = [scorer for scorer in scorers if is_managed(scorer)]
    if not managed:
        return
    problems = [
        f"scorer {scorer.name!r} is managed by Databricks: {reason}"
        for scorer in managed
        if (reason := _why_not(scorer))
    ]
    if tracking.tracking_uri != DATABRICKS:
        problems.append(
            f"[mlflow] tracking_uri = {without_password(tracking.tracking_uri)!r}: managed scorers need 'databricks' "
            "(and DATABRICKS_CONFIG_PROFILE for a profile)"
        )
    if not tracking.experiments:
        problems.append("[mlflow] experiments names none: managed scorers need those that Databricks is to score")
    if len(managed) > MAX_SCORERS:
        problems.append(f"{len(managed)} scorers are managed, and Databricks runs {MAX_SCORERS} of an experiment")
    if problems:
        raise SettingsError(problems)


def _why_not(scorer: ConfiguredScorer) -> str | None:
    """Why Databricks cannot run the scorer, and what to do; None where it can."""
    if scorer.session_idle is not None:
        return "it is of sessions, which this pipeline tells apart by its own rules; remove managed"
    if scorer.scorer.kind in (ScorerKind.CLASS, ScorerKind.THIRD_PARTY):
        return f"it is a {type(scorer.scorer).__name__}; write it as a function with @scorer, or remove managed"
    if scorer.model and not scorer.model.startswith(DATABRICKS):
        return f"its model would be {scorer.model}, and must be Databricks' own; set model = 'databricks', its default"
    function = getattr(scorer.scorer, "_original_func", None)
    if function is None:
        return None
    if isinstance(function, functools.partial):
        return "MLflow keeps a function's source and not its params; write their values into the function"
    source = textwrap.dedent(getsource(function))
    first = ast.parse(source).body[0].body[0]  # type: ignore[attr-defined]
    if source.splitlines()[first.lineno - 1][: first.col_offset].strip():
        return "its body is on the line of its def, where MLflow loses it; write it on lines of its own"
    outside = sorted({*_global_names(function.__code__)} - AT_HAND) or function.__code__.co_freevars
    if outside:
        return f"it uses {', '.join(outside)} from outside its function; import or define that within"
    return None


def _global_names(code: CodeType) -> Iterator[str]:
    """The names that a function, and those within it, takes from its module."""
    yield from (step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL")
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)


@dataclass(frozen=True)
class RemoteScorer:
    """A scorer as an experiment at Databricks has it; it runs at a rate above 0."""

    sample_rate: float
    filter: str | None
    version: int | None
    definition: dict[str, Any]


def remote_scorers(experiment_id: str) -> dict[str, RemoteScorer]:
    """The scorers of the experiment at Databricks, by name.

    Their code is not run: the clients' own functions would rebuild functions from the source that they are given.

    Raises:
        MonitoringError: the workspace refuses.
    """
    client = connect()
    found: dict[str, RemoteScorer] = {}
    query: dict[str, str] = {}
    while True:
        page = asked(client, "GET", f"scheduled-scorers/{experiment_id}", query=query)
        for entry in (page.get("scheduled_scorers") or {}).get("scorers") or []:
            found[entry["name"]] = RemoteScorer(
                float(entry.get("sample_rate") or 0),
                entry.get("filter_string") or None,
                entry.get("scorer_version"),
                _definition(json.loads(entry["serialized_scorer"])),
            )
        if not page.get("next_page_token"):
            return found
        query = {"page_token": page["next_page_token"]}


def bring(tracking: TrackingResource, name: str, code: ConfiguredScorer | None, standing: Standing) -> int | None:
    """Bring the scorer to `standing` in every monitored experiment; returns its version in the first of them.

    The version is None where Databricks has none. `code` is what to register, None only to delete.

    Raises:
        LifecycleError: an experiment has as many scorers as Databricks takes.
        MonitoringError: the workspace refuses, or databricks-agents is not installed.
    """
    versions = []
    with at_databricks():
        for experiment_id, experiment in tracking.experiment_names().items():
            there = remote_scorers(experiment_id)
            if standing.state is ScorerState.UNREGISTERED:
                if name in there:
                    patiently(lambda at=experiment_id: delete_scorer(name=name, experiment_id=at, version="all"))
                versions.append(standing.mlflow_version)
                continue
            assert code is not None  # a scorer that is not configured can only be deleted
            if name not in there and len(there) >= MAX_SCORERS:
                raise LifecycleError(
                    f"cannot register scorer {name!r}: experiment {experiment!r} has {len(there)} scorers, and "
                    f"Databricks runs {MAX_SCORERS}; delete one of {', '.join(sorted(there))}"
                )
            versions.append(_brought(name, code, standing, experiment_id, there.get(name)))
    return versions[0] if versions else None


def _brought(
    name: str, code: ConfiguredScorer, standing: Standing, experiment_id: str, there: RemoteScorer | None
) -> int | None:
    scorer, version = code.scorer, there.version if there else None
    if there is None or there.definition != _definition_of(name, code):
        scorer = scorer.register(name=name, experiment_id=experiment_id)
        version = scorer.scorer_version
    if standing.state is ScorerState.ACTIVE and standing.sample_rate > 0:
        sampling = ScorerSamplingConfig(sample_rate=standing.sample_rate, filter_string=standing.filter or "")
        is_running = there is not None and there.sample_rate > 0
        (scorer.update if is_running else scorer.start)(
            name=name, experiment_id=experiment_id, sampling_config=sampling
        )
    else:
        scorer.stop(name=name, experiment_id=experiment_id)
    return version


def drift(
    there: dict[str, dict[str, RemoteScorer]], name: str, standing: Standing | None, code: ConfiguredScorer | None
) -> str | None:
    """Where Databricks has the scorer otherwise than its `standing` says, in a line; None where nowhere.

    `there` has the scorers of each experiment by its name; `code` is what is configured.
    """
    found = [
        f"{experiment}: {reason}"
        for experiment, scorers in there.items()
        if (reason := _difference(scorers.get(name), name, standing, code))
    ]
    return "; ".join(found) or None


def _difference(
    there: RemoteScorer | None, name: str, standing: Standing | None, code: ConfiguredScorer | None
) -> str | None:
    if standing is None or standing.state is ScorerState.UNREGISTERED:
        return f"registered there, at rate {there.sample_rate:g}" if there else None
    if there is None:
        return "not registered there"
    wanted = standing.sample_rate if standing.state is ScorerState.ACTIVE else 0.0
    parts = []
    if there.sample_rate != wanted:
        parts.append(f"rate {there.sample_rate:g} there, {wanted:g} here")
    if wanted and there.filter != standing.filter:
        parts.append(f"filter {there.filter or 'none'} there, {standing.filter or 'none'} here")
    if code and code.digest == standing.digest and there.definition != _definition_of(name, code):
        parts.append("other code there")
    return ", ".join(parts) or None


def _definition_of(name: str, code: ConfiguredScorer) -> dict[str, Any]:
    return _definition({**code.scorer.model_dump(), "name": name})


def _definition(serialized: dict[str, Any]) -> dict[str, Any]:
    """What a serialized scorer is, without the version of MLflow that wrote it and what is in no order."""
    fields = {
        name: value for name, value in serialized.items() if name not in ("mlflow_version", "serialization_version")
    }
    if data := fields.get("builtin_scorer_pydantic_data"):
        fields["builtin_scorer_pydantic_data"] = {k: v for k, v in data.items() if k != "required_columns"}
    return json.loads(json.dumps(fields))


def run_every(experiment_id: str, minutes: int) -> None:
    """Have Databricks run the experiment's scorers that often, from 1 to 60 minutes.

    Raises:
        MonitoringError: the workspace refuses, as where no scorer is registered, or databricks-agents is missing.
    """
    with at_databricks():
        from databricks.agents.scorers import set_monitoring_configuration

        patiently(lambda: set_monitoring_configuration(experiment_id, minutes))
