"""The states of scorers: a log in the tags of an MLflow experiment that is only ever added to.

Each change is one tag, `monitoring.scorer.<name>.<revision>.<8 hexadecimal digits>`, its value a JSON object. The entry
of the highest revision holds. Should two processes write one revision at once, the earlier `changed_at` (then the
smaller digits) counts for every reader, and the other stays in the log as not applied. A writer reads back, so it
learns at once that it lost; where its rival's entry arrives only after that, its next change is refused as stale.
"""

from __future__ import annotations

import json
import re
import uuid
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from monitoring_pipeline.errors import MonitoringError, TrackingError
from monitoring_pipeline.resources.tracking import TrackingResource
from monitoring_pipeline.scoring.registry import ConfiguredScorer
from monitoring_pipeline.settings import Settings, without_password
from monitoring_pipeline.windows import parse_utc

if TYPE_CHECKING:
    from mlflow.entities import Experiment

TAG = re.compile(r"monitoring\.scorer\.([A-Za-z0-9_]+)\.([0-9]{6,})\.([0-9a-f]{8})")
TAG_CHARACTERS = 5000  # what every MLflow server takes for the value of an experiment's tag
DEFAULT_EXPERIMENT_ID = "0"


class ScorerState(StrEnum):
    """Where a scorer stands; only an active one runs by itself."""

    UNREGISTERED = "unregistered"
    REGISTERED = "registered"
    ACTIVE = "active"
    STOPPED = "stopped"


class LifecycleError(MonitoringError):
    """A change to a scorer is not possible in its state, or with that rate or filter."""


class StaleHandleError(MonitoringError):
    """The scorer was changed by another since the handle was made."""

    def __init__(self, name: str, current: Change | None):
        by = (
            f"by {current.action!r}, revision {current.revision} at {current.changed_at:%Y-%m-%d %H:%M:%S} UTC"
            if current
            else "its entries in the experiment's tags were removed"
        )
        super().__init__(
            f"scorer {name!r} was changed since this handle was made, {by}; get a new one by lifecycle.handle({name!r})"
        )


@dataclass(frozen=True)
class Standing:
    """What the experiment says of a scorer.

    `version` counts the digests that were registered, also across a deletion. `mlflow_version` is MLflow's own number,
    None where MLflow did not take the scorer.
    """

    state: ScorerState
    sample_rate: float
    filter: str | None
    version: int
    digest: str
    mlflow_version: int | None


