"""Judges' model requests: limits them to the scorer's rate, retries transient failures and counts tokens.

MLflow's judges send each request through two functions of one module, which retry ten times outside any limit and lose
the tokens of an answer that cannot be parsed. This module replaces both functions; the replacements behave as before
unless a `Meter` is active in the calling context.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import requests
from mlflow.genai.judges.adapters.gateway_adapter import GatewayAdapter
from mlflow.genai.judges.adapters.utils import ChatCompletionError, is_context_window_error
from pyrate_limiter import Limiter, Rate, SQLiteBucket
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from monitoring_pipeline.compat.mlflow import JudgeRequests, replace_judge_requests
from monitoring_pipeline.errors import MonitoringError, one_line
from monitoring_pipeline.scoring.limits import Limits
from monitoring_pipeline.settings import without_password

# MLflow bundles a list of models, and would download a newer one at a judge's first request.
os.environ.setdefault("MLFLOW_MODEL_CATALOG_URI", "")
# A minute plus a margin for the delay between admitting a request and its arrival at the model.
MINUTE_MS = 61_000
LONGEST_WAIT_SECONDS = 60
BACKOFF = wait_random_exponential(multiplier=1, max=30)
WORTH_REPEATING = {408, 409, 425, 429, 500, 502, 503, 504, 529}
MESSAGE_CHARACTERS = 500
T = TypeVar("T")
SENT_OTHERWISE = {"endpoints", "typesafe"}


@dataclass
class Call:
    """The usage of one scorer run: requests sent, tokens of all answers, and whether the last request was answered."""

    requests: int = 0
    answered: bool = False
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True)
class Meter:
    """The limits of one scorer, shared by the threads that run it and, through a file, by other processes."""

    limits: Limits
    rate: RateLimit | None = None

    @contextmanager
    def call(self) -> Iterator[Call]:
        """Apply the limits to requests sent inside the context, and count them in the yielded `Call`."""
        call = Call()
        token = _CURRENT.set((self, call))
        try:
            yield call
        finally:
            _CURRENT.reset(token)

    def send(self, call: Call, endpoint: str, headers: dict[str, str], payload: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return the model's answer; retries on 429, 5xx, timeouts and lost connections.

        Raises:
            ChatCompletionError: the model refuses the request, or does not answer within `max_attempts`.
        """
        retrying = Retrying(
            retry=retry_if_exception(_is_worth_repeating),
            stop=stop_after_attempt(self.limits.max_attempts),
            wait=_wait,
            reraise=True,
        )
        return retrying(partial(self._attempt, call, endpoint, headers, payload))

    def _attempt(self, call: Call, endpoint: str, headers: dict[str, str], payload: dict[str, Any]) -> dict[str, Any]:
        if self.rate:
            self.rate.wait()
        call.requests += 1
        call.answered = False
        try:
            response = _within(
                self.limits.timeout_seconds,
                lambda timeout: requests.post(
                    endpoint, headers={"Content-Type": "application/json", **headers}, json=payload, timeout=timeout
                ),
            )
        except (requests.Timeout, TimeoutError) as error:
            raise _Unanswered(504, f"no answer within {self.limits.timeout_seconds:g} seconds") from error
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            raise _Unanswered(503, f"no connection: {_safe(str(error), headers)}") from None
        except requests.RequestException as error:  # e.g. a key that is not a valid header value
            raise _Unanswered(400, f"invalid request: {_safe(str(error), headers)}") from None
        if response.status_code >= 400:
            message = f"status {response.status_code}: {_safe(_message(response), headers)}"
            raise _Unanswered(response.status_code, message, _retry_after_seconds(response))
        call.answered = True
        return response.json()


def _within(seconds: float, call: Callable[[float], T]) -> T:
    """The result of `call`, which gets the time limit; a model that sends its answer too slowly does not extend it.

    requests limits only the time between two pieces of an answer.

    Raises:
        TimeoutError: there is no result within the time; the thread ends when the server does.
    """
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(call(seconds))
        except BaseException as error:  # noqa: BLE001 - raised again by `result`
            result.set_exception(error)

    threading.Thread(target=run, name="judge-request", daemon=True).start()
    return result.result(seconds)


