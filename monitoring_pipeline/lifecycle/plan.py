"""Plans and applies the changes that make the experiment's scorers match the settings."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from monitoring_pipeline.lifecycle.scorer_handles import ScorerHandle, handles
from monitoring_pipeline.scoring.states import ScorerState
from monitoring_pipeline.settings import Settings

FIELDS = ("state", "sample_rate", "filter", "digest", "databricks")


class Action(StrEnum):
    CREATE = "create"
    CHANGE = "change"
    DELETE = "delete"


@dataclass(frozen=True)
class PlannedChange:
    """A change of one scorer from its state in the experiment (`handle`) to the settings (the other fields)."""

    handle: ScorerHandle
    state: ScorerState
    sample_rate: float
    filter: str | None

    @property
    def action(self) -> Action:
        if self.state is ScorerState.UNREGISTERED:
            return Action.DELETE
        return Action.CREATE if self.handle.state is ScorerState.UNREGISTERED else Action.CHANGE

    @property
    def fields(self) -> dict[str, tuple[Any, Any]]:
        """The old and new value of each differing state, sample_rate, filter and digest; None while unregistered.

        `databricks` is the difference between the scorer at Databricks, which runs it, and the experiment.
        """
        handle = self.handle
        old = (handle.state, handle.sample_rate, handle.filter, handle.registered_digest, handle.drift)
        new = (self.state, self.sample_rate, self.filter, handle.digest, handle.drift and "as configured")
        if self.action is Action.CREATE:
            old = (None,) * len(FIELDS)
        if self.action is Action.DELETE:
            new = (None,) * len(FIELDS)
        return {name: (was, target) for name, was, target in zip(FIELDS, old, new, strict=True) if was != target}


def plan(settings: Settings) -> list[PlannedChange]:
    """The changes for `apply`: scorers to create or change, in the order of the settings, then scorers to delete.

    A scorer that matches the settings is left out; a scorer that is only in the experiment is deleted.

    Raises:
        SettingsError: a scorer cannot be loaded.
        TrackingError: the store or the experiment cannot be used.
    """
    states = {entry.name: ScorerState(entry.state) for entry in settings.scorers}
    targets = [_target(handle, states.get(handle.name, ScorerState.UNREGISTERED)) for handle in handles(settings)]
    return [change for change in targets if change.fields]


def apply(changes: list[PlannedChange]) -> list[ScorerHandle]:
    """Apply the planned changes, one per scorer; returns the new handles.

    After an error, changes already applied stay, and the next plan contains the rest.

    Raises:
        StaleHandleError: a scorer was changed after the plan was created.
        LifecycleError: a filter is too long to be stored.
        TrackingError: the store or the experiment cannot be used.
    """
    return [change.handle.bring_to(change.state, change.sample_rate, change.filter) for change in changes]


def _target(handle: ScorerHandle, state: ScorerState) -> PlannedChange:
    source = handle.configured or handle
    return PlannedChange(handle, state, source.sample_rate, source.filter or None)
