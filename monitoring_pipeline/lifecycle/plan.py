"""What would bring the scorers in the experiment to what the settings say, to look at and then to do."""

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
    """One scorer to bring from what the experiment has (`handle`) to what the settings say (the rest)."""

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
        """What differs of state, sample_rate, filter and digest, old and new; None where it is not registered.

        Also, under `databricks`, where Databricks has a scorer that it runs otherwise than the experiment says.
        """
        handle = self.handle
        old = (handle.state, handle.sample_rate, handle.filter, handle.registered_digest, handle.drift)
        new = (self.state, self.sample_rate, self.filter, handle.digest, handle.drift and "as it is here")
        if self.action is Action.CREATE:
            old = (None,) * len(FIELDS)
        if self.action is Action.DELETE:
            new = (None,) * len(FIELDS)
        return {name: (was, wished) for name, was, wished in zip(FIELDS, old, new, strict=True) if was != wished}


def plan(settings: Settings) -> list[PlannedChange]:
    """What `apply` has to do: scorers to create or change, in the order of the settings, then those to delete.

    A scorer that is as the settings say is not among them; one in the experiment alone is to be deleted.

    Raises:
        SettingsError: a scorer cannot be loaded.
        TrackingError: the store or the experiment cannot be used.
    """
    states = {entry.name: ScorerState(entry.state) for entry in settings.scorers}
    wished = [_wished(handle, states.get(handle.name, ScorerState.UNREGISTERED)) for handle in handles(settings)]
    return [change for change in wished if change.fields]


def apply(changes: list[PlannedChange]) -> list[ScorerHandle]:
    """Do what is planned, each scorer by one change; returns their new handles.

    What was done before an error stays done, and the next plan has the rest.

    Raises:
        StaleHandleError: the scorer was changed since the plan was made.
        LifecycleError: a filter is too long to be kept.
        TrackingError: the store or the experiment cannot be used.
    """
    return [change.handle.bring_to(change.state, change.sample_rate, change.filter) for change in changes]


def _wished(handle: ScorerHandle, state: ScorerState) -> PlannedChange:
    source = handle.configured or handle
    return PlannedChange(handle, state, source.sample_rate, source.filter or None)
