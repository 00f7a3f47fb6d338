"""The ranks of one role as one: started together, told the same, waited for with a deadline."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from actors.cluster import worker_environment
from actors.placement import Placement
from actors.waiting import Moment, fetch, wait
from actors.worker import Worker
from rlhf.zero.process_group import Rank


class Group:
    """All ranks of a role. ``start`` returns at once; ``ready`` waits until every rank has built what it holds."""

    def __init__(self, role: str, ranks: int, placement: Placement, logs: Path, gpus: int = 1) -> None:
        """Args: gpus is the number of GPUs of each rank, where the run has any: 0 for one that computes on the CPU."""
        self.role, self.config = role, placement.recipe.placement
        self.device = placement.device
        environment = {"env_vars": worker_environment(self.config.threads_per_rank, self.config.ray_address is None)}
        self.names = [f"{role} rank {rank}" for rank in range(ranks)]
        self.workers = [
            ray.remote(Worker)
            .options(runtime_env=environment, **placement.place(rank, gpus))
            .remote(name, (logs / f"{role}-{rank}.log").resolve())
            for rank, name in enumerate(self.names)
        ]
        self._building: list[ray.ObjectRef] = []

    def start(self, builder: Callable[..., Any], *arguments: Any) -> None:
        """Have every rank build ``builder(*arguments, rank)``."""
        meeting = self._meeting()
        self._building = [
            worker.build.remote(builder, *arguments, self._rank(index, meeting))
            for index, worker in enumerate(self.workers)
        ]

    def ready(self) -> None:
        """Wait until every rank has built what it holds."""
        self.names = wait(self._building, self.names, Moment(phase="start"), self.config.start_timeout_seconds)

    def meeting_point(self) -> tuple[str, int]:
        """An address and a free port on the first rank's node."""
        ref = self.workers[0].meeting_point.remote()
        return fetch(ref, self.names[0], Moment(phase="start"), self.config.start_timeout_seconds)

    def _meeting(self) -> str:
        """Where the ranks meet: a file in a Ray of our own, which nobody outside can reach, else a port of a node."""
        if self.config.ray_address is None:
            return f"file://{tempfile.gettempdir()}/rlhf-{uuid.uuid4().hex}"
        address, port = self.meeting_point()
        return f"tcp://{address}:{port}"

    def _rank(self, index: int, meeting: str) -> Rank:
        return Rank(
            rank=index,
            world=len(self.workers),
            meeting=meeting,
            device=self.device,
            threads=self.config.threads_per_rank,
            timeout_seconds=self.config.phase_timeout_seconds,
        )

    def call(self, method: str, *arguments: Any) -> list[ray.ObjectRef]:
        """Call a method on every rank with the same arguments; references to the answers."""
        return [worker.call.remote(method, *arguments) for worker in self.workers]

    def ask(self, method: str, *arguments: Any, moment: Moment) -> list[Any]:
        """Call a method on every rank and wait for the answers."""
        return wait(self.call(method, *arguments), self.names, moment, self.config.phase_timeout_seconds)

    def stop(self) -> None:
        """End every process of the group."""
        for worker in self.workers:
            ray.kill(worker, no_restart=True)
