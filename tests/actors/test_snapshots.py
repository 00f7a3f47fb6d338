"""Snapshots whose nodes are lost: real ranks on a cluster of three raylets, two of which are killed in turn."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import GetTimeoutError, ObjectLostError

from actors.blocks import Block
from actors.cluster import worker_environment
from actors.object_copies import first_available
from actors.snapshots import Snapshot, SnapshotCopier, SnapshotShard
from rlhf.config.schema import RoleConfig
from rlhf.run_state import StageState
from tests.actors.test_blocks import BLOCK

ROOT = Path(__file__).parents[2]
READ = [["rank_0.pt", "topology.json"], ["rank_1.pt", "topology.json"]]
"""Each rank's own files, and those that all read."""


@pytest.fixture(scope="module")
def restores(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two restores came to."""
    file = tmp_path_factory.mktemp("copying") / "told.json"
    command = [sys.executable, "-m", "tests.actors.copying", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert file.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    told: list[dict[str, Any]] = json.loads(file.read_text())
    return told


def test_a_lost_nodes_shard_is_read_from_its_neighbour(restores: list[dict[str, Any]]) -> None:
    assert restores[0]["step"] == 1 and restores[0]["held"] == [[1, READ[0]], [1, READ[1]]]
    assert "snapshot_lost" not in dict(restores[0]["events"])


def test_one_that_is_lost_before_it_is_copied_gives_way_to_the_last_copied_one(restores: list[dict[str, Any]]) -> None:
    assert restores[1]["step"] == 2 and restores[1]["held"] == [[2, READ[0]], [2, READ[1]]]
    assert ["snapshot_lost", 3] in restores[1]["events"]


def lost() -> ray.ObjectRef:
    """A reference whose value cannot be had."""

    def fail() -> None:
        raise ObjectLostError("ab" * 28, None, "")

    return ray.remote(num_cpus=0, max_retries=0)(fail).remote()


def test_the_first_copy_that_is_there_is_read(local_ray: None) -> None:
    one, other = ray.put(1), ray.put(2)
    assert (first_available([one], 30), first_available([one, other], 30), first_available([lost(), other], 30)) == (
        1,
        1,
        2,
    )
    with pytest.raises(ObjectLostError):
        first_available([lost(), lost()], 30)


def test_a_copy_that_does_not_come_is_not_awaited_for_ever(local_ray: None) -> None:
    never = ray.remote(num_cpus=0)(lambda: time.sleep(600)).remote()
    assert first_available([never, ray.put(2)], 1.0) == 2
    with pytest.raises(GetTimeoutError):
        first_available([never], 0.2)
    ray.cancel(never, force=True)


class Copying:
    """A copier on a single node, which is taken for two."""

    def __init__(self, limit: float = 60) -> None:
        self.here, self.events = ray.get_runtime_context().get_node_id(), list[tuple[str, dict[str, Any]]]()
        environment = worker_environment(1, own_ray=True)
        self.copier = SnapshotCopier[StageState](
            environment, lambda kind, **rest: self.events.append((kind, rest)), limit
        )

    def snapshot(self, step: int, own: ray.ObjectRef | None = None, node: str | None = None) -> Snapshot[StageState]:
        value = ray.put({"x": np.full(1000, step)}) if own is None else own
        shard = SnapshotShard(own=(value,), shared=(ray.put({}),), node=node or self.here)
        return Snapshot(state=StageState(step=step), shards={"policy": [shard]}, pregenerated_blocks=(), score=None)

    def settle(self, snapshot: Snapshot[StageState]) -> Snapshot[StageState]:
        end = time.monotonic() + 60
        while True:
            snapshot = self.copier.copy(snapshot, [self.here, "another"])
            if self.copier._copying is None:
                return snapshot
            assert time.monotonic() < end
            time.sleep(0.02)


@pytest.fixture
def copying(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> Copying:
    """Both names stand for the one node."""
    made = Copying()
    monkeypatch.setattr("actors.snapshots.neighbours", lambda nodes: dict.fromkeys(nodes, made.here))
    return made


def test_copies_are_objects_of_their_own(copying: Copying) -> None:
    copied = copying.settle(copying.snapshot(3))
    [shard] = copied.shards["policy"]
    assert [len(shard.own), len(shard.shared)] == [2, 2] and len(set(shard.own)) == 2
    assert all(ray.get(copy)["x"][0] == 3 for copy in shard.own)
    assert copying.copier.complete is copied and copying.settle(copied) is copied
    assert copied.parts("policy", RoleConfig()) == [[shard.shared, shard.own]]


def test_a_copy_that_fails_is_told_once_and_the_last_complete_one_stays(copying: Copying) -> None:
    complete = copying.settle(copying.snapshot(3))
    broken = copying.snapshot(4, own=lost())
    assert copying.settle(broken) is broken and copying.settle(broken) is broken
    [(kind, details)] = copying.events
    assert (kind, details["step"]) == ("snapshot_copy_failed", 4) and details["error"]
    assert copying.copier.complete is complete
    assert copying.settle(copying.snapshot(5)) is copying.copier.complete is not complete


def test_a_newer_snapshot_waits_for_the_copies_of_the_one_before(copying: Copying) -> None:
    slow, begun = ray.remote(num_cpus=0)(lambda: (time.sleep(1), {"x": np.zeros(10)})[1]).remote(), time.monotonic()
    copying.copier.copy(copying.snapshot(1, own=slow), [copying.here])
    newest = copying.snapshot(2)
    assert copying.copier.copy(newest, [copying.here]) is newest and copying.copier.complete is None
    assert time.monotonic() - begun < 0.9, "nothing is awaited"
    copied = copying.settle(newest)
    assert copied.state.step == 2 and copying.copier.complete is copied


def test_copies_that_take_too_long_are_given_up(copying: Copying) -> None:
    copying.copier._limit = 0.1
    never = ray.remote(num_cpus=0)(lambda: time.sleep(600)).remote()
    copying.settle(copying.snapshot(1, own=never))
    assert [kind for kind, _ in copying.events] == ["snapshot_copy_failed"]
    ray.cancel(never, force=True)


def test_on_a_single_node_nothing_is_copied(local_ray: None) -> None:
    alone = Copying()
    given = alone.snapshot(1)
    assert alone.copier.copy(given, [alone.here]) is given
    unknown = alone.snapshot(2, node="gone")
    assert alone.copier.copy(unknown, [alone.here, "another"]) is unknown
    assert alone.copier._copying is None and alone.copier.complete is None and alone.events == []


def test_rollouts_of_the_next_step_are_copied_with_it(copying: Copying) -> None:
    """To the controller's node: if that is lost, so is the run."""
    block = Block(rollouts=ray.put(BLOCK), samples=2, set_aside=0, tokens=9, stream="engine 0/1")
    copied = copying.settle(replace(copying.snapshot(3), pregenerated_blocks=[block]))
    [kept] = copied.pregenerated_blocks
    assert replace(kept, rollouts=block.rollouts) == block and kept.rollouts != block.rollouts
    assert ray.get(kept.rollouts).seeds.tolist() == BLOCK.seeds.tolist()
