"""Free ports of this machine."""

from __future__ import annotations

import socket


def free_port(address: str = "127.0.0.1") -> int:
    """A port of an address of this machine at which nobody listened a moment ago."""
    with socket.socket() as found:
        found.bind((address, 0))
        return int(found.getsockname()[1])
