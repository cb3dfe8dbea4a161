"""Messages as a webhook, Slack and a mail server receive them, and errors when they do not."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring_pipeline.alerts import notifiers
from monitoring_pipeline.alerts.episodes import OPEN, PASSED, RESOLVED, Episode
from monitoring_pipeline.alerts.messages import (
    SLACK_FIELD,
    SLACK_HEADER,
    mail,
    message_of,
    slack_payload,
    webhook_payload,
)
from monitoring_pipeline.alerts.notifiers import NotifierError, send
from monitoring_pipeline.settings import NotifierSettings
from monitoring_pipeline_tests.alerts.receivers import Hook, MailServer, mail_server
from monitoring_pipeline_tests.servers import free_port

NOW = datetime(2026, 2, 1, 10, 5, tzinfo=UTC)
EPISODE = Episode(
    hour=NOW.replace(minute=0),
    rule="errors",
    scope="experiment my-agent",
    metric="error_rate",
    kind="threshold",
    severity="critical",
    state="open",
    measured=0.2,
    held_against=0.1,
    detail="20 % of 200 traces",
    opened_at=NOW,
    last_held_at=NOW,
)
LOG = logging.getLogger("tests.alerts")
WEBHOOK = NotifierSettings(name="hook", kind="webhook", url_env="ALERT_HOOK")
SLACK = NotifierSettings(name="slack", kind="slack", url_env="ALERT_HOOK")
HOSTILE = "<!channel> <https://evil|click> & \r\nBcc: all@example.org\u202e"


@pytest.fixture
def mails() -> Iterator[MailServer]:
    with mail_server() as double:
        yield double


def mailer(port: int, **values: Any) -> NotifierSettings:
    values = {"security": "none", "sender": "alerts@example.org", "to": ["a@example.org", "b@example.org"], **values}
    return NotifierSettings(name="mail", kind="email", host="127.0.0.1", port=port, **values)


def failure(notifier: NotifierSettings) -> NotifierError:
    with pytest.raises(NotifierError) as caught:
        send(notifier, message_of(EPISODE, OPEN), LOG)
    return caught.value


def test_a_webhook_gets_all_figures_and_a_stable_key(endpoint: Hook) -> None:
    for _ in range(2):
        send(WEBHOOK, message_of(EPISODE, OPEN), LOG)
    send(WEBHOOK, message_of(replace(EPISODE, state="resolved", resolved_at=NOW), RESOLVED), LOG)

    first, again, resolved = endpoint.payloads
    assert first == again
    assert first["key"] == endpoint.headers[0]["Idempotency-Key"] != resolved["key"]
    assert (first["rule"], first["measured"], first["severity"]) == ("errors", 0.2, "critical")
    assert first["opened_at"] == "2026-02-01T10:05:00+00:00"
    assert (first["event"], resolved["event"], resolved["resolved_at"]) == ("open", "resolved", first["opened_at"])


def test_names_are_not_markup_in_slack_blocks(endpoint: Hook) -> None:
    send(SLACK, message_of(replace(EPISODE, scope=HOSTILE, detail=HOSTILE), OPEN), LOG)

    (payload,) = endpoint.payloads
    header, section = payload["blocks"]
    assert (header["type"], section["type"]) == ("header", "section")
    texts = [payload["text"], header["text"]["text"], *(entry["text"] for entry in section["fields"])]
    assert all("<" not in text and ">" not in text and "\n" not in text for text in texts)
    assert {entry["type"] for entry in (header["text"], *section["fields"])} == {"plain_text"}
    assert "&lt;!channel&gt;" in payload["text"]
    assert "\u202e" not in "".join(texts)


@given(scope=st.text(max_size=3000), event=st.sampled_from([OPEN, RESOLVED, PASSED]))
def test_every_payload_can_be_built_whatever_a_name_contains(scope: str, event: str) -> None:
    message = message_of(replace(EPISODE, scope=scope, detail=scope * 2), event)
    slack = slack_payload(message)
    assert len(slack["blocks"][0]["text"]["text"]) <= SLACK_HEADER
    assert all(0 < len(entry["text"]) <= SLACK_FIELD for entry in slack["blocks"][1]["fields"])
    assert webhook_payload(message)["scope"] == scope
    written = mail(message, "alerts@example.org", ["a@example.org"], NOW)
    assert set(written.keys()) >= {"Subject", "From", "To"}
    assert "bcc" not in {name.lower() for name in written}


@pytest.mark.parametrize("answers", [[(429, {"Retry-After": "1"})], [(503, {}), (500, {})], [(429, {}), (502, {})]])
def test_a_busy_webhook_is_retried(endpoint: Hook, answers: list[tuple[int, dict[str, str]]]) -> None:
    endpoint.answers = [*answers]
    send(WEBHOOK, message_of(EPISODE, OPEN), LOG)
    assert len(endpoint.payloads) == len(answers) + 1


def test_a_webhook_that_never_ends_its_answer_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    class Dripping(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            while not ended.wait(0.05):
                self.wfile.write(b".")

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing, to keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Dripping)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("ALERT_HOOK", f"http://127.0.0.1:{server.server_port}/")
    sending = threading.Thread(target=send, args=(WEBHOOK, message_of(EPISODE, OPEN), LOG), daemon=True)
    sending.start()
    sending.join(30)
    was_held = sending.is_alive()
    ended.set()
    server.shutdown()
    server.server_close()
    assert not was_held


def test_retry_after_is_a_number_or_a_date(endpoint: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    for header, least, most in (("7", 7, 7), (later, 15, 20), ("soon", 1, 1)):
        endpoint.answers = [(429, {"Retry-After": header})] * 3
        seconds = failure(WEBHOOK).retry_after_s
        assert seconds is not None and least <= seconds <= most


@pytest.mark.parametrize(
    ("status", "dead", "requests"), [(404, True, 1), (400, False, 1), (302, True, 1), (500, True, 3)]
)
def test_a_refusal_is_reported_without_the_address(
    endpoint: Hook, caplog: pytest.LogCaptureFixture, status: int, dead: bool, requests: int
) -> None:
    endpoint.answers = [(status, {"Location": endpoint.url})] * 3
    with caplog.at_level(logging.DEBUG):
        error = failure(WEBHOOK)
    assert str(error) == f"it answered {status}"
    assert (error.dead, len(endpoint.payloads)) == (dead, requests)
    assert "secret-path" not in caplog.text


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://127.0.0.1:{port}/secret-path", "no connection"),
        ("file:///secret-path", "the address does not start with https:// or http://"),
        ("http://[secret-path", "the address cannot be used"),
        ("", "the environment variable ALERT_HOOK is not set"),
    ],
)
def test_an_unusable_address_is_reported_without_it(monkeypatch: pytest.MonkeyPatch, address: str, reason: str) -> None:
    monkeypatch.setattr(notifiers, "LONGEST_WAIT_S", 0.01)
    monkeypatch.setenv("ALERT_HOOK", address.format(port=free_port()))
    error = failure(WEBHOOK)
    assert str(error) == reason
    assert error.__suppress_context__ or error.__context__ is None


def test_a_mail_reaches_all_addresses_and_a_name_adds_no_header(mails: MailServer) -> None:
    send(mailer(mails.port), message_of(replace(EPISODE, scope=HOSTILE), OPEN), LOG)

    (mail_,) = mails.mails
    assert mails.recipients == [["a@example.org", "b@example.org"]]
    assert mail_["From"] == "alerts@example.org"
    assert mail_["Bcc"] is None
    assert mail_["Subject"].strip().startswith("[alert] errors: <!channel>")
    assert "Bcc: all@example.org" in mail_["Subject"]  # as text, on one line
    assert "Metric: error_rate" in mail_.get_content()


@pytest.mark.parametrize(
    ("values", "refuses", "reason", "dead"),
    [
        ({"security": "starttls"}, {}, "the mail server does not offer what security = 'starttls' needs", True),
        ({}, {"RCPT": "550 no such user"}, "the mail server refused all addresses in `to`, with 550", True),
        ({}, {"RCPT": "450 greylisted"}, "the mail server answered 450", False),
        ({}, {"MAIL": "550 not you"}, "the mail server refused the message, with 550", False),
        ({}, {"DATA": "451 later"}, "the mail server answered 451", False),
        ({"security": "tls"}, {}, "the mail server's certificate is not trusted, or it does not support TLS", True),
    ],
)
def test_a_refusal_of_the_mail_server_is_reported(
    mails: MailServer,
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, Any],
    refuses: dict[str, str],
    reason: str,
    dead: bool,
) -> None:
    monkeypatch.setattr(notifiers, "LONGEST_WAIT_S", 0.01)
    mails.refuses = refuses
    error = failure(mailer(mails.port, **values))
    assert (str(error), error.dead) == (reason, dead)
    assert (error.retry_after_s is not None) == reason.startswith("the mail server answered 4")
    assert mails.mails == []


def test_a_missing_mail_server_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifiers, "LONGEST_WAIT_S", 0.01)
    assert str(failure(mailer(free_port()))) == "no connection to the mail server"


def test_the_log_gets_a_line_at_the_alerts_level(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        send(NotifierSettings(name="log", kind="log"), message_of(EPISODE, OPEN), LOG)
    (record,) = caplog.records
    assert record.levelno == logging.CRITICAL
    assert record.getMessage().startswith("[alert] errors: experiment my-agent | Severity: critical")
