"""Rendezvous of ranks on several hosts."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rlhf.errors import LostError
from rlhf.placement.pools import section_of
from rlhf.ports import free_port
from rlhf.zero.process_group import Rank, connect_store, meet


def test_the_rendezvous_store_listens_on_its_own_address_alone() -> None:
    port = free_port()
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


def rank(number: int, world: int, rendezvous: str, seconds: float = 20.0) -> Rank:
    return Rank(
        rank=number,
        world=world,
        rendezvous=rendezvous,
        device="cpu",
        threads=1,
        timeout_seconds=60.0,
        rendezvous_seconds=seconds,
        ranks_key="placement.policy.ranks",
    )


@pytest.fixture(params=["file", "tcp"])
def rendezvous(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path / 'met'}" if request.param == "file" else f"tcp://127.0.0.1:{free_port()}"


def test_ranks_meet(rendezvous: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        stores = list(pool.map(lambda number: meet(rank(number, 3, rendezvous)), range(3)))
    stores[0].set("word", "heard")
    assert stores[2].get("word") == b"heard"


def test_a_late_rendezvous_names_the_missing_ranks_and_its_keys(rendezvous: str) -> None:
    def come(number: int) -> str:
        with pytest.raises(LostError) as caught:
            meet(rank(number, 4, rendezvous, 1.0))
        return str(caught.value)

    with ThreadPoolExecutor(2) as pool:
        first, other = pool.map(come, (0, 2))
    assert f"placement.policy.ranks = 4 at {rendezvous}" in first
    assert "after 1 s there is no sign of rank 1, 3." in first
    for message in (first, other):
        assert "placement.start_timeout_seconds" in message and "logs/" in message


def test_a_rendezvous_that_is_not_reached_is_named() -> None:
    with pytest.raises(LostError, match=r"at tcp://127\.0\.0\.1:\d+ failed: rank 1 cannot connect to it: ") as caught:
        meet(rank(1, 2, f"tcp://127.0.0.1:{free_port()}", 1.0))
    assert caught.value.kind == "failed"


def test_a_port_that_was_taken_meanwhile_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(LostError, match="rank 0 cannot connect to it: .*in use"):
            meet(rank(0, 2, place, 1.0))


@pytest.mark.parametrize(
    ("role", "section"), [("policy", "policy"), ("reward model", "reward"), ("reward", "reward"), ("judge", "reward")]
)
def test_the_section_of_a_role(role: str, section: str) -> None:
    assert section_of(role) == section
