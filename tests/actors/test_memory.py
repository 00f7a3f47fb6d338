"""Tests of memory requests to real actors, some of which do not answer."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import ray

from actors.memory import MemoryWatch
from rlhf.tracking.memory import ActorMemory

pytestmark = pytest.mark.usefixtures("local_ray")


@ray.remote(num_cpus=0)
class Holder:
    def __init__(self, host: float, seconds: float = 0.0) -> None:
        self.host, self.seconds = host, seconds

    def memory(self) -> ActorMemory:
        time.sleep(self.seconds)
        return ActorMemory(host=self.host, peak=None)

    def end(self) -> None:
        os._exit(1)


def until(watch: MemoryWatch, actors: dict[str, Any], expected: dict[str, float]) -> None:
    """Request repeatedly until the expected metrics arrive, within a deadline."""
    end = time.monotonic() + 60
    while (found := watch.metrics(actors)) != expected:
        assert time.monotonic() < end, found
        time.sleep(0.05)


def test_nobody_is_waited_for_and_who_is_gone_is_left_out() -> None:
    watch = MemoryWatch()
    actors = {"policy rank 0": Holder.remote(2.0), "policy rank 1": Holder.remote(1.0)}
    stuck = {"rollout engine 0": Holder.remote(9.0, 3600.0)}
    assert watch.metrics(actors | stuck) == {}
    until(watch, actors | stuck, {"memory/policy_host_gib": 3.0})
    actors["policy rank 1"].end.remote()
    until(watch, actors, {"memory/policy_host_gib": 2.0})
    actors["policy rank 1"] = Holder.remote(5.0)
    until(watch, actors, {"memory/policy_host_gib": 7.0})
    for actor in (*actors.values(), *stuck.values()):
        ray.kill(actor)