def meter_of(location: str, scorer: str, limits: Limits) -> Meter:
    """The meter of a scorer of the lake at `location`; requests of all processes on the machine count."""
    if limits.requests_per_minute is None:
        return Meter(limits)
    return Meter(limits, _rate_limit(limits.requests_per_minute, shared_file(location, scorer, "requests")))


def shared_file(location: str, scorer: str, purpose: str) -> Path:
    """The file that the user's processes on this machine share for a scorer of the lake at `location`.

    Raises:
        MonitoringError: somebody else has made its folder, or a link in its place.
    """
    folder = Path(tempfile.gettempdir()) / f"monitoring-pipeline-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    made = folder.lstat()
    if not stat.S_ISDIR(made.st_mode) or made.st_uid != os.getuid():
        raise MonitoringError(
            f"{folder} is not a folder of this user; remove it, or set TMPDIR to a folder of your own"
        )
    if made.st_mode & 0o077:
        folder.chmod(0o700)
    return folder / f"{hashlib.sha256(location.encode()).hexdigest()[:16]}-{scorer}-{purpose}"


class RateLimit:
    """Limits the requests per minute, counted in a file that all processes of the machine share."""

    def __init__(self, requests_per_minute: int, file: Path) -> None:
        rate = Rate(requests_per_minute, MINUTE_MS)
        self._limiter = Limiter(SQLiteBucket.init_from_file([rate], db_path=str(file), use_file_lock=True))
        self._lock = threading.Lock()  # the bucket's own lock works only between processes

    def wait(self) -> None:
        """Block until one more request may be sent."""
        with self._lock:
            self._limiter.try_acquire("request")


def is_metered(model: str) -> bool:
    """Whether requests to the model pass through the meter; those of litellm and of Databricks' own judge do not."""
    provider, separator, _ = model.partition(":/")
    return bool(separator) and provider not in SENT_OTHERWISE and GatewayAdapter.is_applicable(model, "")


@functools.cache
def _rate_limit(requests_per_minute: int, file: Path) -> RateLimit:
    return RateLimit(requests_per_minute, file)


class _Unanswered(ChatCompletionError):
    def __init__(self, status_code: int, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(status_code, message, status_code == 400 and is_context_window_error(message))
        self.retry_after_seconds = retry_after_seconds


_CURRENT: ContextVar[tuple[Meter, Call] | None] = ContextVar("judge_meter", default=None)


def _metered(mlflow: JudgeRequests) -> JudgeRequests:
    def send(endpoint: str, headers: dict[str, str], payload: dict[str, Any], num_retries: int) -> dict[str, Any]:
        current = _CURRENT.get()
        if current is None:
            return mlflow.send(endpoint=endpoint, headers=headers, payload=payload, num_retries=num_retries)
        meter, call = current
        return meter.send(call, endpoint, headers, payload)

    def parse(response_data: dict[str, Any], provider: Any) -> tuple[Any, dict[str, Any]]:
        current = _CURRENT.get()
        if current is not None:
            _, call = current
            usage = provider.adapter_class.model_to_chat(response_data, provider.config).usage
            if usage:
                call.input_tokens += usage.prompt_tokens or 0
                call.output_tokens += usage.completion_tokens or 0
        return mlflow.parse(response_data, provider)

    return JudgeRequests(send, parse)


replace_judge_requests(_metered)


def _is_worth_repeating(error: BaseException) -> bool:
    return isinstance(error, _Unanswered) and error.status_code in WORTH_REPEATING


def _wait(state: RetryCallState) -> float:
    """Seconds until the next attempt: the server's Retry-After, else exponential backoff with full jitter."""
    error = state.outcome.exception() if state.outcome else None
    retry_after = error.retry_after_seconds if isinstance(error, _Unanswered) else None
    return BACKOFF(state) if retry_after is None else min(retry_after, LONGEST_WAIT_SECONDS)


def _retry_after_seconds(response: requests.Response) -> float | None:
    try:
        return max(0.0, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):  # missing, or a date
        return None


def _message(response: requests.Response) -> str:
    try:
        error = response.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return response.text


def _safe(message: str, headers: dict[str, str]) -> str:
    """`message` as one short line, without the request's API keys."""
    for value in headers.values():
        secret = value.removeprefix("Bearer ").strip()
        if len(secret) >= 8:
            message = message.replace(secret, "***")
    return without_password(one_line(message))[:MESSAGE_CHARACTERS]
