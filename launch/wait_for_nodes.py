"""``python -m launch.wait_for_nodes ADDRESS NODES [SECONDS]``: waits until a cluster has this many nodes.

A run is placed on the nodes that exist at its start, and the nodes of a cluster do not start at the same time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from rlhf.errors import MachineryError, RLHFError, UserError

USAGE = "python -m launch.wait_for_nodes ADDRESS NODES [SECONDS]"
SECONDS = 300.0
POLL_SECONDS = 0.5


def wait_for_nodes(address: str, wanted: int, seconds: float = SECONDS) -> None:
    """Wait until the cluster at ``address`` has ``wanted`` living nodes.

    Raises:
        MachineryError: the nodes are missing after the timeout.
    """
    from actors.cluster import join, nodes

    end = time.monotonic() + seconds
    while True:
        try:
            join(address)
            break
        except MachineryError:
            if time.monotonic() > end:
                raise
            time.sleep(POLL_SECONDS)
    while len(nodes()) < wanted:
        if time.monotonic() > end:
            there = ", ".join(sorted(node["NodeManagerAddress"] for node in nodes()))
            raise MachineryError(
                f"{len(nodes())} of {wanted} nodes joined {address} within {seconds:.0f} s: {there}; "
                "the logs of the others say why"
            )
        time.sleep(POLL_SECONDS)


def _parse(arguments: Sequence[str]) -> tuple[str, int, float]:
    """Address, number of nodes, and seconds."""
    try:
        address, wanted, seconds = (*arguments, str(SECONDS))[:3]
        if len(arguments) > 3:
            raise ValueError(len(arguments))
        return address, int(wanted), float(seconds)
    except ValueError:
        given = " ".join(arguments) or "nothing"
        raise UserError(f"{given} is not an address and a number of nodes", fix=USAGE) from None


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    try:
        address, wanted, seconds = _parse(arguments)
        wait_for_nodes(address, wanted, seconds)
    except RLHFError as error:
        print(f"launch.wait_for_nodes: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
