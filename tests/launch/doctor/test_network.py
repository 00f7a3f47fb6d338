"""Ports and reachability, over real sockets of this machine."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from launch.doctor.network import LOCAL, Listener, Ports, Target, check_ports, check_reach, gather, unreached
from rlhf.ports import free_port

GOOD = Ports(taken=(), problem="", first=32768, last=60999)


def test_ports_of_this_machine(tmp_path: Path) -> None:
    file = tmp_path / "range"
    file.write_text("40000\t50000\n")
    found = gather(LOCAL, file)
    assert (found.problem, found.first, found.last) == ("", 40000, 50000)


def test_an_address_that_is_not_this_machines() -> None:
    found = gather("203.0.113.1")  # kept for documentation: nobody has it
    assert found.problem and check_ports(found, in_cluster=True).status == "failed"


@pytest.mark.parametrize(
    ("facts", "in_cluster", "status"),
    [
        (GOOD, False, "ok"),
        (replace(GOOD, taken=(6379,)), False, "warning"),
        (replace(GOOD, taken=(6379,)), True, "ok"),
        (replace(GOOD, last=33000), False, "warning"),
        (replace(GOOD, problem="OSError: [Errno 98] Address already in use"), True, "failed"),
    ],
)
def test_ports(facts: Ports, in_cluster: bool, status: str) -> None:
    assert check_ports(facts, in_cluster).status == status


def test_a_test_socket_is_reached_again_and_again() -> None:
    with Listener(LOCAL) as listener:
        assert unreached([listener.target] * 3) == {}


def test_what_is_not_reached_is_named_with_the_reason() -> None:
    closed = Target(address=LOCAL, port=free_port(LOCAL), word="x")
    with Listener(LOCAL) as listener:
        problems = unreached([listener.target, closed])
    assert list(problems) == [f"{LOCAL}:{closed.port}"]
    found = check_reach(problems, 2)
    assert found.status == "failed" and "ConnectionRefusedError" in found.found and "firewall" in found.fix


def test_another_program_at_the_port_is_not_taken_for_the_node() -> None:
    with Listener(LOCAL) as listener:
        problems = unreached([replace(listener.target, word="0" * 16)])
    assert "another program answered" in next(iter(problems.values()))


def test_a_program_that_says_nothing_is_late() -> None:
    with socket.create_server((LOCAL, 0)) as silent:
        problems = unreached([Target(address=LOCAL, port=silent.getsockname()[1], word="x")], seconds=0.2)
    assert "TimeoutError" in next(iter(problems.values()))


def test_a_closed_socket_listens_no_longer() -> None:
    with Listener(LOCAL) as listener:
        target = listener.target
    assert len(unreached([target])) == 1


def test_reach() -> None:
    assert check_reach({}, 0).status == "not applicable"
    assert check_reach({}, 1).found == "reaches 1 other node at a free port"
