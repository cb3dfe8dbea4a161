"""The lifecycle of a scorer: unregistered -> registered -> active <-> stopped, kept in the log of the experiment.

Handles are immutable: every change returns a new one, and a handle whose scorer has changed since is stale.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from datetime import datetime

from monitoring_pipeline.databricks import managed
from monitoring_pipeline.databricks.agents import DATABRICKS
from monitoring_pipeline.errors import REASON_CHARACTERS, MonitoringError, one_line
from monitoring_pipeline.resources.tracking import global_tracking_uri
from monitoring_pipeline.scoring.registry import ConfiguredScorer, load_scorers
from monitoring_pipeline.scoring.states import (
    Change,
    LifecycleError,
    ScorerLog,
    ScorerState,
    ScorerStates,
    StaleHandleError,
    Standing,
)
from monitoring_pipeline.settings import Settings, load_settings, without_password
from monitoring_pipeline.traces.filters import parse_filter

STARTABLE = (ScorerState.REGISTERED, ScorerState.STOPPED)
REGISTERED = (*STARTABLE, ScorerState.ACTIVE)
CALLS = {
    ScorerState.UNREGISTERED: "register() (`monitoring-pipeline scorers apply` registers all configured scorers)",
    ScorerState.REGISTERED: "start(), update() or delete()",
    ScorerState.ACTIVE: "update(), stop() or delete()",
    ScorerState.STOPPED: "start(), update() or delete()",
}


class UnknownScorerError(MonitoringError):
    """No scorer has that name, neither in the settings nor in the experiment."""


@dataclass(frozen=True)
class ScorerHandle:
    """A scorer's state when the handle was created, and the methods that change it.

    `digest` is the digest of the current code, None if the scorer is no longer configured; `registered_digest` is the
    digest of the code that was registered as `version`. `mlflow_version` is its version in MLflow's own registry, None
    if MLflow refused it; in that case `note`, set only on the handle returned by registering, is the reason. While
    unregistered, rate and filter are those of the settings, and versions are None. `revision` counts the changes,
    `changed_at` (UTC) is the time of the last one.

    Databricks runs a `managed` scorer: each change goes to Databricks first, in every monitored experiment, and
    `mlflow_version` is the version in the first of them. `drift` describes how Databricks differed when the handle was
    looked up; the next change corrects it.

    Each change returns a handle of the new state, and raises:
        LifecycleError: the change is not possible in this state, or the rate or filter is invalid.
        StaleHandleError: another handle or process has changed the scorer since.
        TrackingError: the store or the experiment cannot be used.
        MonitoringError: the scorer is managed, and Databricks refuses the change or its client is not installed.
    """

    name: str
    state: ScorerState
    sample_rate: float
    filter: str | None
    version: int | None
    digest: str | None
    registered_digest: str | None
    mlflow_version: int | None
    revision: int
    changed_at: datetime | None
    note: str | None = None
    managed: bool = False
    drift: str | None = None
    configured: ConfiguredScorer | None = field(default=None, repr=False, compare=False)
    _log: ScorerLog = field(kw_only=True, repr=False, compare=False)
    _last: Change | None = field(kw_only=True, repr=False, compare=False)

    def register(self) -> ScorerHandle:
        """Register the current code here and, if MLflow accepts it, in MLflow (where it is never started).

        If a registered scorer's digest has changed, the version rises by one, and state, rate and filter stay; if the
        digest is unchanged, nothing happens.
        """
        states, code = self._fresh(), self._code("register")
        if self.state is ScorerState.UNREGISTERED:
            return self._register(states, "register", ScorerState.REGISTERED, code.sample_rate, code.filter)
        if code.digest == self.registered_digest:
            return self
        return self._register(states, "register", self.state, self.sample_rate, self.filter)

    def start(self, sample_rate: float | None = None, filter: str | None = None) -> ScorerHandle:
        """Make the scorer active; rate and filter stay unchanged if not given, `filter=""` removes the filter."""
        states, last = self._fresh(), self._last_in("start", STARTABLE)
        self._code("start")
        standing = replace(
            last,
            state=ScorerState.ACTIVE,
            sample_rate=self._rate(last.sample_rate if sample_rate is None else sample_rate),
            filter=self._filter(last.filter if filter is None else filter),
        )
        return self._append(states, "start", standing)

    def update(self, sample_rate: float | None = None, filter: str | None = None) -> ScorerHandle:
        """Change rate, filter or both, but not the state; `filter=""` removes the filter."""
        if sample_rate is None and filter is None:
            raise LifecycleError(f"nothing to update for scorer {self.name!r}: pass a sample rate, a filter or both")
        states, last = self._fresh(), self._last_in("update", REGISTERED)
        standing = replace(
            last,
            sample_rate=self._rate(last.sample_rate if sample_rate is None else sample_rate),
            filter=self._filter(last.filter if filter is None else filter),
        )
        return self._append(states, "update", standing)

    def stop(self) -> ScorerHandle:
        """Stop scoring new traces automatically; backfills still work. Rate, filter and results stay."""
        states, last = self._fresh(), self._last_in("stop", (ScorerState.ACTIVE,))
        return self._append(states, "stop", replace(last, state=ScorerState.STOPPED))

    def delete(self) -> ScorerHandle:
        """Unregister the scorer. Its history, its results and its versions in MLflow stay."""
        states, last = self._fresh(), self._last_in("delete", REGISTERED)
        return self._append(states, "delete", replace(last, state=ScorerState.UNREGISTERED))

    def bring_to(self, state: ScorerState, sample_rate: float, filter: str | None) -> ScorerHandle:
        """Change from any state to `state` with the current code in one step, for `plan.apply`."""
        if state is ScorerState.UNREGISTERED:
            return self.delete()
        return self._register(self._fresh(), "apply", state, self._rate(sample_rate), self._filter(filter))

    def _fresh(self) -> ScorerStates:
        """Read the experiment's states; raises StaleHandleError if this handle's state is no longer current."""
        states = self._log.read()
        current = states.current(self.name)
        if current != self._last:
            raise StaleHandleError(self.name, current)
        return states

    def _last_in(self, action: str, allowed: tuple[ScorerState, ...]) -> Standing:
        if self._last is None or self.state not in allowed:
            raise LifecycleError(f"cannot {action} scorer {self.name!r}: it is {self.state}; call {CALLS[self.state]}")
        return self._last.standing

    def _code(self, action: str) -> ConfiguredScorer:
        if self.configured is None:
            raise LifecycleError(f"cannot {action} scorer {self.name!r}: it is not configured; add it to [[scorers]]")
        return self.configured

    def _rate(self, sample_rate: float) -> float:
        if not 0 <= sample_rate <= 1:  # also true for nan
            raise LifecycleError(f"sample rate {sample_rate} of scorer {self.name!r}: must be from 0 to 1")
        return float(sample_rate)

    def _filter(self, filter: str | None) -> str | None:
        if not filter:
            return None
        try:
            parse_filter(filter)
        except ValueError as error:
            raise LifecycleError(f"scorer {self.name!r}: {error}") from error
        return filter

    def _register(
        self, states: ScorerStates, action: str, state: ScorerState, sample_rate: float, filter: str | None
    ) -> ScorerHandle:
        code = self._code(action)
        last = self._last.standing if self._last else None
        is_new = last is None or last.digest != code.digest
        version = (last.version if last else 0) + is_new
        mlflow_version, note = None if is_new or last is None else last.mlflow_version, None
        if mlflow_version is None and not self.managed:  # MLflow has not seen this code, or refused it so far
            mlflow_version, note = _register_in_mlflow(code, self._log.tracking.tracking_uri, states.experiment_id)
        standing = Standing(state, sample_rate, filter or None, version, code.digest, mlflow_version)
        return self._append(states, action, standing, note)

    def _append(self, states: ScorerStates, action: str, standing: Standing, note: str | None = None) -> ScorerHandle:
        if self.managed:
            if standing.state is not ScorerState.UNREGISTERED:
                self._code(action)
            version = managed.bring(self._log.tracking, self.name, self.configured, standing)
            standing = replace(standing, mlflow_version=version)
        change = self._log.append(states, self.name, action, standing)
        return replace(_handle(self._log, self.name, self.configured, change), note=note, managed=self.managed)


def handle(name: str, settings: Settings | None = None) -> ScorerHandle:
    """The handle of the scorer with that name, configured or recorded in the experiment.

    Raises:
        UnknownScorerError: no scorer has that name; the message lists the existing names.
        SettingsError: the scorer is configured but cannot be loaded.
        TrackingError: the store or the experiment cannot be used.
    """
    settings = settings or load_settings()
    log = ScorerLog.of(settings)
    states = log.read()
    configured = load_scorers([entry for entry in settings.scorers if entry.name == name])
    if not configured and name not in states.changes:
        raise _unknown(name, settings, states)
    found = _handle(log, name, configured[0] if configured else None, states.current(name))
    return _with_managed(log, [found])[0]


def handles(settings: Settings | None = None) -> list[ScorerHandle]:
    """Handles of all scorers: configured ones in the order of the settings, then ones only in the experiment, by name.

    Raises:
        SettingsError: a configured scorer cannot be loaded.
        TrackingError: the store or the experiment cannot be used.
    """
    settings = settings or load_settings()
    log = ScorerLog.of(settings)
    states = log.read()
    configured = {scorer.name: scorer for scorer in load_scorers(settings.scorers)}
    others = [_handle(log, name, None, states.current(name)) for name in sorted(states.changes.keys() - configured)]
    found = [
        *(_handle(log, name, scorer, states.current(name)) for name, scorer in configured.items()),
        *(other for other in others if other.state is not ScorerState.UNREGISTERED),
    ]
    return _with_managed(log, found)


def history(name: str, settings: Settings | None = None) -> list[Change]:
    """All changes of a scorer in order of revision, including changes before a deletion and changes not applied.

    Raises:
        UnknownScorerError: no scorer has that name; the message lists the existing names.
        TrackingError: the store or the experiment cannot be used.
    """
    settings = settings or load_settings()
    states = ScorerLog.of(settings).read()
    if name not in states.changes and name not in [entry.name for entry in settings.scorers]:
        raise _unknown(name, settings, states)
    return states.changes.get(name, [])


def _handle(log: ScorerLog, name: str, configured: ConfiguredScorer | None, last: Change | None) -> ScorerHandle:
    standing = last.standing if last else None
    registered = standing if standing and standing.state is not ScorerState.UNREGISTERED else None
    shown = registered or configured or standing
    assert shown is not None  # a name is known from the settings or from the log
    return ScorerHandle(
        name=name,
        state=registered.state if registered else ScorerState.UNREGISTERED,
        sample_rate=shown.sample_rate,
        filter=shown.filter or None,
        version=registered.version if registered else None,
        digest=configured.digest if configured else None,
        registered_digest=registered.digest if registered else None,
        mlflow_version=registered.mlflow_version if registered else None,
        revision=last.revision if last else 0,
        changed_at=last.changed_at if last else None,
        configured=configured,
        _log=log,
        _last=last,
    )


def _with_managed(log: ScorerLog, found: list[ScorerHandle]) -> list[ScorerHandle]:
    """The handles, with `managed` and `drift` of scorers that Databricks runs; other scorers need no request.

    A scorer that is no longer configured counts as managed while Databricks runs it.
    """
    tracking = log.tracking
    others = [handle for handle in found if handle.configured is None]
    may_run = others if tracking.tracking_uri == DATABRICKS and tracking.experiments else []
    ours = [handle for handle in found if handle.configured and managed.is_managed(handle.configured)]
    if not (may_run or ours):
        return found
    managed.check_managed(tracking, [handle.configured for handle in ours if handle.configured])
    there = {name: managed.remote_scorers(experiment_id) for experiment_id, name in tracking.experiment_names().items()}
    running = {name for scorers in there.values() for name, scorer in scorers.items() if scorer.sample_rate > 0}
    theirs = {handle.name for handle in ours} | {handle.name for handle in may_run if handle.name in running}
    return [
        replace(
            handle,
            managed=True,
            drift=managed.drift(there, handle.name, handle._last and handle._last.standing, handle.configured),
        )
        if handle.name in theirs
        else handle
        for handle in found
    ]


def _unknown(name: str, settings: Settings, states: ScorerStates) -> UnknownScorerError:
    known = dict.fromkeys([*(entry.name for entry in settings.scorers), *sorted(states.changes)])
    return UnknownScorerError(f"no scorer {name!r}; existing scorers: {', '.join(known) or 'none'}")


def _register_in_mlflow(code: ConfiguredScorer, tracking_uri: str, experiment_id: str) -> tuple[int | None, str | None]:
    """Register the scorer in MLflow; returns MLflow's version number, or why MLflow refused it."""
    if isinstance(getattr(code.scorer, "_original_func", None), functools.partial):
        return None, "MLflow stores only a function's source, not the params that it is called with"
    try:
        with global_tracking_uri(tracking_uri):
            registered = code.scorer.register(name=code.name, experiment_id=experiment_id)
    except Exception as error:  # noqa: BLE001 - the scorer still runs here; if the store is down, the log write fails
        reason = one_line(str(error).split("\n\n")[0])[:REASON_CHARACTERS]
        return None, without_password(f"{type(error).__name__}: {reason}")
    return registered._scorer_version, None  # no public attribute holds it
