"""Addresses and interfaces, of this machine."""

from __future__ import annotations

import socket

import psutil

from rlhf.network import GLOO, address_toward, interface_of, use_interface_of


def test_the_address_is_that_of_the_network_toward_a_host() -> None:
    assert address_toward("127.0.0.1") == "127.0.0.1"
    assert address_toward("localhost") == "127.0.0.1"


def test_an_interface_is_found_by_its_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.7") is None
    own = [
        (name, e.address) for name, all_ in psutil.net_if_addrs().items() for e in all_ if e.family == socket.AF_INET
    ]
    assert all(interface_of(address) == name for name, address in own)


def test_gloo_gets_the_interface_unless_the_user_chose_one() -> None:
    environment: dict[str, str] = {}
    use_interface_of("127.0.0.1", environment)
    assert environment == {GLOO: "lo"}
    use_interface_of("192.0.2.7", environment := {})
    assert environment == {}
    use_interface_of("127.0.0.1", environment := {GLOO: "eth1"})
    assert environment == {GLOO: "eth1"}
