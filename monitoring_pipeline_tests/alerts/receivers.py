"""Test receivers on loopback: an HTTP endpoint and a mail server that keep the messages they receive."""

from __future__ import annotations

import email
import email.policy
import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str]]


@dataclass
class Hook:
    """An HTTP endpoint; it returns `answers` in turn, then 200, and keeps payloads and headers."""

    url: str = ""
    answers: list[Answer] = field(default_factory=list)
    payloads: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def hook() -> Iterator[Hook]:
    """Run an endpoint until the block ends."""
    double = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            double.payloads.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            double.headers.append(dict(self.headers))
            status, headers = double.answers.pop(0) if double.answers else (200, {})
            self.send_response(status)
            for name, value in {**headers, "Content-Length": "0"}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing, to keep the test's output clean."""

    with _served(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as port:
        double.url = f"http://127.0.0.1:{port}/services/T000/secret-path"
        yield double


@dataclass
class MailServer:
    """A mail server without TLS; `refuses` maps commands to error replies."""

    port: int = 0
    refuses: dict[str, str] = field(default_factory=dict)
    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[list[str]] = field(default_factory=list)


@contextmanager
def mail_server() -> Iterator[MailServer]:
    """Run a mail server until the block ends."""
    double = MailServer()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            recipients: list[str] = []
            self.reply("220 here")
            while line := self.rfile.readline().decode():
                command = line.split(maxsplit=1)[0].upper() if line.strip() else ""
                if command in double.refuses:
                    self.reply(double.refuses[command])
                elif command == "DATA":
                    self.reply("354 go on")
                    double.mails.append(self.content())
                    double.recipients.append(recipients)
                    self.reply("250 taken")
                elif command == "QUIT":
                    self.reply("221 bye")
                    return
                else:
                    if command == "RCPT":
                        recipients.append(line.split("<")[1].split(">")[0])
                    self.reply("250 fine")

        def reply(self, line: str) -> None:
            self.wfile.write(f"{line}\r\n".encode())

        def content(self) -> EmailMessage:
            lines = []
            while (line := self.rfile.readline()) != b".\r\n":
                lines.append(line.removeprefix(b"."))
            message = email.message_from_bytes(b"".join(lines), policy=email.policy.default)
            assert isinstance(message, EmailMessage)
            return message

    with _served(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)) as port:
        double.port = port
        yield double


@contextmanager
def _served(server: ThreadingHTTPServer | socketserver.ThreadingTCPServer) -> Iterator[int]:
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
