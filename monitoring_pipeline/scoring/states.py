"""Scorer states, kept as an append-only log in the tags of an MLflow experiment.

Each change is one tag, `monitoring.scorer.<name>.<revision>.<8 hexadecimal digits>`, with a JSON object as its value.
The entry with the highest revision is current. If two processes write the same revision, the entry with the earlier
`changed_at` (then the smaller digits) wins for every reader, and the other stays in the log as not applied. A writer
reads its entry back and so detects at once that it lost; if the winning entry arrives only after that, the writer's
next change is rejected as stale.
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
TAG_CHARACTERS = 5000  # the length of an experiment tag's value that every MLflow server accepts
DEFAULT_EXPERIMENT_ID = "0"


class ScorerState(StrEnum):
    """The state of a scorer; only an active one runs automatically."""

    UNREGISTERED = "unregistered"
    REGISTERED = "registered"
    ACTIVE = "active"
    STOPPED = "stopped"


class LifecycleError(MonitoringError):
    """The scorer's state, or the given rate or filter, does not allow the change."""


class StaleHandleError(MonitoringError):
    """Someone else changed the scorer after the handle was created."""

    def __init__(self, name: str, current: Change | None):
        by = (
            f"by {current.action!r}, revision {current.revision} at {current.changed_at:%Y-%m-%d %H:%M:%S} UTC"
            if current
            else "its entries in the experiment's tags were removed"
        )
        super().__init__(
            f"scorer {name!r} was changed after this handle was created, {by}; "
            f"get a new handle with lifecycle.handle({name!r})"
        )


@dataclass(frozen=True)
class Standing:
    """A scorer's state as recorded in the experiment.

    `version` counts the registered digests, also across a deletion. `mlflow_version` is MLflow's own number, None if
    MLflow did not accept the scorer.
    """

    state: ScorerState
    sample_rate: float
    filter: str | None
    version: int
    digest: str
    mlflow_version: int | None


@dataclass(frozen=True)
class Change:
    """An entry of the log: `action` set the state of `scorer` to `standing` at `changed_at` (UTC).

    An entry is not `applied` if another one had taken its revision.
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
        """The log entry in a tag; None if the tag does not belong to the log.

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
                f"the experiment's tag {key} is not a valid scorer change ({reason}); delete it"
            ) from error


@dataclass(frozen=True)
class ScorerStates:
    """A snapshot of the log: the changes of each scorer, in order of revision."""

    experiment_id: str
    changes: dict[str, list[Change]]

    def current(self, scorer: str) -> Change | None:
        """The latest applied change; None for a scorer that was never registered."""
        return next((change for change in reversed(self.changes.get(scorer, [])) if change.applied), None)


@dataclass(frozen=True)
class ScorerLog:
    """The log in the named experiment, else in the first monitored experiment, else in MLflow's default experiment."""

    tracking: TrackingResource
    experiment: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> ScorerLog:
        tracking = TrackingResource(tracking_uri=settings.mlflow.tracking_uri, experiments=settings.mlflow.experiments)
        return cls(tracking, settings.scoring.experiment)

    def read(self) -> ScorerStates:
        """Read all states in one request; empty if no experiment is named and MLflow's default does not exist.

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
        """Write and return the change that follows the current one of `states`.

        Raises:
            LifecycleError: the filter is too long for a tag; nothing is written.
            StaleHandleError: another change took the revision; the entry stays in the log as not applied.
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
        """`experiment`, if it exists and is not deleted; otherwise raises TrackingError."""
        if experiment is not None and _is_active(experiment):
            return experiment
        name = f"experiment {self._name!r}" if self._name else "the default experiment"
        problem, fix = (
            ("does not exist", "create it")
            if experiment is None
            else ("is deleted", f"restore it (mlflow experiments restore -x {experiment.experiment_id})")
        )
        raise TrackingError(
            f"the scorers' states are kept in {name} at {without_password(self.tracking.tracking_uri)}, which "
            f"{problem}; {fix}, or set [scoring] experiment to another"
        )


def _is_active(experiment: Experiment) -> bool:
    return experiment.lifecycle_stage == "active"


def _keeps_states(experiment: Experiment) -> bool:
    return any(Change.parse(key, value) for key, value in experiment.tags.items())


def _decided(changes: list[Change]) -> list[Change]:
    """The changes in order of revision; of several entries for one revision, only the earliest is applied."""
    ordered = sorted(changes, key=lambda change: (change.revision, change.changed_at, change.id))
    return [
        replace(change, applied=index == 0 or ordered[index - 1].revision != change.revision)
        for index, change in enumerate(ordered)
    ]


def effective(scorers: list[ConfiguredScorer], log: ScorerLog) -> list[ConfiguredScorer]:
    """The configured scorers with rate, filter, `active` and `version` from the experiment, in one read.

    A scorer that was never registered stays as configured. `version` is set only if the registered digest is current.

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
