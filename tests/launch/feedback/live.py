"""The labelling page served over a real socket, in this process or in another."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launch.feedback.serve import Address, make_server
from rlhf.feedback.store import Store
from rlhf.ports import free_port

SECONDS = 30.0


@contextmanager
def served(store: Store, **address: object) -> Iterator[str]:
    """Serve a project from a thread; gives the page's address."""
    port = free_port()
    server = make_server(store, Address(port=port, **address))  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for_port(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def start_server(project: Path, port: int) -> subprocess.Popen[bytes]:
    """``rlhf feedback serve`` as a process, when it answers."""
    command = [sys.executable, "-m", "launch.cli", "feedback", "serve", str(project), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[3])
    wait_for_port(port)
    return process


def wait_for_port(port: int) -> None:
    """Wait until somebody listens at a port of 127.0.0.1."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError(f"nobody listens at port {port}")
