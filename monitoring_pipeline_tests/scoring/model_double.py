"""A double of a paid service: an OpenAI-style chat endpoint on loopback, for MLflow's real client.

It answers, refuses, stalls or garbles as configured, and records its requests and the tokens it would have charged for.
A refusal is the worst case: it contains all headers of the request, including the key.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from tenacity import wait_fixed

from monitoring_pipeline.scoring import metering

KEY = "sk-test-0123456789abcdef"
# A fate may also be any other status, such as "401".
OK, BUSY, BROKEN, STALLS, DRIPS, TORN, CUT = "ok", "429", "500", "stalls", "drips", "torn", "cut"
GARBLED, MAYBE, PLAIN, NO_RESULT, NOTHING, NO_CHOICE = "garbled", "maybe", "plain", "no result", "nothing", "no choice"
CONTENTS: dict[str, str | None] = {
    GARBLED: '{"result": "yes", "rati',
    MAYBE: '{"result": "perhaps", "rationale": "not sure"}',
    PLAIN: "I would say yes.",
    NO_RESULT: '{"rationale": "forgot the rest"}',
    NOTHING: None,
    NO_CHOICE: "",
}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore it: a client killed during a request is not an error here."""


@dataclass
class Request:
    """One request: its arrival, its prompt, its fate, and the tokens of a complete answer."""

    arrived: float
    prompt: str
    fate: str
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass
class ModelDouble:
    """The endpoint and its records. `fate` determines the outcome of each request from its number and prompt."""

    fate: Callable[[int, str], str] = lambda number, prompt: OK
    answer: Callable[[str], dict[str, Any]] = lambda prompt: {"result": "yes", "rationale": "fine"}
    stall_seconds: float = 1.0
    retry_after: str | None = "0.05"
    tokens_of: Callable[[str], int] = lambda text: len(text) // 4
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def address(self) -> str:
        """The value for OPENAI_API_BASE."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def fates(self) -> Counter[str]:
        return Counter(request.fate for request in self.requests)

    @property
    def tokens(self) -> tuple[int, int]:
        """Input and output tokens of all complete answers."""
        return sum(each.input_tokens for each in self.requests), sum(each.output_tokens for each in self.requests)

    def most_within(self, seconds: float) -> int:
        """The largest number of requests that arrived within any `seconds`."""
        return most_within([request.arrived for request in self.requests], seconds)

    def _take(self, prompt: str) -> Request:
        with self._lock:
            request = Request(time.monotonic(), prompt, self.fate(len(self.requests), prompt))
            self.requests.append(request)
            return request

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = "\n".join(message["content"] for message in body["messages"])
                request = double._take(prompt)
                match request.fate:
                    case "stalls":
                        time.sleep(double.stall_seconds)
                        self.close_connection = True
                    case "drips":
                        self._drip()
                    case "cut":
                        self._reply(200, b'{"id": "x", "choi')
                    case "torn":
                        self._reply(200, b'{"id": "x", "choi', promised=1000)
                        self.close_connection = True
                    case status if status.isdigit():
                        self._refuse(int(status))
                    case fate:
                        content = CONTENTS[fate] if fate in CONTENTS else json.dumps(double.answer(prompt))
                        # A model also charges for the schema of its answer.
                        request.input_tokens = double.tokens_of(prompt + json.dumps(body.get("response_format", "")))
                        request.output_tokens = double.tokens_of(content or "")
                        completion = _completion(body["model"], content, request)
                        if fate == NO_CHOICE:
                            completion["choices"] = []
                        self._reply(200, json.dumps(completion).encode())

            def _drip(self) -> None:
                """Answer so slowly that no single piece is late."""
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                ends = time.monotonic() + double.stall_seconds
                with suppress(OSError):  # the client has given up
                    while time.monotonic() < ends:
                        self.wfile.write(b" ")
                        self.wfile.flush()
                        time.sleep(0.02)
                self.close_connection = True

            def _refuse(self, status: int) -> None:
                error = {"message": f"refused, you came with {self.headers}"}
                headers = {"Retry-After": double.retry_after} if status == 429 and double.retry_after else {}
                self._reply(status, json.dumps({"error": error}).encode(), headers)

            def _reply(
                self, status: int, text: bytes, headers: dict[str, str] | None = None, promised: int | None = None
            ) -> None:
                with suppress(OSError):  # the client has given up
                    self.send_response(status)
                    for name, value in {**(headers or {}), "Content-Length": str(promised or len(text))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(text)

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing: `requests` has everything."""

        return Handler


def most_within(times: list[float], seconds: float) -> int:
    """The largest number of `times` within any `seconds`."""
    return max((sum(start <= moment < start + seconds for moment in times) for start in times), default=0)


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelDouble]:
    """A double that MLflow's openai:/ client calls, with retries almost without delay."""
    double = ModelDouble()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_BASE", double.address)
    monkeypatch.setenv("MLFLOW_MODEL_CATALOG_URI", "")  # otherwise MLflow downloads its latest price list
    monkeypatch.setattr(metering, "BACKOFF", wait_fixed(0.01))
    yield double
    double.close()


def _completion(model: str, content: str | None, request: Request) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": request.input_tokens,
            "completion_tokens": request.output_tokens,
            "total_tokens": request.input_tokens + request.output_tokens,
        },
    }
