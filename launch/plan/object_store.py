"""Bytes of Ray's object store on the fullest node of a run.

Snapshots take nearly all of it: each rank's part of the last one and of its successor, and on another node a copy of
each (``actors/snapshots.py``). Without enough of it Ray spills them to disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from launch.plan.members import PlannedRole, PlannedSlot
from launch.plan.memory import GIB

BYTES_PER_WEIGHT = 16
"""Most bytes of a snapshot or checkpoint per weight, as in ``rlhf/zero/checkpoint.py``, which imports torch."""
SNAPSHOTS = 2
"""Snapshots in the object store at a time: the last one and its successor."""
TRAVELLING = 4 * GIB
"""Allowance for what travels between actors: rollouts, scores, experience, and chunks of weights for other hosts."""


def snapshot_size(member: PlannedRole) -> int:
    """Bytes of all ranks' parts of a snapshot of a role."""
    return BYTES_PER_WEIGHT * member.trained


def snapshots_on_fullest_node(found: Sequence[PlannedRole], slots: Sequence[PlannedSlot]) -> int:
    """Most bytes of snapshots on a node: those of its ranks, and copies of those of another node, if there is one.

    Which node keeps whose copies is not known before the run: the fullest two are assumed to be neighbours.
    """
    of_rank = {member.role: snapshot_size(member) // member.config.ranks for member in found}
    held = Counter[int]()
    for slot in slots:
        held[slot.node] += of_rank.get(slot.role, 0)
    return SNAPSHOTS * sum(sorted(held.values(), reverse=True)[:2])


def object_store_bytes(found: Sequence[PlannedRole], slots: Sequence[PlannedSlot]) -> int:
    """Bytes of the object store that each node should have, in whole GiB: for ``ray start --object-store-memory``."""
    return store_for(snapshots_on_fullest_node(found, slots))


def store_for(held: int) -> int:
    """Bytes of an object store that keeps ``held`` bytes beside what travels, in whole GiB."""
    return -(-(held + TRAVELLING) // GIB) * GIB