@dataclass(frozen=True)
class Change:
    """An entry of the log: by `action`, `scorer` became `standing` at `changed_at` (UTC).

    Not `applied` is an entry whose revision another one had taken.
    """

    scorer: str
    revision: int
    action: str
    standing: Standing
    changed_at: datetime
    id: str
    applied: bool = True

    @property
    def key(self) -> str:
        """The tag's key."""
        return f"monitoring.scorer.{self.scorer}.{self.revision:06d}.{self.id}"

    @property
    def value(self) -> str:
        """The tag's value.

        Raises:
            LifecycleError: the filter is too long for a tag.
        """
        text = json.dumps({"action": self.action, "changed_at": self.changed_at.isoformat(), **asdict(self.standing)})
        if len(text) > TAG_CHARACTERS:
            raise LifecycleError(
                f"the filter of scorer {self.scorer!r} is too long: its {len(self.standing.filter or ''):,} characters "
                f"make an experiment tag of {len(text):,}, and {TAG_CHARACTERS:,} fit; shorten it"
            )
        return text

    @classmethod
    def parse(cls, key: str, value: str) -> Change | None:
        """The entry that a tag holds; None for a tag that is not of the log.

        Raises:
            TrackingError: the tag was not written by this package.
        """
        match = TAG.fullmatch(key)
        if match is None:
            return None
        try:
            fields = json.loads(value)
            standing = Standing(
                state=ScorerState(fields["state"]),
                sample_rate=float(fields["sample_rate"]),
                filter=fields["filter"],
                version=int(fields["version"]),
                digest=str(fields["digest"]),
                mlflow_version=fields["mlflow_version"],
            )
            changed_at = parse_utc(fields["changed_at"])
            return cls(match[1], int(match[2]), str(fields["action"]), standing, changed_at, match[3])
        except (ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise TrackingError(
                f"the experiment's tag {key} holds no change of a scorer ({reason}); delete it"
            ) from error


@dataclass(frozen=True)
class ScorerStates:
    """The log as one read of the experiment found it: the changes of each scorer, in order of revision."""

    experiment_id: str
    changes: dict[str, list[Change]]

    def current(self, scorer: str) -> Change | None:
        """The change that holds; None for a scorer that was never registered."""
        return next((change for change in reversed(self.changes.get(scorer, [])) if change.applied), None)


@dataclass(frozen=True)
class ScorerLog:
    """The log in an experiment: the named one, else the first of the monitored ones, else MLflow's default."""

    tracking: TrackingResource
    experiment: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> ScorerLog:
        tracking = TrackingResource(tracking_uri=settings.mlflow.tracking_uri, experiments=settings.mlflow.experiments)
        return cls(tracking, settings.scoring.experiment)

    def read(self) -> ScorerStates:
        """All states, by one request. Where no experiment is named and MLflow's default is not there, none is kept.

        Raises:
            TrackingError: the store cannot be used, the experiment is missing or deleted, or an entry is malformed.
        """
        experiment = self._experiment()
        if self._name is None and (
            experiment is None or (not _is_active(experiment) and not _keeps_states(experiment))
        ):
            return ScorerStates(DEFAULT_EXPERIMENT_ID, {})
        experiment = self._checked(experiment)
        by_scorer: defaultdict[str, list[Change]] = defaultdict(list)
        for change in (Change.parse(key, value) for key, value in experiment.tags.items()):
            if change is not None:
                by_scorer[change.scorer].append(change)
        return ScorerStates(experiment.experiment_id, {name: _decided(found) for name, found in by_scorer.items()})

    def append(self, states: ScorerStates, scorer: str, action: str, standing: Standing) -> Change:
        """Write the change that follows the current one of `states`; returns it.

        Raises:
            LifecycleError: its filter is too long for a tag; nothing is written.
            StaleHandleError: another change took its revision; the entry stays in the log as not applied.
        """
        last = states.current(scorer)
        revision = last.revision + 1 if last else 1
        change = Change(scorer, revision, action, standing, datetime.now(UTC), uuid.uuid4().hex[:8])
        key, value = change.key, change.value
        self._checked(self._experiment())
        with self.tracking.calls() as client:
            client.set_experiment_tag(states.experiment_id, key, value)
        current = self.read().current(scorer)
        if current != change:
            raise StaleHandleError(scorer, current)
        return change

    @property
    def _name(self) -> str | None:
        return self.experiment or next(iter(self.tracking.experiments), None)

    def _experiment(self) -> Experiment | None:
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

        with self.tracking.calls() as client:
            if self._name:
                return client.get_experiment_by_name(self._name)
            try:
                return client.get_experiment(DEFAULT_EXPERIMENT_ID)
            except MlflowException as error:
                if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                    raise
                return None

    def _checked(self, experiment: Experiment | None) -> Experiment:
        """The experiment, which must be there and not deleted."""
        if experiment is not None and _is_active(experiment):
            return experiment
        asked = f"experiment {self._name!r}" if self._name else "default experiment"
        problem, fix = (
            ("there is none", "create it")
            if experiment is None
            else ("it is deleted", f"restore it (mlflow experiments restore -x {experiment.experiment_id})")
        )
        raise TrackingError(
            f"the scorers' states are kept in the {asked} at {without_password(self.tracking.tracking_uri)}, and "
            f"{problem}; {fix}, or set [scoring] experiment to another"
        )


def _is_active(experiment: Experiment) -> bool:
    return experiment.lifecycle_stage == "active"


def _keeps_states(experiment: Experiment) -> bool:
    return any(Change.parse(key, value) for key, value in experiment.tags.items())


def _decided(changes: list[Change]) -> list[Change]:
    """In order of revision; of several entries of one, all but the earliest are not applied."""
    ordered = sorted(changes, key=lambda change: (change.revision, change.changed_at, change.id))
    return [
        replace(change, applied=index == 0 or ordered[index - 1].revision != change.revision)
        for index, change in enumerate(ordered)
    ]


def effective(scorers: list[ConfiguredScorer], log: ScorerLog) -> list[ConfiguredScorer]:
    """The configured scorers with rate, filter, `active` and `version` as the experiment has them, by one read of it.

    One that was never registered there stays as it is configured. A version is given where it is that of this code.

    Raises:
        TrackingError: the store or the experiment cannot be used.
    """
    states = log.read()
    return [_effective(scorer, states.current(scorer.name)) for scorer in scorers]


def _effective(scorer: ConfiguredScorer, last: Change | None) -> ConfiguredScorer:
    if last is None:
        return scorer
    standing = last.standing
    if standing.state is ScorerState.UNREGISTERED:
        return replace(scorer, active=False)
    return replace(
        scorer,
        sample_rate=standing.sample_rate,
        filter=standing.filter,
        active=standing.state is ScorerState.ACTIVE,
        version=standing.version if standing.digest == scorer.digest else None,
    )
