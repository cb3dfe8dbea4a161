"""The scorers that the settings name, loaded, bound to their parameters and given a digest."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlflow.genai.scorers import Scorer
from mlflow.genai.scorers import scorer as as_scorer
from mlflow.genai.scorers.base import ScorerKind

from monitoring_pipeline.errors import SettingsError
from monitoring_pipeline.settings import ScorerSettings
from monitoring_pipeline.traces.filters import parse_filter


@dataclass(frozen=True)
class ConfiguredScorer:
    """A scorer as it runs in production. Results belong to its `digest`: they are another scorer's once it changes."""

    name: str
    scorer: Scorer
    digest: str
    sample_rate: float
    filter: str | None


def load_scorers(settings: list[ScorerSettings]) -> list[ConfiguredScorer]:
    """The configured scorers, in their order.

    Raises:
        SettingsError: with a line for each scorer that cannot be imported, is none, or does not take its parameters,
            and for each filter that MLflow does not accept.
    """
    loaded, problems = [], []
    for entry in settings:
        try:
            loaded.append(_load(entry))
        except _Problem as problem:
            problems.append(f"scorer {entry.name!r}: {problem}")
    if problems:
        raise SettingsError(problems)
    return loaded


class _Problem(Exception):
    pass


def _load(entry: ScorerSettings) -> ConfiguredScorer:
    scorer = _import(entry.scorer)
    if scorer.is_session_level_scorer:
        raise _Problem(f"{entry.scorer} asks for whole sessions; give one that takes a trace")
    if entry.filter:
        try:
            parse_filter(entry.filter)
        except ValueError as error:
            raise _Problem(str(error)) from error
    bound = _bind(scorer, entry)
    return ConfiguredScorer(
        entry.name, bound, _digest(scorer, entry.scorer, entry.params), entry.sample_rate, entry.filter
    )


def _import(reference: str) -> Scorer:
    module_name, attribute = reference.split(":", 1)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script may call sys.exit as it is imported
        reason = " ".join(str(error).split())
        raise _Problem(f"importing {module_name} failed: {type(error).__name__}: {reason}") from error
    scorer = getattr(module, attribute, None)
    if scorer is None:
        raise _Problem(f"module {module_name!r} has no {attribute!r}")
    if not isinstance(scorer, Scorer):
        raise _Problem(f"{reference} is a {type(scorer).__name__}, not a scorer; decorate it with @scorer")
    return scorer


def _bind(scorer: Scorer, entry: ScorerSettings) -> Scorer:
    if not entry.params:
        return scorer
    function = _function(scorer)
    if function is None:
        raise _Problem(f"{entry.scorer} takes no params; only functions decorated with @scorer do")
    accepted = set(inspect.signature(function).parameters) - {"inputs", "outputs", "expectations", "trace"}
    unknown = sorted(set(entry.params) - accepted)
    if unknown:
        known = ", ".join(sorted(accepted)) or "none"
        raise _Problem(f"{entry.scorer} has no parameter {', '.join(map(repr, unknown))}; it has {known}")
    bound = functools.partial(function, **entry.params)
    return as_scorer(bound, name=scorer.name, description=scorer.description, timeout=scorer.timeout)


def _digest(scorer: Scorer, reference: str, params: dict[str, Any]) -> str:
    """16 hexadecimal digits that change with the scorer's source, parameters, model or prompt."""
    try:
        text = json.dumps({**_identity(scorer), "params": params}, sort_keys=True, default=_plain)
    except (OSError, TypeError) as error:
        raise _Problem(f"{reference} cannot be told from others ({error}); write it in a module") from error
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _identity(scorer: Scorer) -> dict[str, Any]:
    function = _function(scorer)
    if function is not None:
        captured = inspect.getclosurevars(inspect.unwrap(function)).nonlocals
        return {"source": inspect.getsource(function), "captured": captured}
    return {
        "class": f"{type(scorer).__module__}.{type(scorer).__qualname__}",
        "source": inspect.getsource(type(scorer)),
        "fields": {name: getattr(scorer, name) for name in type(scorer).model_fields},
        "instructions": getattr(scorer, "instructions", None),
        "model": getattr(scorer, "model", None),
        # What MLflow keeps in private attributes: a judge's scale and parameters, an ensemble's parts.
        "judge": scorer.model_dump()["instructions_judge_pydantic_data"]
        if scorer.kind == ScorerKind.INSTRUCTIONS
        else None,
        "parts": [_identity(part) for part in getattr(scorer, "_scorers", ())],
        "combined_by": getattr(scorer, "_ensemble_fn", None),
    }


def _plain(value: Any) -> Any:
    """What JSON has no form for, the same in every process: without addresses, a set in an order."""
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if isinstance(value, Scorer):
        return _identity(value)
    if inspect.isfunction(value):
        return inspect.getsource(value)
    if type(value).__repr__ is object.__repr__:
        return {"class": type(value).__qualname__, "fields": vars(value)}
    return repr(value)


def _function(scorer: Scorer) -> Callable[..., Any] | None:
    """The function behind a decorated scorer; MLflow keeps it in a private attribute only."""
    return getattr(scorer, "_original_func", None)
