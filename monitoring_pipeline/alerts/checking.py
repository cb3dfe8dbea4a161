"""One check: evaluates all rules, writes the table `alerts` and sends the messages that are due."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from monitoring_pipeline.alerts.checks import Check, Evaluation, scope_text, scopes
from monitoring_pipeline.alerts.delivery import Delivered, deliver
from monitoring_pipeline.alerts.episodes import OPEN, RESOLVED, Episode, advance, load, save
from monitoring_pipeline.alerts.evaluation import evaluate
from monitoring_pipeline.alerts.figures import Figures
from monitoring_pipeline.resources.lake import LakeResource
from monitoring_pipeline.settings import AlertSettings, Settings


@dataclass(frozen=True)
class Checked:
    """The result of a check: evaluations, episodes that are open or were just resolved, and deliveries."""

    evaluations: list[Evaluation]
    episodes: list[Episode]
    delivered: Delivered
    now: datetime

    @property
    def open(self) -> list[Episode]:
        """The episodes that are open."""
        return [episode for episode in self.episodes if episode.state == OPEN]

    @property
    def figures(self) -> dict[str, int]:
        """Counts of evaluations, of unknown ones (`not_told`), of alerts and of messages."""
        return {
            "checked": len(self.evaluations),
            "not_told": sum(evaluation.holds is None for evaluation in self.evaluations),
            "open": len(self.open),
            "opened": sum(episode.opened_at == self.now for episode in self.episodes),
            "resolved": sum(episode.resolved_at == self.now for episode in self.episodes),
            "messages_sent": self.delivered.sent,
            "messages_pending": sum(
                delivery.state == "pending" for episode in self.episodes for delivery in episode.deliveries
            ),
        }


def check_alerts(
    lake: LakeResource,
    settings: Settings,
    digests: Mapping[str, str],
    given_up: Callable[[], int],
    now: datetime,
    log: logging.Logger,
) -> Checked:
    """Evaluate every rule of the settings at `now`, write changed episodes, and send the messages that are due.

    `digests` are the digests of the configured scorers, by name; `given_up` counts the hours that the sensor has given
    up, and is called only if a rule needs it.

    Raises:
        LakeError: the lake cannot be read or written.
    """
    episodes = load(lake, now)
    figures = Figures(lake, digests, now)
    count = functools.cache(given_up)
    evaluations = [
        evaluate(
            Check(
                rule=rule,
                scope=scope,
                figures=figures,
                incidents=[episode.window for episode in episodes if _was(episode, rule, scope_text(scope))],
                given_up=count,
                checks_a_day=timedelta(days=1) / settings.notify.interval,
            )
        )
        for rule in settings.alerts
        for scope in scopes(rule, [*digests])
    ]
    changed = save(lake, advance(evaluations, episodes, now))
    current = _updated([episode for episode in episodes if episode.state == OPEN or episode.has_pending], changed)
    sent, delivered = deliver(lake, current, settings.notifiers, settings.notify, now, log)
    return Checked(evaluations, _updated(current, sent), delivered, now)


def _was(episode: Episode, rule: AlertSettings, scope: str) -> bool:
    return episode.state == RESOLVED and episode.key == (rule.name, scope)


def _updated(episodes: Sequence[Episode], changed: Sequence[Episode]) -> list[Episode]:
    return list({episode.identity: episode for episode in (*episodes, *changed)}.values())
