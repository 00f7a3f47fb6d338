"""Snapshots of a stage in the nodes' memory, and second copies of them on other nodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.blocks import Block
from actors.object_copies import store_here
from rlhf.config.schema import RoleConfig
from rlhf.errors import first_line
from rlhf.placement.parallelism import ranks_with_shared_files
from rlhf.recovery.neighbours import neighbours
from rlhf.run_state import StageState

State = TypeVar("State", bound=StageState)
Copies = tuple[ray.ObjectRef, ...]
"""References to the copies of one object; the first is on the node of the rank that made it."""


@dataclass(frozen=True, kw_only=True)
class SnapshotShard:
    """One rank's part of a snapshot: the files that it alone reads again, those that all ranks read, and its node."""

    own: Copies
    shared: Copies
    node: str | None


@dataclass(frozen=True, kw_only=True)
class Snapshot(Generic[State]):
    """The state after a step, the shards of the trained groups, and the next step's rollouts if already generated.

    ``shards`` has each rank's, by group; ``score`` ranks the model, higher is better.
    """

    state: State
    shards: Mapping[str, Sequence[SnapshotShard]]
    pregenerated_blocks: Sequence[Block]
    score: float | None

    def parts(self, role: str, config: RoleConfig) -> list[list[Copies]]:
        """What each rank of a group restores from: its own files, and those that all ranks read."""
        shards = self.shards[role]
        shared = [shards[rank].shared for rank in ranks_with_shared_files(config)]
        return [[*shared, shard.own] for shard in shards]

    @property
    def nodes(self) -> set[str | None]:
        """Nodes on which the shards were made; None for one that is not known."""
        return {shard.node for shards in self.shards.values() for shard in shards}


@dataclass(frozen=True, kw_only=True)
class Copying(Generic[State]):
    """A snapshot that is being copied since ``begun``, its copies, and the tasks' markers."""

    source: Snapshot[State]
    copied: Snapshot[State]
    markers: Sequence[ray.ObjectRef]
    begun: float


class SnapshotCopier(Generic[State]):
    """Makes a second copy of each shard of a snapshot on another node, by a task there, so that no step waits for it.

    One snapshot is copied at a time. Until a newer one is copied, the last one with copies is kept.
    """

    def __init__(self, environment: Mapping[str, str], report: Callable[..., None], limit: float) -> None:
        """Copy nothing yet.

        Args:
            environment: environment variables of the tasks.
            report: writes an event, given its kind and details.
            limit: seconds after which copies are given up.
        """
        self._task: Any = ray.remote(num_cpus=0, max_retries=0, runtime_env={"env_vars": dict(environment)})(store_here)
        self._report, self._limit = report, limit
        self._copying: Copying[State] | None = None
        self._tried: Snapshot[State] | None = None
        """The last snapshot of which copies were begun, or the same with its copies."""
        self.complete: Snapshot[State] | None = None
        """The newest snapshot of which every shard has a second copy."""

    def copy(self, newest: Snapshot[State], nodes: Iterable[str]) -> Snapshot[State]:
        """Begin to copy a snapshot, unless another one is being copied; returns it with its copies once it has them.

        Args:
            nodes: nodes of the run. With a single one nothing is copied.
        """
        finished = self._finished()
        if finished is not None and newest is finished.source:
            newest = finished.copied
        if self._copying is None and newest is not self._tried:
            self._begin(newest, neighbours(nodes))
        return newest

    def forget(self, snapshot: Snapshot[State]) -> None:
        """Drop a snapshot that is lost."""
        if self.complete is snapshot:
            self.complete = None

    def _finished(self) -> Copying[State] | None:
        """The copies that are complete by now; those that failed are reported."""
        copying = self._copying
        if copying is None:
            return None
        left = ray.wait(list(copying.markers), num_returns=len(copying.markers), timeout=0, fetch_local=False)[1]
        seconds = time.monotonic() - copying.begun
        if left and seconds < self._limit:
            return None
        self._copying = None
        try:
            ray.get(list(copying.markers), timeout=0)
        except RayError as error:
            step = copying.source.state.step
            self._report("snapshot_copy_failed", step=step, seconds=round(seconds, 3), error=first_line(error))
            return None
        self.complete = self._tried = copying.copied
        return copying

    def _begin(self, snapshot: Snapshot[State], targets: Mapping[str, str]) -> None:
        self._tried = snapshot
        if not targets or not snapshot.nodes <= targets.keys():
            return
        markers = list[ray.ObjectRef]()

        def copied(shard: SnapshotShard) -> SnapshotShard:
            assert shard.node is not None
            own, shared, marker = self._store(targets[shard.node], shard.own[0], shard.shared[0])
            markers.append(marker)
            return replace(shard, own=(*shard.own, own), shared=(*shard.shared, shared))

        shards = {role: [copied(shard) for shard in each] for role, each in snapshot.shards.items()}
        blocks = list(snapshot.pregenerated_blocks)
        if blocks:  # they are small: the controller's node has to outlive them in any case
            here = ray.get_runtime_context().get_node_id()
            *stored, marker = self._store(here, *(block.rollouts for block in blocks))
            blocks = [replace(block, rollouts=rollouts) for block, rollouts in zip(blocks, stored, strict=True)]
            markers.append(marker)
        whole = replace(snapshot, shards=shards, pregenerated_blocks=blocks)
        self._copying = Copying(source=snapshot, copied=whole, markers=markers, begun=time.monotonic())

    def _store(self, node: str, *refs: ray.ObjectRef) -> list[ray.ObjectRef]:
        """Have a task on a node store copies of objects; returns references to them, and to the task's marker."""
        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        stored = self._task.options(num_returns=len(refs) + 1, scheduling_strategy=strategy).remote(*refs)
        return list(stored)
