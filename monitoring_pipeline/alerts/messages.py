"""What an alert's message says, and its form for each kind of notifier.

Names of scopes and the like may hold anything: every form shows them as text on one line and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Any

from monitoring_pipeline.alerts.episodes import OPEN, PASSED, RESOLVED, Episode
from monitoring_pipeline.text import plain

SLACK_HEADER, SLACK_FIELD = 150, 2000  # characters that Slack takes
_MARKS = {"info": ":information_source:", "warning": ":warning:", "critical": ":rotating_light:"}
_WORDS = {OPEN: "alert", RESOLVED: "resolved", PASSED: "resolved before it could be told"}


@dataclass(frozen=True)
class Message:
    """One message: `key` is the same whenever it is sent again, `facts` are lines of name and value."""

    key: str
    event: str
    severity: str
    title: str
    facts: dict[str, str]
    data: dict[str, Any]

    @property
    def text(self) -> str:
        """The whole message as lines."""
        return "\n".join([self.title, *(f"{name}: {value}" for name, value in self.facts.items())])


def message(episode: Episode, event: str) -> Message:
    """The message that tells `event` of the episode."""
    word = _WORDS[event]
    facts = {
        "Severity": episode.severity,
        "Metric": episode.metric,
        "Scope": plain(episode.scope),
        "Why": plain(episode.detail, 600),
        "Raised": _time(episode.opened_at),
        **({"Resolved": _time(episode.resolved_at)} if episode.resolved_at else {}),
    }
    data = {
        "event": event,
        "rule": episode.rule,
        "scope": episode.scope,
        "metric": episode.metric,
        "kind": episode.kind,
        "severity": episode.severity,
        "measured": episode.measured,
        "held_against": episode.held_against,
        "detail": episode.detail,
        "hour": episode.hour.isoformat(),
        "opened_at": episode.opened_at.isoformat(),
        "resolved_at": episode.resolved_at.isoformat() if episode.resolved_at else None,
    }
    identity = json.dumps([episode.hour.isoformat(), episode.rule, episode.scope, event])
    key = hashlib.sha256(identity.encode()).hexdigest()[:32]
    return Message(key, event, episode.severity, plain(f"[{word}] {episode.rule}: {episode.scope}"), facts, data)


def trial(name: str, now: datetime) -> Message:
    """A message that only shows that the notifier works."""
    key = hashlib.sha256(f"{name} {now.isoformat()}".encode()).hexdigest()[:32]
    title = f"[test] {name}: this is how alerts of monitoring_pipeline reach you"
    return Message(key, "test", "info", title, {"Sent": _time(now)}, {"event": "test", "severity": "info"})


def webhook_payload(told: Message) -> dict[str, Any]:
    """The JSON object for a webhook; a receiver that keeps `key` tells a message that comes twice."""
    return {"key": told.key, "title": told.title, "text": told.text, **told.data}


def slack_payload(told: Message) -> dict[str, Any]:
    """The JSON object for one of Slack's incoming webhooks: a header, and a field for each fact.

    `&`, `<` and `>` are escaped, as Slack asks, so that no mention or link comes out of a name.
    """
    mark = ":white_check_mark:" if told.event in (RESOLVED, PASSED) else _MARKS[told.severity]
    fields = [_slack_text(f"{name}: {value}", SLACK_FIELD) for name, value in told.facts.items()]
    return {
        "text": _slack_escaped(told.title, SLACK_FIELD),
        "blocks": [
            {"type": "header", "text": {**_slack_text(f"{mark} {told.title}", SLACK_HEADER), "emoji": True}},
            {"type": "section", "fields": fields},
        ],
    }


def mail(told: Message, sender: str, to: list[str], now: datetime) -> EmailMessage:
    """The message as a mail in plain text; sent again it has the same id."""
    written = EmailMessage()
    written["Subject"] = plain(told.title)
    written["From"], written["To"] = sender, ", ".join(to)
    written["Date"] = format_datetime(now)
    written["Message-ID"] = f"<{told.key}@{Address(addr_spec=sender).domain}>"
    written["Auto-Submitted"] = "auto-generated"
    written.set_content(told.text)
    return written


def _slack_text(text: str, limit: int) -> dict[str, Any]:
    return {"type": "plain_text", "text": _slack_escaped(text, limit)}


def _slack_escaped(text: str, limit: int) -> str:
    # Cut before it is escaped, and so short that what is escaped still fits.
    for length in (limit, limit // 5):
        escaped = plain(text, length).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        if len(escaped) <= limit:
            break
    return escaped


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
