"""Loses nodes of a cluster of three raylets on which a trained group lies, and prints what each restore came to.

It runs in a separate process, because it joins a cluster while the tests share a local Ray. Each rank holds a number.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.checkpoint_manager import CheckpointManager
from actors.cluster import cluster, nodes
from actors.group import Group
from actors.supervisor import Supervisor
from actors.waiting import PhaseContext
from rlhf.checkpoints.removal import BackgroundRemoval
from rlhf.checkpoints.store import CheckpointStore
from rlhf.config.schema import CheckpointConfig, PlacementConfig, Recipe, RecoveryConfig, RoleConfig
from rlhf.placement.pools import Sharing
from rlhf.run_state import StageState
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.spans import PhaseTimer
from rlhf.zero.process_group import Rank
from tests.actors.raylets import STORE, make_cluster

BYTES = 2**20
"""Size of a rank's files: they stay on its node."""
CONTEXT = PhaseContext(phase="test")


class Number:
    """One rank of a role whose state is a number."""

    def __init__(self, rank: Rank) -> None:
        self.rank, self.number, self.read = rank.rank, 0, list[str]()

    def hold(self, number: int) -> None:
        self.number = number

    def held(self) -> tuple[int, list[str]]:
        """The number, and the files from which it was read."""
        return self.number, self.read

    def snapshot(self) -> tuple[dict[str, Any], dict[str, Any]]:
        content = [np.full(BYTES, self.number, np.uint8)]
        return {f"rank_{self.rank}.pt": content}, {"topology.json": content} if self.rank == 0 else {}

    def restore(self, *parts: Any) -> None:
        files = {name: content for part in parts for name, content in part.items()}
        self.number, self.read = int(files[f"rank_{self.rank}.pt"][0][0]), sorted(files)

    def load(self, folder: str) -> None:
        path = Path(folder, f"rank_{self.rank}.pt")
        self.number, self.read = path.read_bytes()[0], [path.name]


class Places:
    """Puts the first rank on one node for good, and the second on ``second``."""

    device = "cpu"

    def __init__(self, recipe: Recipe, first: str, second: str) -> None:
        self.recipe, self.first, self.second = recipe, first, second

    def offload_mode(self, role: str) -> None:
        """Nothing is offloaded."""

    def sharing(self, role: str) -> Sharing:
        return Sharing()

    def actor_options(self, role: str, rank: int) -> dict[str, Any]:
        node = self.second if rank else self.first
        return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


class Running:
    """A trained group with its snapshots and checkpoints."""

    def __init__(self, address: str, folder: Path, first: str, second: str) -> None:
        recipe = Recipe(
            name="x",
            checkpoint=CheckpointConfig(every=100),
            placement=PlacementConfig(ray_address=address, policy=RoleConfig(ranks=2)),
            recovery=RecoveryConfig(backoff_seconds=0.0),
        )
        self.events: list[tuple[str, int | None]] = []
        self.places: Any = Places(recipe, first, second)
        self.supervisor = Supervisor(recipe, self.event)
        self.group = Group("policy", 2, self.places, folder, self.supervisor)
        self.group.start(Number)
        self.group.ready()
        self.supervisor.serve(self.group.names)
        actors: Any = SimpleNamespace(
            recipe=recipe, trained={"policy": self.group}, supervisor=self.supervisor, rebuild=None
        )
        tracker: Any = SimpleNamespace(event=self.event, checkpoint=lambda *_: None, wandb_id="")
        self.start, removal = StageState(step=0), BackgroundRemoval()
        run = RunFolder.create(folder, "sft", "name: x\n", "digest")
        store = CheckpointStore(run.checkpoints, 2, 0, removal=removal.remove)
        self.checkpoints = CheckpointManager(actors, run, store, self.start, tracker, PhaseTimer(), removal)

    def event(self, kind: str, **details: Any) -> None:
        self.events.append((kind, details.get("step")))

    def snapshot(self, number: int) -> None:
        """The ranks hold a number, which is also the step, and it is kept."""
        self.group.ask("hold", number, context=CONTEXT)
        self.checkpoints.take_snapshot(replace(self.start, step=number))

    def copied(self, number: int) -> None:
        """The same, and copied to another node."""
        self.snapshot(number)
        wait_until(lambda: (self.checkpoints._copy_snapshot(), self.checkpoints._copier._copying is None)[1])

    def restore(self, second: str) -> dict[str, Any]:
        """Replace the ranks, one of which is then on another node, and restore them."""
        self.places.second, self.events = second, []
        self.group.rebuild()
        state, _ = self.checkpoints.restore()
        numbers = [list(held) for held in self.group.ask("held", context=CONTEXT)]
        return {"step": state.step, "held": numbers, "events": self.events}


def wait_until(is_done: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_done():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def main() -> None:
    """Write one JSON object for each lost node to the file that is named: Ray itself prints."""
    own = make_cluster()
    others = [own.add_node(num_cpus=1, object_store_memory=STORE) for _ in range(2)]

    def lose(node: Any) -> None:
        own.remove_node(node, allow_graceful=False)
        wait_until(lambda: node.node_id not in {each["NodeID"] for each in nodes()})

    with cluster(own.address):
        first, (one, two) = own.head_node.node_id, others
        running = Running(own.address, Path(sys.argv[1]).parent, first, one.node_id)
        checkpoints, told = running.checkpoints, list[Any]()
        running.copied(1)
        lose(one)
        told.append(running.restore(two.node_id))

        running.copied(2)
        never: Any = lambda newest, nodes: newest  # noqa: E731
        checkpoints._copier.copy = never  # type: ignore[method-assign]
        running.snapshot(3)  # the node is lost before it is copied
        lose(two)
        told.append(running.restore(first))
        Path(sys.argv[1]).write_text(json.dumps(told))
    own.shutdown()


if __name__ == "__main__":
    main()
