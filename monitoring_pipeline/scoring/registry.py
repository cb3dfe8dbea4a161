"""Loads the configured scorers, binds their parameters and computes their digests."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from mlflow.genai.scorers import Scorer
from mlflow.genai.scorers import scorer as as_scorer
from mlflow.genai.scorers.base import ScorerKind

from monitoring_pipeline.analysis.quality import Reading
from monitoring_pipeline.errors import SettingsError, one_line
from monitoring_pipeline.scoring.builtins import build, default_rate, model_of, takes_expectations
from monitoring_pipeline.scoring.limits import Budget, Limits, Price, listed_price
from monitoring_pipeline.scoring.metering import is_metered
from monitoring_pipeline.settings import ScorerSettings
from monitoring_pipeline.traces.filters import parse_filter

PACKAGE = __name__.partition(".")[0]
JUDGE_CONCURRENCY = 8
UNFINISHED_AFTER_HOURS = 6


@dataclass(frozen=True)
class ConfiguredScorer:
    """A scorer with its production configuration. Results belong to its `digest`; a new digest starts without any.

    Only judges have `model` and `price`, only session scorers `session_idle`. An `active` scorer runs automatically;
    `version` counts the registered digests. `reads` names the parts of a trace besides its spans on which a result
    depends. `unfinished_after` is the time without news after which a trace that has not ended is scored as it is.
    `settings` is the entry it was loaded from, if any.
    """

    name: str
    scorer: Scorer
    digest: str
    sample_rate: float
    filter: str | None
    model: str | None = None
    price: Price | None = None
    limits: Limits = field(default_factory=Limits)
    budget: Budget = field(default_factory=Budget)
    session_idle: timedelta | None = None
    pass_if: str | None = None
    score_range: tuple[float, float] | None = None
    compare_with: tuple[str, ...] = ()
    active: bool = True
    version: int | None = None
    reads: tuple[str, ...] = ()
    unfinished_after: timedelta = timedelta(hours=UNFINISHED_AFTER_HOURS)
    settings: ScorerSettings | None = None


def load_scorers(
    settings: list[ScorerSettings], unfinished_after_hours: int = UNFINISHED_AFTER_HOURS
) -> list[ConfiguredScorer]:
    """Load the configured scorers, in the order of the settings.

    Raises:
        SettingsError: with a line for each scorer that cannot be imported, is not a scorer or has an invalid setting,
            parameter or filter.
    """
    loaded, problems = [], []
    for entry in settings:
        try:
            loaded.append(_load(entry, unfinished_after_hours))
        except _Problem as problem:
            problems.append(f"scorer {entry.name!r}: {problem}")
    if problems:
        raise SettingsError(problems)
    return loaded


def reading_of(scorers: Iterable[ConfiguredScorer]) -> Reading:
    """How the scores of the scorers are read: the rule and the scale of each scorer that has one."""
    scorers = list(scorers)
    return Reading(
        {scorer.name: scorer.pass_if for scorer in scorers if scorer.pass_if},
        {scorer.name: scorer.score_range for scorer in scorers if scorer.score_range},
    )


def configured(scorer: Scorer) -> ConfiguredScorer:
    """Configure a scorer that is not in the settings, with its own name and the default limits of its kind.

    The digest is empty when the source is unavailable, e.g. for a scorer defined in a REPL.
    """
    model = model_of(scorer)
    try:
        digest = _digest(scorer, scorer.name, {})
    except _Problem:
        digest = ""
    return ConfiguredScorer(
        name=scorer.name,
        scorer=scorer,
        digest=digest,
        sample_rate=1.0,
        filter=None,
        model=model,
        price=listed_price(model) if model else None,
        limits=Limits(JUDGE_CONCURRENCY if model else 1),
        session_idle=timedelta(0) if scorer.is_session_level_scorer else None,
    )


class _Problem(Exception):
    pass


def _load(entry: ScorerSettings, unfinished_after_hours: int) -> ConfiguredScorer:
    if entry.filter:
        try:
            parse_filter(entry.filter)
        except ValueError as error:
            raise _Problem(str(error)) from error
    if entry.scorer:
        scorer = _import(entry.scorer)
        bound = _bind(scorer, entry)
    else:
        try:
            scorer = bound = build(entry)
        except ValueError as error:
            raise _Problem(str(error)) from error
    model = model_of(scorer)
    price = _price(entry, model)
    if entry.max_usd_per_day is not None and price is None:
        raise _Problem(
            f"max_usd_per_day needs the price of {model or 'a model'}; set usd_per_million_input_tokens and "
            "usd_per_million_output_tokens"
            if model
            else "max_usd_per_day is for judges, whose calls cost money; use max_traces_per_hour"
        )
    if entry.requests_per_minute is not None and not (model and is_metered(model)):
        raise _Problem(
            f"requests_per_minute does not apply to {model or 'a scorer that calls no model'}: MLflow does not "
            "send its requests itself; use concurrency or max_traces_per_hour"
        )
    return ConfiguredScorer(
        name=entry.name,
        scorer=bound,
        digest=_digest(scorer, entry.reference, entry.params),
        sample_rate=default_rate(scorer) if entry.sample_rate is None else entry.sample_rate,
        filter=entry.filter,
        model=model,
        price=price,
        limits=Limits(
            entry.concurrency or (JUDGE_CONCURRENCY if model else 1),
            entry.requests_per_minute,
            entry.timeout_seconds,
            entry.max_attempts,
        ),
        budget=Budget(entry.max_usd_per_day, entry.max_traces_per_hour),
        session_idle=timedelta(minutes=entry.session_idle_minutes) if scorer.is_session_level_scorer else None,
        pass_if=entry.pass_if,
        score_range=entry.score_range,
        compare_with=tuple(entry.compare_with or [entry.name]),
        active=entry.state == "active",
        reads=tuple(sorted({*entry.reads, *(["expectations"] if takes_expectations(bound) else [])})),
        unfinished_after=timedelta(hours=unfinished_after_hours),
        settings=entry,
    )


def _price(entry: ScorerSettings, model: str | None) -> Price | None:
    """The price set in the settings, else the one in MLflow's price list; None without either."""
    given = (entry.usd_per_million_input_tokens, entry.usd_per_million_output_tokens)
    if None not in given:
        return Price(*(float(price or 0) / 1e6 for price in given))
    if given != (None, None):
        raise _Problem("usd_per_million_input_tokens and usd_per_million_output_tokens go together; set both")
    return listed_price(model) if model else None


