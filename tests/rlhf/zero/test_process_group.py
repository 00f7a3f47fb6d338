"""Rendezvous of ranks on several hosts."""

from __future__ import annotations

import socket
import threading

import pytest

from rlhf.zero.process_group import connect_store


def test_the_rendezvous_store_listens_on_its_own_address_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    rendezvous = f"tcp://127.0.0.1:{port}"
    stores = {}
    other = threading.Thread(target=lambda: stores.update(other=connect_store(rendezvous, 1, 2, 20.0)))
    other.start()
    stores["first"] = connect_store(rendezvous, 0, 2, 20.0)  # waits for the other
    other.join(timeout=20)
    stores["first"].set("word", "heard")
    assert stores["other"].get("word") == b"heard"
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=5)
