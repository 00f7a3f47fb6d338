"""Connections that stall end by themselves; slow but living ones do not."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from launch import bounded_http
from launch.bounded_http import BoundedHttp
from launch.feedback.serve import Address
from launch.feedback.serve import make_server as make_feedback_server
from launch.listening import bound
from launch.serve.server import make_server as make_gateway_server
from rlhf.feedback.store import Store
from rlhf.serving.gateway_config import GatewayConfig

SECONDS = 0.4
REQUEST = "GET /{} HTTP/1.1\r\nHost: x\r\n\r\n"
gone = threading.Event()
"""The client that took nothing is known to have left."""


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    await receive()
    left = asyncio.create_task(receive())
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/slow":
        for _ in range(6):
            await asyncio.sleep(SECONDS / 2)
            await send({"type": "http.response.body", "body": b"piece ", "more_body": True})
    while scope["path"] == "/flood" and not left.done():
        await send({"type": "http.response.body", "body": b"x" * 2**16, "more_body": True})
        await asyncio.sleep(0)
    if left.done():
        gone.set()
    left.cancel()
    await send({"type": "http.response.body", "body": b"end"})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    for name in ("HEAD_SECONDS", "WRITE_SECONDS"):
        monkeypatch.setattr(bounded_http, name, SECONDS)
    gone.clear()
    server = uvicorn.Server(uvicorn.Config(app, http=BoundedHttp, log_level="critical", lifespan="off"))
    with bound("127.0.0.1", 0, 64, "port") as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    found = b""
    while piece := connection.recv(65536):
        found += piece
    return found


def send_lines(client: socket.socket, count: int) -> None:
    for number in range(count):
        client.sendall(b"X-%d: " % number + b"y" * 10_000 + b"\r\n")
        time.sleep(0.001)


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"\r\n"])
def test_a_head_that_does_not_come_ends_the_connection(port: int, sent: bytes) -> None:
    begin = time.monotonic()
    with connect(port) as client:
        client.sendall(sent)
        assert read_all(client) == b""
    assert SECONDS * 0.9 < time.monotonic() - begin < 10


def test_a_second_head_that_does_not_come_ends_the_connection_after_the_first_answer(port: int) -> None:
    with connect(port) as client:
        client.sendall(REQUEST.format("slow").encode())
        time.sleep(SECONDS / 4)
        client.sendall(b"GET / HT")
        assert read_all(client).count(b"piece") == 6


def test_a_head_without_end_is_refused(port: int) -> None:
    with connect(port) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        with pytest.raises(ConnectionError):
            send_lines(client, 1000)
    with connect(port) as client:  # a long one is none
        client.sendall(b"GET / HTTP/1.1\r\nX-Long: " + b"y" * 50_000 + b"\r\nConnection: close\r\n\r\n")
        assert b"200 OK" in read_all(client)


def test_bodies_are_not_counted_as_heads_and_connections_are_used_again(port: int) -> None:
    body = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" + b"z" * 200_000
    with connect(port) as client:
        for _ in range(3):
            client.sendall(body)
            found = b""
            while not found.endswith(b"0\r\n\r\n"):
                piece = client.recv(65536)
                assert piece, found
                found += piece
            assert b"200 OK" in found


def test_a_client_that_takes_nothing_is_left(port: int) -> None:
    with connect(port) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(REQUEST.format("flood").encode())
        assert gone.wait(20)


def test_all_services_use_it(tmp_path: Path) -> None:
    with Store.create(tmp_path / "votes.db") as store:
        servers = (
            make_feedback_server(store, Address()),
            make_gateway_server(GatewayConfig(registry="r.db", model="m"), app),  # type: ignore[arg-type]
        )
        assert {server.config.http for server in servers} == {BoundedHttp}
