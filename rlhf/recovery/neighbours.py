"""Which node keeps the second copy of what another node holds in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def neighbours(nodes: Iterable[str]) -> Mapping[str, str]:
    """The node that keeps the copies of each node: the next one in a ring of all; empty for fewer than two nodes.

    In a ring every node keeps the copies of one other, and of two nodes that fail at once nothing is lost unless they
    are next to each other.
    """
    ring = sorted(set(nodes))
    return dict(zip(ring, [*ring[1:], ring[0]], strict=True)) if len(ring) > 1 else {}
