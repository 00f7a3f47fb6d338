"""The ranks of one role as one: started together, told the same, waited for with a deadline, replaced together."""

from __future__ import annotations

import tempfile
import uuid
from pathlib import Path
from typing import Any

import ray

from actors.cluster import worker_environment
from actors.placement import Placement
from actors.supervisor import Supervisor
from actors.waiting import START, Moment, fetch, wait
from actors.worker import PULSE, Builder, Worker
from rlhf.placement.pools import Part, Resting
from rlhf.zero.rank import Rank

REST = "rest"
"""The work in which a role makes room."""
PARTS: dict[Resting, tuple[Part, ...]] = {"none": (), "states": ("states",), "all": ("states", "weights")}


class Group:
    """All ranks of a role. ``start`` returns at once; ``ready`` waits until every rank has built what it holds."""

    def __init__(self, role: str, ranks: int, placement: Placement, logs: Path, supervisor: Supervisor) -> None:
        self.role, self.config = role, placement.recipe.placement
        self.device, self.logs, self.supervisor = placement.device, logs, supervisor
        self.names = [f"{role} rank {rank}" for rank in range(ranks)]
        self._placement = placement
        environment = worker_environment(self.config.threads_per_rank, self.config.ray_address is None)
        self._environment = {"env_vars": environment}
        self.resting = placement.resting(role)
        """What of it lies in the host's memory between its phases; ``None``: it is never asked to rest."""
        self._build: tuple[Any, ...] = ()
        self._met: Path | None = None
        """File in which the ranks met."""
        self._building: list[ray.ObjectRef] = []
        self._spawn()

    def _spawn(self) -> None:
        make = ray.remote(concurrency_groups={PULSE: 1})(Worker)
        self.workers = [
            make.options(**self._options(rank)).remote(name, (self.logs / f"{self.role}-{rank}.log").resolve())
            for rank, name in enumerate(self.names)
        ]
        for name, worker in zip(self.names, self.workers, strict=True):
            self.supervisor.started(name, worker)

    def _options(self, rank: int) -> dict[str, Any]:
        return {"runtime_env": self._environment, **self._placement.place(self.role, rank)}

    def start(self, builder: Builder, *arguments: Any) -> None:
        """Have every rank build ``builder(*arguments, rank)``."""
        self._build = (builder, *arguments)
        meeting = self._meeting()
        self._building = [
            worker.build.remote(*self._build, self._rank(index, meeting)) for index, worker in enumerate(self.workers)
        ]

    def ready(self) -> None:
        """Wait until every rank has built what it holds."""
        for where in wait(self._building, self.names, Moment(phase=START), self.supervisor.patience):
            self.supervisor.built(where)

    def rebuild(self) -> None:
        """End every rank, and have new ones build what these built: ranks that lost a peer are of no more use."""
        self.stop()
        self.supervisor.end(self.names)  # all at once: their number may be in the hundreds
        self._spawn()
        self.start(*self._build)
        self.ready()

    def meeting_point(self) -> tuple[str, int]:
        """An address and a free port on the first rank's node."""
        ref = self.workers[0].meeting_point.remote()
        return fetch(ref, self.names[0], Moment(phase=START), self.supervisor.patience)

    def _meeting(self) -> str:
        """Where the ranks meet: a file in a Ray of our own, which nobody outside can reach, else a port of a node."""
        if self.config.ray_address is None:
            self._met = Path(tempfile.gettempdir()) / f"rlhf-{uuid.uuid4().hex}"
            return f"file://{self._met}"
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

    def compute(self, method: str, *arguments: Any) -> list[tuple[ray.ObjectRef, ray.ObjectRef]]:
        """The same for results that stay where they are: of each rank a reference to it, and one that tells when it is
        there."""
        return [worker.compute.options(num_returns=2).remote(method, *arguments) for worker in self.workers]

    def ask(self, method: str, *arguments: Any, moment: Moment) -> list[Any]:
        """Call a method on every rank and wait for the answers."""
        return wait(self.call(method, *arguments), self.names, moment, self.supervisor.patience)

    def rest(self, moment: Moment, keeps_weights: bool = False) -> None:
        """Have every rank leave the GPU to others, as far as it is to. What is used later comes back by itself."""
        if self.resting is not None:
            parts = [part for part in PARTS[self.resting] if part != "weights" or not keeps_weights]
            self.ask("rest", parts, moment=moment.of(REST))

    def stop(self) -> None:
        """End every process of the group."""
        for worker in self.workers:
            ray.kill(worker, no_restart=True)
        if self._met is not None:
            self._met.unlink(missing_ok=True)
