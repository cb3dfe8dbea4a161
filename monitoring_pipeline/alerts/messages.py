"""The messages of alerts, and their format for each kind of notifier.

Names, such as those of scopes, may contain anything: every format shows them as plain text on one line.
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

SLACK_HEADER, SLACK_FIELD = 150, 2000  # characters that Slack accepts
_MARKS = {"info": ":information_source:", "warning": ":warning:", "critical": ":rotating_light:"}
_WORDS = {OPEN: "alert", RESOLVED: "resolved", PASSED: "resolved before it was sent"}


@dataclass(frozen=True)
class Message:
    """A message. `key` stays the same when it is sent again; `facts` are lines of name and value."""

    key: str
    event: str
    severity: str
    title: str
    facts: dict[str, str]
    data: dict[str, Any]

    @property
    def text(self) -> str:
        """The whole message, one line for the title and each fact."""
        return "\n".join([self.title, *(f"{name}: {value}" for name, value in self.facts.items())])


def message_of(episode: Episode, event: str) -> Message:
    """The message about `event` of the episode."""
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
    """A test message, to show that a notifier works."""
    key = hashlib.sha256(f"{name} {now.isoformat()}".encode()).hexdigest()[:32]
    title = f"[test] {name}: alerts of monitoring_pipeline arrive like this"
    return Message(key, "test", "info", title, {"Sent": _time(now)}, {"event": "test", "severity": "info"})


def webhook_payload(message: Message) -> dict[str, Any]:
    """The JSON object for a webhook; `key` lets the receiver recognise a repeated message."""
    return {"key": message.key, "title": message.title, "text": message.text, **message.data}


def slack_payload(message: Message) -> dict[str, Any]:
    """The JSON object for a Slack incoming webhook: a header, and a field for each fact.

    `&`, `<` and `>` are escaped, as Slack requires, so that a name cannot become a mention or link.
    """
    mark = ":white_check_mark:" if message.event in (RESOLVED, PASSED) else _MARKS[message.severity]
    fields = [_slack_text(f"{name}: {value}", SLACK_FIELD) for name, value in message.facts.items()]
    return {
        "text": _slack_escaped(message.title, SLACK_FIELD),
        "blocks": [
            {"type": "header", "text": {**_slack_text(f"{mark} {message.title}", SLACK_HEADER), "emoji": True}},
            {"type": "section", "fields": fields},
        ],
    }


def mail(message: Message, sender: str, to: list[str], now: datetime) -> EmailMessage:
    """The message as a plain-text mail, with the same Message-ID each time it is sent."""
    written = EmailMessage()
    written["Subject"] = plain(message.title)
    written["From"], written["To"] = sender, ", ".join(to)
    written["Date"] = format_datetime(now)
    written["Message-ID"] = f"<{message.key}@{Address(addr_spec=sender).domain}>"
    written["Auto-Submitted"] = "auto-generated"
    written.set_content(message.text)
    return written


def _slack_text(text: str, limit: int) -> dict[str, Any]:
    return {"type": "plain_text", "text": _slack_escaped(text, limit)}


def _slack_escaped(text: str, limit: int) -> str:
    # Cut before escaping, so that no escape is cut in half; cut shorter if the escaped text does not fit.
    for length in (limit, limit // 5):
        escaped = plain(text, length).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        if len(escaped) <= limit:
            break
    return escaped


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
