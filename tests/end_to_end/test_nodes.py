"""Two nodes on one machine, each with a raylet of its own, one of which is killed in the middle of a run.

``test_hosts.py``, which ``make chaos`` runs, does the same with hosts that have networks of their own.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from rlhf.storage.jsonl import read_lines
from tests.end_to_end.faults import Run, from_nothing
from tests.end_to_end.small import make_data_and_reward

pytestmark = pytest.mark.slow  # a run beside which two raylets start; test_survival.py loses actors
STEPS, STORE = 8, 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class Survived:
    """A run that is over, who was on the node that was killed, and who was on the other."""

    path: Path
    code: int
    said: str
    lost: set[str]
    kept: set[str]

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_lines(self.path / "events.jsonl") if event["kind"] == kind]


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[tuple[Cluster, Any]]:
    """Ray's own cluster of several raylets on one host."""
    head = {"num_cpus": 2, "object_store_memory": STORE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster, cluster.add_node(num_cpus=2, object_store_memory=STORE)
    cluster.shutdown()


@pytest.fixture(scope="module")
def survived(two_nodes: tuple[Cluster, Any], tmp_path_factory: pytest.TempPathFactory) -> Survived:
    """The second node's raylet is killed while the policy learns; what was on it goes with it."""
    cluster, node = two_nodes
    folder = tmp_path_factory.mktemp("nodes")
    make_data_and_reward(folder)
    settings = [f"ppo.steps={STEPS}", f"placement.ray_address={cluster.address}", "checkpoint.every=3"]
    run = Run(folder, "nodes", [*from_nothing(folder, "nodes"), *settings])
    members = run.wait_for(2, "update")["members"]
    lost = {name for name, member in members.items() if member["node_id"] == node.node_id}
    [raylet] = node.all_processes["raylet"]
    os.kill(raylet.process.pid, signal.SIGKILL)
    return Survived(path=run.path, code=run.end(), said=run.said(), lost=lost, kept=set(members) - lost)


def test_roles_were_on_both_nodes(survived: Survived) -> None:
    """Ray's spreading does its best and promises no even share: how many went with the node varies."""
    assert survived.lost and survived.kept


def test_the_run_ends_well_on_the_node_that_is_left(survived: Survived) -> None:
    assert survived.code == 0, survived.said
    rows = read_lines(survived.path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(STEPS))
    assert all(row["rollout/dropped"] == 0 for row in rows)


def test_everybody_who_was_on_the_other_node_was_replaced(survived: Survived) -> None:
    assert survived.lost <= {event["member"] for event in survived.events("actor_replaced")}
