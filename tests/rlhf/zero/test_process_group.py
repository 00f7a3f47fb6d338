"""Where ranks on several hosts meet."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace

import pytest

from rlhf.zero.process_group import meet
from rlhf.zero.rank import Rank


def test_the_meeting_place_listens_on_its_own_address_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    meeting = f"tcp://127.0.0.1:{port}"
    first = Rank(rank=0, world=2, meeting=meeting, device="cpu", threads=1, timeout_seconds=20.0)
    stores = {}
    other = threading.Thread(target=lambda: stores.update(other=meet(replace(first, rank=1))))
    other.start()
    stores["first"] = meet(first)  # waits for the other
    other.join(timeout=20)
    stores["first"].set("word", "heard")
    assert stores["other"].get("word") == b"heard"
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=5)
