"""Failures of actors, with a real Ray: passed on, named, and never waited for without end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from actors.cluster import cluster, node_address
from actors.waiting import Moment, wait
from actors.worker import Worker
from rlhf.errors import MachineryError, UserError

MOMENT = Moment(phase="update", step=7)


class Held:
    """What the worker holds in these tests."""

    def double(self, x: int) -> int:
        return 2 * x

    def users_mistake(self) -> None:
        raise UserError("the recipe is wrong", "because", "mend it")

    def bug(self) -> None:
        raise ZeroDivisionError("one by zero")

    def die(self) -> None:
        os._exit(1)

    def hang(self) -> None:
        time.sleep(60)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray of our own."""
    ray.cloudpickle.register_pickle_by_value(__import__(__name__, fromlist=["Held"]))
    with cluster(None, has_gpus=False):
        yield


@pytest.fixture
def worker(local_ray: None, tmp_path: Path) -> Iterator[ray.actor.ActorHandle]:
    """A worker that holds ``Held``."""
    actor = ray.remote(Worker).options(num_cpus=0).remote("policy rank 3", tmp_path / "log")
    ray.get(actor.build.remote(Held), timeout=60)
    yield actor
    ray.kill(actor)


def ask(worker: ray.actor.ActorHandle, method: str, *arguments: int, seconds: float = 30) -> list:  # type: ignore[type-arg]
    return wait([worker.call.remote(method, *arguments)], ["policy rank 3"], MOMENT, seconds)


def test_values_come_in_the_order_of_the_references(worker: ray.actor.ActorHandle) -> None:
    refs = [worker.call.remote("double", x) for x in (1, 2, 3)]
    assert wait(refs, ["a", "b", "c"], MOMENT, 30) == [2, 4, 6]


def test_a_users_mistake_is_passed_on_whole(worker: ray.actor.ActorHandle) -> None:
    with pytest.raises(UserError) as caught:
        ask(worker, "users_mistake")
    assert (caught.value.what, caught.value.why, caught.value.fix) == ("the recipe is wrong", "because", "mend it")


def test_a_bug_names_role_rank_node_process_and_what_it_did(worker: ray.actor.ActorHandle) -> None:
    with pytest.raises(
        MachineryError,
        match=r"policy rank 3 \(node 127\.0\.0\.1, process \d+\) failed in bug: ZeroDivisionError: one by",
    ):
        ask(worker, "bug")


def test_a_death_names_the_actor_and_the_moment(worker: ray.actor.ActorHandle) -> None:
    with pytest.raises(MachineryError, match="policy rank 3 died during update of step 7"):
        ask(worker, "die")


def test_a_deadline_names_who_is_late(worker: ray.actor.ActorHandle) -> None:
    with pytest.raises(MachineryError, match="no answer within 1 s during update of step 7 from policy rank 3"):
        ask(worker, "hang", seconds=1)


def test_own_ray_is_on_loopback(local_ray: None) -> None:
    assert {node["NodeManagerAddress"] for node in ray.nodes()} == {"127.0.0.1"}
    assert node_address() == "127.0.0.1"
