"""Addresses and interfaces of this machine, which may have several networks."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

import psutil

ANYWHERE = "192.0.2.1"
"""An address of no network (RFC 5737): the way to it is the default route."""
GLOO = "GLOO_SOCKET_IFNAME"
INTERFACE = "RLHF_INTERFACE"
"""Variable that names the interface by which other nodes reach this machine."""


def address_toward(host: str = ANYWHERE) -> str:
    """IPv4 address of this machine in the network by which it reaches ``host``; nothing is sent.

    Raises:
        OSError: the host's name is unknown, or there is no way to it.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # of a datagram socket: the kernel only looks up the route
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str | None:
    """Name of the interface that has an address; None if none has it."""
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, entries in interfaces if any(entry.address == address for entry in entries)), None)


def address_on(interface: str) -> str | None:
    """IPv4 address of this machine on an interface; None if there is none."""
    entries = psutil.net_if_addrs().get(interface, ())
    return next((entry.address for entry in entries if entry.family == socket.AF_INET), None)


def use_interface_of(address: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Have gloo use the network in which ``address`` is, unless the user has chosen one.

    By itself it takes the address of the host's name, which may be 127.0.1.1, or in a network that joins no nodes.
    """
    if GLOO not in environment and (name := interface_of(address)) is not None:
        environment[GLOO] = name
