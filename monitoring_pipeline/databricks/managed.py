"""Managed scorers, which Databricks runs, and their lifecycle there.

Our scorer log is the source of truth. `bring` makes Databricks match it, and `drift` reports differences.
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

from monitoring_pipeline.databricks.agents import DATABRICKS, at_databricks, patiently, send
from monitoring_pipeline.databricks.workspace import connect
from monitoring_pipeline.errors import SettingsError
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.scoring.states import LifecycleError, ScorerState, Standing
from monitoring_pipeline.settings import without_password

MAX_SCORERS = 20  # per experiment
# Names that MLflow defines for the source of a function that it runs.
PREDEFINED_NAMES = {
    *("mlflow", "Assessment", "AssessmentError", "AssessmentSource", "AssessmentSourceType"),
    *("CategoricalRating", "Feedback", "Trace"),
    *dir(builtins),
}


def is_managed(scorer: ConfiguredScorer) -> bool:
    """Return whether Databricks runs the scorer."""
    return scorer.settings is not None and scorer.settings.managed == DATABRICKS


def check_managed(tracking: TrackingResource, scorers: list[ConfiguredScorer]) -> None:
    """Check that Databricks can run the managed `scorers` in the monitored experiments, without a request to it.

    Raises:
        SettingsError: with one line per problem.
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
        problems.append("[mlflow] experiments is empty: managed scorers need the experiments that Databricks scores")
    if len(managed) > MAX_SCORERS:
        problems.append(f"{len(managed)} scorers are managed; Databricks runs at most {MAX_SCORERS} per experiment")
    if problems:
        raise SettingsError(problems)


def _why_not(scorer: ConfiguredScorer) -> str | None:
    """Why Databricks cannot run the scorer, and the fix; None if it can."""
    if scorer.session_idle is not None:
        return "it scores sessions, whose boundaries this pipeline defines; remove managed"
    if scorer.scorer.kind in (ScorerKind.CLASS, ScorerKind.THIRD_PARTY):
        return f"it is a {type(scorer.scorer).__name__}; write it as a function with @scorer, or remove managed"
    if scorer.model and not scorer.model.startswith(DATABRICKS):
        return f"its model is {scorer.model}, but must be a Databricks model; set model = 'databricks', the default"
    function = getattr(scorer.scorer, "_original_func", None)
    if function is None:
        return None
    if isinstance(function, functools.partial):
        return "MLflow stores a function's source but not its params; write their values into the function"
    source = textwrap.dedent(getsource(function))
    first = ast.parse(source).body[0].body[0]  # type: ignore[attr-defined]
    if source.splitlines()[first.lineno - 1][: first.col_offset].strip():
        return "MLflow loses a body on the same line as its def; write it on separate lines"
    outside = sorted({*_global_names(function.__code__)} - PREDEFINED_NAMES) or function.__code__.co_freevars
    if outside:
        return f"it uses {', '.join(outside)} from outside its function; import or define that inside it"
    return None


def _global_names(code: CodeType) -> Iterator[str]:
    """The module-level names that a function and its nested functions use."""
    yield from (step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL")
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)


@dataclass(frozen=True)
class RemoteScorer:
    """A scorer of an experiment at Databricks; it runs if its rate is above 0."""

    sample_rate: float
    filter: str | None
    version: int | None
    definition: dict[str, Any]


def remote_scorers(experiment_id: str) -> dict[str, RemoteScorer]:
    """Return the scorers of the experiment at Databricks, by name.

    Does not run their code: the clients' functions would rebuild scorers from their source.

    Raises:
        MonitoringError: the request failed.
    """
    client = connect()
    found: dict[str, RemoteScorer] = {}
    query: dict[str, str] = {}
    while True:
        page = send(client, "GET", f"scheduled-scorers/{experiment_id}", query=query)
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
    """Bring the scorer to `standing` in every monitored experiment; returns its version in the first one.

    The version is None if Databricks has none. `code` is the scorer to register; None is allowed only for a deletion.

    Raises:
        LifecycleError: an experiment has the maximum number of scorers at Databricks.
        MonitoringError: a request failed, or databricks-agents is not installed.
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
                    f"cannot register scorer {name!r}: experiment {experiment!r} has {len(there)} scorers, but "
                    f"Databricks runs at most {MAX_SCORERS}; delete one of {', '.join(sorted(there))}"
                )
            versions.append(_bring_to(name, code, standing, experiment_id, there.get(name)))
    return versions[0] if versions else None


def _bring_to(
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
    """Return the differences between the scorer at Databricks and its `standing`, on one line; None if there are none.

    `there` has the scorers of each experiment by its name; `code` is the configured scorer.
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
    """The comparable part of a serialized scorer: without MLflow's version and fields in random order."""
    fields = {
        name: value for name, value in serialized.items() if name not in ("mlflow_version", "serialization_version")
    }
    if data := fields.get("builtin_scorer_pydantic_data"):
        fields["builtin_scorer_pydantic_data"] = {k: v for k, v in data.items() if k != "required_columns"}
    return json.loads(json.dumps(fields))


def run_every(experiment_id: str, minutes: int) -> None:
    """Set the interval at which Databricks runs the experiment's scorers, 1 to 60 minutes.

    Raises:
        MonitoringError: the request failed, e.g. because no scorer is registered, or databricks-agents is missing.
    """
    with at_databricks():
        from databricks.agents.scorers import set_monitoring_configuration

        patiently(lambda: set_monitoring_configuration(experiment_id, minutes))
