"""A double of a paid service: an OpenAI-style chat endpoint on loopback, for MLflow's real client.

It answers, refuses, stalls or garbles as it is told, and keeps its own account of what it was asked and what it would
have charged for.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

OK, BUSY, BROKEN, STALLS, GARBLED, CUT, MAYBE = "ok", "429", "500", "stalls", "garbled", "cut", "maybe"
CONTENTS = {GARBLED: '{"result": "yes", "rati', MAYBE: '{"result": "perhaps", "rationale": "not sure"}'}


@dataclass
class Request:
    """One request: when it arrived, what was asked, what became of it, and the tokens of a whole answer."""

    arrived: float
    prompt: str
    fate: str
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass
class ModelDouble:
    """The endpoint, and what it counted. `fate` decides about each request by its number and its prompt."""

    fate: Callable[[int, str], str] = lambda number, prompt: OK
    answer: Callable[[str], dict[str, Any]] = lambda prompt: {"result": "yes", "rationale": "fine"}
    stall_seconds: float = 1.0
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def address(self) -> str:
        """What OPENAI_API_BASE should be."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def fates(self) -> Counter[str]:
        return Counter(request.fate for request in self.requests)

    @property
    def tokens(self) -> tuple[int, int]:
        """Input and output tokens of all answers that were given in full."""
        return sum(each.input_tokens for each in self.requests), sum(each.output_tokens for each in self.requests)

    def most_within(self, seconds: float) -> int:
        """The largest number of requests that arrived within any `seconds`."""
        times = sorted(request.arrived for request in self.requests)
        return max((sum(start <= moment < start + seconds for moment in times) for start in times), default=0)

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
                    case "429":
                        self._reply(429, {"error": {"message": "slow down"}}, {"Retry-After": "0.05"})
                    case "500":
                        self._reply(500, {"error": {"message": "internal error"}}, {})
                    case "stalls":
                        time.sleep(double.stall_seconds)
                        self.close_connection = True
                    case "cut":
                        self._reply(200, None, {})
                    case fate:
                        content = CONTENTS.get(fate) or json.dumps(double.answer(prompt))
                        request.input_tokens, request.output_tokens = len(prompt) // 4, len(content) // 4
                        self._reply(200, _completion(body["model"], content, request), {})

            def _reply(self, status: int, answer: dict[str, Any] | None, headers: dict[str, str]) -> None:
                text = b'{"id": "x", "choi' if answer is None else json.dumps(answer).encode()
                with suppress(OSError):  # the client has given up
                    self.send_response(status)
                    for name, value in {**headers, "Content-Length": str(len(text))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(text)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing: the account is enough."""

        return Handler


def _completion(model: str, content: str, request: Request) -> dict[str, Any]:
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
