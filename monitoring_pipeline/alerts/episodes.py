"""Episodes: an alert and its messages, from when its rule first holds in a scope until it has not held for a window.

For an objective, that is the short window. A rule and scope have at most one open episode, so an ongoing problem is
reported once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from monitoring_pipeline.alerts.checks import Evaluation
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.resources.rows import from_dicts
from monitoring_pipeline.settings import AlertSettings
from monitoring_pipeline.tables import ALERTS
from monitoring_pipeline.windows import HOUR, Window, floor_hour

OPEN, RESOLVED = "open", "resolved"  # states of an episode, and events of its messages
PASSED = "passed"  # event of a message that reports both, because the alert was not sent before it was resolved
MEMORY = timedelta(weeks=14)  # longer than any baseline, which leaves out the hours of earlier alerts
PENDING, SENT, GIVEN_UP = "pending", "sent", "given up"


@dataclass(frozen=True)
class Delivery:
    """A message of an episode to one notifier: its event, whether it was sent, and the last error."""

    notifier: str
    event: str
    created_at: datetime
    state: str = PENDING
    attempts: int = 0
    tried_at: datetime | None = None
    sent_at: datetime | None = None
    error: str | None = None


@dataclass(frozen=True)
class Episode:
    """A row of the table `alerts`; `revision` counts its writes."""

    hour: datetime
    rule: str
    scope: str
    metric: str
    kind: str
    severity: str
    state: str
    measured: float | None
    held_against: float | None
    detail: str
    opened_at: datetime
    last_held_at: datetime
    resolved_at: datetime | None = None
    last_notified_at: datetime | None = None
    deliveries: tuple[Delivery, ...] = ()
    revision: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """The rule and the scope, which have at most one open episode."""
        return self.rule, self.scope

    @property
    def identity(self) -> tuple[datetime, str, str]:
        """The primary key of the episode."""
        return self.hour, self.rule, self.scope

    @property
    def has_pending(self) -> bool:
        """Whether a message is still to be sent."""
        return any(delivery.state == PENDING for delivery in self.deliveries)

    @property
    def window(self) -> Window:
        """The whole hours in which the rule held."""
        return Window(floor_hour(self.hour), floor_hour(self.last_held_at) + HOUR)


def load(lake: LakeResource, now: datetime) -> list[Episode]:
    """The episodes that are open or were resolved within `MEMORY` before `now`, the oldest first.

    Reads only files written since then, which have them all: `advance` writes an open episode at least that often.
    """
    written = lake.read_written_since(ALERTS, now - MEMORY, *_COLUMNS).to_pylist()
    rows = [row for row in written if row["state"] == OPEN or row["resolved_at"] >= now - MEMORY]
    episodes = [Episode(**{**row, "deliveries": tuple(Delivery(**sent) for sent in row["deliveries"])}) for row in rows]
    return sorted(episodes, key=lambda episode: (episode.opened_at, episode.key))


def save(lake: LakeResource, episodes: Iterable[Episode]) -> list[Episode]:
    """Write the episodes in one commit, and return them as written."""
    written = [replace(episode, revision=episode.revision + 1) for episode in episodes]
    if written:
        lake.upsert(ALERTS, from_dicts(ALERTS, [_row(episode) for episode in written]))
    return written


def advance(evaluations: Sequence[Evaluation], episodes: Sequence[Episode], now: datetime) -> list[Episode]:
    """The episodes that the evaluations open, keep open or resolve, without unchanged ones.

    An episode is resolved once its rule has not held for the length of its window, or at once if its rule or scope is
    no longer configured. An unknown evaluation changes nothing; if it stays unknown for long, the episode is written
    again.
    """
    still_open = {episode.key: episode for episode in episodes if episode.state == OPEN}
    known = {episode.identity for episode in episodes}
    changed = []
    for evaluation in evaluations:
        episode = still_open.pop((evaluation.rule.name, evaluation.scope), None)
        if episode is None and evaluation.holds:
            opened = _opened(evaluation, now)
            if opened.identity not in known:  # otherwise another check opened and resolved it within this hour
                changed.append(opened)
        elif episode is not None and evaluation.holds:
            changed.append(replace(episode, last_held_at=now))
        elif (
            episode is not None
            and evaluation.holds is False
            and now - episode.last_held_at >= _recovery(evaluation.rule)
        ):
            changed.append(_resolved(episode, now))
        elif episode is not None and now - episode.last_held_at >= MEMORY / 2:
            changed.append(episode)
    return changed + [_resolved(episode, now) for episode in still_open.values()]


def _recovery(rule: AlertSettings) -> timedelta:
    """How long a rule must not hold before its alert is resolved: its shortest window."""
    return (rule.short_window_hours if rule.kind == "objective" else rule.window_hours) * HOUR


def _opened(evaluation: Evaluation, now: datetime) -> Episode:
    rule = evaluation.rule
    return Episode(
        hour=floor_hour(now),
        rule=rule.name,
        scope=evaluation.scope,
        metric=rule.metric,
        kind=rule.kind,
        severity=rule.severity,
        state=OPEN,
        measured=evaluation.measured,
        held_against=evaluation.held_against,
        detail=evaluation.detail,
        opened_at=now,
        last_held_at=now,
        deliveries=tuple(Delivery(name, OPEN, now) for name in dict.fromkeys(rule.notify)),
    )


def _resolved(episode: Episode, now: datetime) -> Episode:
    deliveries = []
    for delivery in episode.deliveries:
        if delivery.state == PENDING:
            deliveries.append(replace(delivery, event=PASSED))
        else:
            deliveries.append(delivery)
            if delivery.state == SENT:
                deliveries.append(Delivery(delivery.notifier, RESOLVED, now))
    return replace(episode, state=RESOLVED, resolved_at=now, deliveries=tuple(deliveries))


_COLUMNS = tuple(Episode.__dataclass_fields__)


def _row(episode: Episode) -> dict[str, Any]:
    return {**asdict(episode), "deliveries": [asdict(delivery) for delivery in episode.deliveries]}
