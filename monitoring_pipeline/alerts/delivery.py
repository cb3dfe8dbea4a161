"""Sends pending messages outside of quiet hours, until each is sent or given up.

Each attempt is recorded before it is made, and its outcome afterwards. A killed process thus loses no message, and
repeats at most those it was sending; the count of attempts limits repetitions.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from monitoring_pipeline.alerts.episodes import GIVEN_UP, PENDING, SENT, Delivery, Episode, save
from monitoring_pipeline.alerts.messages import message_of
from monitoring_pipeline.alerts.notifiers import NotifierError, send
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.settings import NotifierSettings, NotifySettings
from monitoring_pipeline.settings.alerts import LOG

MOST_ATTEMPTS = 24  # about a day
LONGEST_PAUSE = timedelta(hours=1)


@dataclass(frozen=True)
class Delivered:
    """The number of messages sent, and the first error of each notifier that failed."""

    sent: int
    failures: dict[str, str]


def deliver(
    lake: LakeResource,
    episodes: Sequence[Episode],
    notifiers: Sequence[NotifierSettings],
    notify: NotifySettings,
    now: datetime,
    log: logging.Logger,
) -> tuple[list[Episode], Delivered]:
    """Send the messages of the episodes that are due; returns the updated episodes, as written, and the outcome.

    A notifier that accepts no messages at all is tried only once. Errors of notifiers are not raised.
    """
    by_name = {LOG: NotifierSettings(name=LOG, kind="log"), **{notifier.name: notifier for notifier in notifiers}}
    tried = [_tried(episode, notify, now) for episode in episodes if _has_due(episode, notify, now)]
    written = save(lake, tried)
    failures: dict[str, str] = {}
    dead: dict[str, str] = {}
    sent = 0
    outcomes = []
    for episode in written:
        deliveries = []
        for delivery in episode.deliveries:
            if delivery.state == PENDING and delivery.tried_at == now:
                delivery = _sent(episode, delivery, by_name.get(delivery.notifier), dead, log, now)
                sent += delivery.state == SENT
                if delivery.error:
                    failures.setdefault(delivery.notifier, delivery.error)
            deliveries.append(delivery)
        outcomes.append(_updated(episode, deliveries))
    return save(lake, outcomes), Delivered(sent, failures)


def _sent(
    episode: Episode,
    delivery: Delivery,
    notifier: NotifierSettings | None,
    dead: dict[str, str],
    log: logging.Logger,
    now: datetime,
) -> Delivery:
    """The delivery after one attempt; skips notifiers in `dead`, and adds those that accept no messages."""
    if notifier is None:
        return replace(delivery, state=GIVEN_UP, error="the notifier is no longer configured")
    try:
        if notifier.name in dead:
            raise NotifierError(dead[notifier.name])
        send(notifier, message_of(episode, delivery.event), log)
    except NotifierError as error:
        if error.dead:
            dead[notifier.name] = str(error)
        state = GIVEN_UP if delivery.attempts >= MOST_ATTEMPTS else PENDING
        log.warning("notifier %s did not send a message, which is %s: %s", notifier.name, state, error)
        return replace(delivery, state=state, error=str(error))
    return replace(delivery, state=SENT, sent_at=now, error=None)


def _has_due(episode: Episode, notify: NotifySettings, now: datetime) -> bool:
    return any(_is_due(episode, delivery, notify, now) for delivery in episode.deliveries)


def _is_due(episode: Episode, delivery: Delivery, notify: NotifySettings, now: datetime) -> bool:
    if delivery.state != PENDING or (notify.is_quiet(now) and episode.severity != "critical"):
        return False
    pause = min(LONGEST_PAUSE, notify.interval * 2 ** max(0, delivery.attempts - 1))
    # Half an interval less, because checks are never exactly one interval apart.
    return delivery.tried_at is None or now - delivery.tried_at >= pause - notify.interval / 2


def _tried(episode: Episode, notify: NotifySettings, now: datetime) -> Episode:
    deliveries = (
        replace(delivery, attempts=delivery.attempts + 1, tried_at=now)
        if _is_due(episode, delivery, notify, now)
        else delivery
        for delivery in episode.deliveries
    )
    return replace(episode, deliveries=tuple(deliveries))


def _updated(episode: Episode, deliveries: Sequence[Delivery]) -> Episode:
    times = [delivery.sent_at for delivery in deliveries if delivery.sent_at]
    return replace(episode, deliveries=tuple(deliveries), last_notified_at=max(times, default=None))
