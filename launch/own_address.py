"""``python -m launch.own_address [HOST]``: prints this machine's address in the network by which it reaches HOST.

Without HOST it is that of the default route. Nodes with several networks have several addresses, in no useful order.
``RLHF_INTERFACE=ib0`` chooses that of an interface.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from rlhf.network import ANYWHERE, INTERFACE, address_on, address_toward


def main(arguments: Sequence[str]) -> int:
    """Print the address; returns the exit code."""
    if chosen := os.environ.get(INTERFACE):
        return _print_address_on(chosen)
    host = arguments[0] if arguments else ANYWHERE
    try:
        print(address_toward(host))
    except OSError as error:
        fix = f"give the node's address to launch/head.sh or launch/worker.sh, or name its interface in {INTERFACE}"
        print(f"launch.own_address: there is no way to {host}: {error.strerror}\n  fix: {fix}", file=sys.stderr)
        return 3
    return 0


def _print_address_on(interface: str) -> int:
    address = address_on(interface)
    if address is None:
        said = f"launch.own_address: {INTERFACE}={interface}: this machine has no IPv4 address on it"
        print(f"{said}\n  fix: name an interface that every node has, as `ip -4 address` lists them", file=sys.stderr)
        return 2
    print(address)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