def _import(reference: str) -> Scorer:
    module_name, attribute = reference.split(":", 1)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script may call sys.exit on import
        reason = one_line(error)
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
        raise _Problem(f"{entry.reference} takes no params; only functions decorated with @scorer do")
    accepted = set(inspect.signature(function).parameters) - {"inputs", "outputs", "expectations", "trace", "session"}
    unknown = sorted(set(entry.params) - accepted)
    if unknown:
        known = ", ".join(sorted(accepted)) or "none"
        raise _Problem(f"{entry.reference} has no parameter {', '.join(map(repr, unknown))}; it has {known}")
    bound = functools.partial(function, **entry.params)
    return as_scorer(bound, name=scorer.name, description=scorer.description, timeout=scorer.timeout)


def _digest(scorer: Scorer, reference: str, params: dict[str, Any]) -> str:
    """16 hexadecimal digits that change with the scorer's source, parameters, model or prompt."""
    try:
        text = json.dumps({**_identity(scorer), "params": params}, sort_keys=True, default=_plain)
    except (OSError, TypeError) as error:
        raise _Problem(f"cannot compute a digest for {reference} ({error}); define it in a module") from error
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _identity(scorer: Scorer) -> dict[str, Any]:
    function = _function(scorer)
    if function is not None:
        captured = inspect.getclosurevars(inspect.unwrap(function)).nonlocals
        used = _own_modules(function)
        return {"source": inspect.getsource(function), "captured": captured, **({"uses": used} if used else {})}
    return {
        "class": f"{type(scorer).__module__}.{type(scorer).__qualname__}",
        "source": inspect.getsource(type(scorer)),
        "fields": {name: getattr(scorer, name) for name in type(scorer).model_fields},
        "instructions": instructions(scorer),
        "model": model_of(scorer) or getattr(scorer, "model", None),
        # MLflow keeps these in private attributes: a judge's scale and parameters, an ensemble's parts.
        "judge": scorer.model_dump()["instructions_judge_pydantic_data"]
        if scorer.kind == ScorerKind.INSTRUCTIONS
        else None,
        "parts": [_identity(part) for part in getattr(scorer, "_scorers", ())],
        "combined_by": getattr(scorer, "_ensemble_fn", None),
    }


def _own_modules(function: Callable[..., Any]) -> dict[str, str]:
    """The sources of the modules of this package that the function imports in its body, by name."""
    code = getattr(inspect.unwrap(getattr(function, "func", function)), "__code__", None)
    names = (name for name in (code.co_names if code else ()) if name.startswith(f"{PACKAGE}."))
    return {name: inspect.getsource(importlib.import_module(name)) for name in names}


def instructions(scorer: Scorer) -> str | None:
    """The instructions of a judge; None if the scorer is not a judge."""
    try:
        return getattr(scorer, "instructions", None)
    except NotImplementedError:  # the judge wraps another one, which its fields hold
        return None


def _plain(value: Any) -> Any:
    """A form of `value` that JSON can write and that is equal in every process: no addresses, sets sorted."""
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
    """The function behind a decorated scorer; MLflow keeps it only in a private attribute."""
    return getattr(scorer, "_original_func", None)
