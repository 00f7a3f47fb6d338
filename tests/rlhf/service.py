"""A scoring service for tests: a real HTTP server in a thread, which fails on request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Headers = dict[str, str | None]
Answer = bytes | int | float | tuple[int, Headers] | tuple[int, Headers, bytes] | dict[str, Any] | None
"""Bytes as they are, a status, seconds to wait first, a status with headers (None leaves one out) and perhaps a body,
JSON, or None for what was asked for."""
Behaviour = Callable[[int, dict[str, Any]], Answer]
"""How to answer the n-th request (from 0), given its JSON."""


def length_of_response(number: int, asked: dict[str, Any]) -> Answer:
    """The right answer."""
    return {"scores": [float(len(response)) for response in asked["responses"]]}


class Service(ThreadingHTTPServer):
    """Scores are the lengths of responses. Remembers what it was asked, with which headers, over how many sockets."""

    daemon_threads = True

    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behaviour = behaviour
        self.lock = threading.Lock()
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.sockets = self.busy = self.busiest = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/score"

    def get_request(self) -> Any:
        self.sockets += 1
        return super().get_request()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Service

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.asked)
            self.server.asked.append(asked)
            self.server.headers.append(dict(self.headers))
            self.server.busy += 1
            self.server.busiest = max(self.server.busiest, self.server.busy)
        answer = self.server.behaviour(number, asked)
        if isinstance(answer, float):
            time.sleep(answer)
            answer = None
        with self.server.lock:
            self.server.busy -= 1
        self.answer(length_of_response(number, asked) if answer is None else answer)

    def answer(self, answer: Any) -> None:
        status, headers, body = 200, {}, answer
        if isinstance(answer, int):
            status, body = answer, b"told to"
        elif isinstance(answer, tuple):
            status, headers, body = (*answer, b"")[:3]
        elif isinstance(answer, dict):
            body = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nobody reads it."""


@contextmanager
def serve(behaviour: Behaviour = length_of_response) -> Iterator[Service]:
    """Have a service within the block."""
    service = Service(behaviour)
    thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        service.shutdown()
        service.server_close()
        thread.join()
