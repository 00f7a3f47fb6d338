"""``python -m launch.own_address [HOST]``: prints this machine's address in the network by which it reaches HOST.

Without HOST it is that of the default route. Nodes with several networks have several addresses, in no useful order.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rlhf.network import ANYWHERE, address_toward


def main(arguments: Sequence[str]) -> int:
    """Print the address; returns the exit code."""
    host = arguments[0] if arguments else ANYWHERE
    try:
        print(address_toward(host))
    except OSError as error:
        fix = "give the node's address to launch/head.sh or launch/worker.sh"
        print(f"launch.own_address: there is no way to {host}: {error.strerror}\n  fix: {fix}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
