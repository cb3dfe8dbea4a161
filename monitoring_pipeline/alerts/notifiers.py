"""Sends messages to a webhook, to Slack, by mail or to the log. Errors and logs contain no address or password."""

from __future__ import annotations

import logging
import os
import smtplib
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import requests
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from monitoring_pipeline.alerts.episodes import OPEN
from monitoring_pipeline.alerts.messages import Message, mail, slack_payload, webhook_payload
from monitoring_pipeline.settings import NotifierSettings

ATTEMPTS = 3
TIMEOUT_S = 10.0
LONGEST_WAIT_S = 30.0  # between two attempts; if the receiver asks for more, the next check tries again
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "critical": logging.CRITICAL}


class NotifierError(Exception):
    """A message was not sent. The text gives the reason, without secrets.

    `dead`: the notifier accepts no messages at all, so others need not be tried. `retry_after_s`: seconds until another
    attempt may help; None if it would not.
    """

    def __init__(self, reason: str, dead: bool = True, retry_after_s: float | None = None):
        self.dead, self.retry_after_s = dead, retry_after_s
        super().__init__(reason)


def send(notifier: NotifierSettings, message: Message, log: logging.Logger) -> None:
    """Send the message, with up to three attempts if the receiver is busy or does not answer.

    Raises:
        NotifierError: the message was not sent.
    """
    retrying = Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, NotifierError) and error.retry_after_s is not None),
        stop=stop_after_attempt(ATTEMPTS),
        wait=_wait,
        reraise=True,
    )
    match notifier.kind:
        case "log":
            level = _LEVELS[message.severity] if message.event == OPEN else logging.INFO
            log.log(level, "%s", " | ".join(message.text.splitlines()))
        case "email":
            if refused := retrying(_mail, notifier, message):
                log.warning("notifier %s: the mail server refused %d of the addresses", notifier.name, refused)
        case kind:
            payload = slack_payload(message) if kind == "slack" else webhook_payload(message)
            retrying(_post, _secret(notifier.url_env), payload, message.key)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    wait_s = error.retry_after_s if isinstance(error, NotifierError) else None
    return min(LONGEST_WAIT_S, wait_s or 0.0)


def _secret(variable: str | None) -> str:
    value = os.environ.get(variable or "")
    if not value:
        raise NotifierError(f"the environment variable {variable} is not set")
    return value


def _post(url: str, payload: dict[str, Any], key: str) -> None:
    if not url.startswith(("http://", "https://")):
        raise NotifierError("the address does not start with https:// or http://")
    # The errors of requests contain the address, which is the secret.
    try:
        # The content of the answer is not read: a receiver that never ends it would hold the check of the alerts.
        headers = {"Idempotency-Key": key}
        with (
            _silent_about_addresses(),
            requests.post(
                url, json=payload, headers=headers, timeout=TIMEOUT_S, allow_redirects=False, stream=True
            ) as answer,
        ):
            status = answer.status_code
    except requests.Timeout:
        raise NotifierError(f"no answer within {TIMEOUT_S:g} s", retry_after_s=1.0) from None
    except requests.exceptions.SSLError:
        raise NotifierError("its certificate is not trusted") from None
    except requests.ConnectionError:
        raise NotifierError("no connection", retry_after_s=1.0) from None
    except (requests.RequestException, ValueError, UnicodeError):
        raise NotifierError("the address cannot be used") from None
    if status == 429 or status >= 500:
        raise NotifierError(f"it answered {status}", retry_after_s=_retry_after_s(answer.headers.get("Retry-After")))
    if not 200 <= status < 300:
        # These statuses apply to all messages; any other may concern only this one.
        raise NotifierError(f"it answered {status}", dead=status in (401, 403, 404, 410) or status < 400)


def _retry_after_s(header: str | None) -> float:
    """The seconds in a Retry-After header, which is a number or a date; 1 without one."""
    if header is None:
        return 1.0
    if header.strip().isdecimal():
        return float(header)
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return 1.0
    return max(0.0, (moment.astimezone(UTC) - datetime.now(UTC)).total_seconds())


@contextmanager
def _silent_about_addresses() -> Iterator[None]:
    """Silence urllib3, whose debug level logs the path of every request."""
    logger = logging.getLogger("urllib3.connectionpool")

    def nothing(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(nothing)
    try:
        yield
    finally:
        logger.removeFilter(nothing)


def _mail(notifier: NotifierSettings, message: Message) -> int:
    """Send a mail and return how many addresses the server refused; sending it again would repeat it for the others."""
    password = _secret(notifier.password_env) if notifier.password_env else None
    written = mail(message, notifier.sender or "", notifier.to, datetime.now(UTC))
    tls = ssl.create_default_context()
    host = notifier.host or ""
    try:
        server = (
            smtplib.SMTP_SSL(host, notifier.port, timeout=TIMEOUT_S, context=tls)
            if notifier.security == "tls"
            else smtplib.SMTP(host, notifier.port, timeout=TIMEOUT_S)
        )
        with server:
            if notifier.security == "starttls":
                server.starttls(context=tls)
            if notifier.user and password:
                server.login(notifier.user, password)
            return len(server.send_message(written))
    except smtplib.SMTPNotSupportedError:
        raise NotifierError(f"the mail server does not offer what security = {notifier.security!r} needs") from None
    except smtplib.SMTPRecipientsRefused as error:
        raise _smtp_error({code for code, _ in error.recipients.values()}, "all addresses in `to`", dead=True) from None
    except smtplib.SMTPAuthenticationError as error:
        raise _smtp_error({error.smtp_code}, "the user or password", dead=True) from None
    except smtplib.SMTPResponseException as error:
        raise _smtp_error({error.smtp_code}, "the message", dead=False) from None
    except ssl.SSLError:
        raise NotifierError("the mail server's certificate is not trusted, or it does not support TLS") from None
    except socket.gaierror:
        raise NotifierError(f"mail server {host} not found") from None
    except TimeoutError:
        raise NotifierError(f"no answer from the mail server within {TIMEOUT_S:g} s", retry_after_s=1.0) from None
    except (OSError, smtplib.SMTPException):
        raise NotifierError("no connection to the mail server", retry_after_s=1.0) from None


def _smtp_error(codes: set[int], what: str, dead: bool) -> NotifierError:
    """The mail server's refusal of `what`; with a 4xx code it is passing, and another attempt may help."""
    passing = [code for code in codes if 400 <= code < 500]
    if passing:
        return NotifierError(f"the mail server answered {min(passing)}", dead=False, retry_after_s=1.0)
    return NotifierError(f"the mail server refused {what}, with {min(codes)}", dead=dead)
