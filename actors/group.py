"""The ranks of one role as a group: started together, called together under deadlines, replaced together."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from actors.cluster import runtime_environment
from actors.placement import Placement
from actors.preload import ROLE_MODULES
from actors.snapshots import Copies
from actors.supervisor import Supervisor
from actors.waiting import START, PhaseContext, wait
from actors.worker import HEARTBEAT, Builder, Worker
from rlhf.placement.pools import OffloadMode, Part, section_of
from rlhf.recovery.leftovers import prefix
from rlhf.zero.process_group import Rank

OFFLOAD = "offload"
"""Method of a role that offloads its state."""
RENDEZVOUS_SHARE = 0.8
"""Fraction of ``placement.start_timeout_seconds`` after which ranks that wait for others report who is missing."""
COLLECT_FRACTION = 0.5
"""Fraction of a rank's deadline granted to the parts of a snapshot that it fetches: late parts are not its fault."""
PARTS: dict[OffloadMode, tuple[Part, ...]] = {"none": (), "states": ("states",), "all": ("states", "weights")}
"""Parts that are offloaded in each mode; with ``none`` only PyTorch's cache is freed."""


class Group:
    """All ranks of a role. ``start`` returns at once; ``ready`` waits until every rank has built its role."""

    def __init__(
        self,
        role: str,
        ranks: int,
        placement: Placement,
        logs: Path,
        supervisor: Supervisor,
        modules: Sequence[str] = ROLE_MODULES,
    ) -> None:
        """Start an actor for each rank, without waiting for them.

        Args:
            modules: what the ranks import, see ``runtime_environment``.
        """
        self.role, self.config = role, placement.recipe.placement
        self.device, self.logs, self.supervisor = placement.device, logs, supervisor
        self.names = [f"{role} rank {rank}" for rank in range(ranks)]
        self._placement = placement
        self._environment = runtime_environment(self.config, self.device, modules)
        self.offload_mode = placement.offload_mode(role)
        """See ``Placement.offload_mode``; None: ``offload`` does nothing."""
        self.sharing = placement.sharing(role)
        """How the role shares its GPUs with others."""
        self._build: tuple[Any, ...] = ()
        self._rendezvous_file: Path | None = None
        """File of the ranks' rendezvous, if it is a file."""
        self._building: list[ray.ObjectRef] = []
        self._spawn()

    def _spawn(self) -> None:
        make = ray.remote(concurrency_groups={HEARTBEAT: 1})(Worker)
        self.workers = [
            make.options(runtime_env=self._environment, **self._placement.actor_options(self.role, rank)).remote(
                name, (self.logs / f"{self.role}-{rank}.log").resolve()
            )
            for rank, name in enumerate(self.names)
        ]
        for name, worker in zip(self.names, self.workers, strict=True):
            self.supervisor.started(name, worker)

    def preload(self, builder: Builder) -> None:
        """Have every rank import what its role needs, without waiting; an error shows in ``start``."""
        for worker in self.workers:
            worker.preload.remote(builder)

    def start(self, builder: Builder, *arguments: Any) -> None:
        """Have every rank build ``builder(*arguments, rank)``."""
        self._build = (builder, *arguments)
        rendezvous = self._new_rendezvous()
        self._building = [
            worker.build.remote(*self._build, self._rank(i, rendezvous)) for i, worker in enumerate(self.workers)
        ]

    def ready(self) -> None:
        """Wait until every rank has built its role."""
        for where in wait(self._building, self.names, PhaseContext(phase=START), self.supervisor.deadlines):
            self.supervisor.built(where)

    def rebuild(self) -> None:
        """Replace all ranks with new ones built from the same arguments: ranks that lost a peer cannot continue."""
        self.stop()
        self.supervisor.terminate(self.names)  # in one call: a group may have hundreds of ranks
        self._spawn()
        self.start(*self._build)
        self.ready()

    def rendezvous_address(self) -> tuple[str, int]:
        """Address and free port on the first rank's node."""
        ref = self.workers[0].rendezvous_address.remote()
        found: tuple[str, int] = wait([ref], self.names[:1], PhaseContext(phase=START), self.supervisor.deadlines)[0]
        return found

    def _new_rendezvous(self) -> str:
        """URL of the ranks' rendezvous: a file, out of other users' reach, if this command started Ray; else TCP."""
        if self.config.ray_address is None:
            self._rendezvous_file = Path(tempfile.gettempdir()) / f"{prefix('rendezvous')}{uuid.uuid4().hex}"
            return f"file://{self._rendezvous_file}"
        address, port = self.rendezvous_address()
        return f"tcp://{address}:{port}"

    def _rank(self, index: int, rendezvous: str) -> Rank:
        return Rank(
            rank=index,
            world=len(self.workers),
            rendezvous=rendezvous,
            device=self.device,
            threads=self.config.threads_per_rank,
            timeout_seconds=self.config.phase_timeout_seconds,
            rendezvous_seconds=RENDEZVOUS_SHARE * self.config.start_timeout_seconds,
            ranks_key=f"placement.{section_of(self.role)}.ranks",
        )

    def call(self, method: str, *arguments: Any) -> list[ray.ObjectRef]:
        """Call a method on every rank with the same arguments; returns references to the results."""
        return [worker.call.remote(method, *arguments) for worker in self.workers]

    def compute(self, method: str, *arguments: Any) -> list[tuple[ray.ObjectRef, ray.ObjectRef]]:
        """Call a method on every rank; results stay on their nodes.

        Returns a pair of references for each rank: the result, and one that becomes ready with it and is small.
        """
        return [worker.compute.options(num_returns=2).remote(method, *arguments) for worker in self.workers]

    def score(self, method: str, blocks: Sequence[ray.ObjectRef], ranks: range) -> list[tuple[ray.ObjectRef, ...]]:
        """Have these ranks score a unit of blocks; returns the same references as ``compute``."""
        return [self.workers[rank].score.options(num_returns=2).remote(method, *blocks) for rank in ranks]

    def ask(self, method: str, *arguments: Any, context: PhaseContext) -> list[Any]:
        """Call a method on every rank with the same arguments, and wait for the results."""
        return wait(self.call(method, *arguments), self.names, context, self.supervisor.deadlines)

    def snapshot(self) -> list[tuple[ray.ObjectRef, ...]]:
        """Have every rank take its part of a snapshot, which stays on its node.

        Returns three references for each rank: to the files that it alone reads again, to those that all ranks read,
        and one that becomes ready with them and is small.
        """
        return [worker.snapshot.options(num_returns=3).remote() for worker in self.workers]

    def collect(self, parts: Sequence[Sequence[Copies]], context: PhaseContext) -> None:
        """Have every rank fetch its parts of a snapshot, for ``restore``; nothing else changes.

        Raises:
            LostError: a part is lost or late (without names), or a rank is.
        """
        deadlines = self.supervisor.deadlines
        seconds = COLLECT_FRACTION * deadlines.seconds(self.names[0], context)
        refs = [worker.collect.remote(own, seconds) for worker, own in zip(self.workers, parts, strict=True)]
        wait(refs, self.names, context, deadlines)

    def release(self) -> None:
        """Have every rank drop what it has collected, without waiting."""
        for worker in self.workers:
            worker.collect.remote([], 0.0)

    def restore(self, context: PhaseContext) -> None:
        """Have every rank resume from what it has collected."""
        wait([worker.restore.remote() for worker in self.workers], self.names, context, self.supervisor.deadlines)

    def offload(self, context: PhaseContext, keeps_weights: bool = False) -> None:
        """Offload every rank's state to host memory according to ``offload_mode``; ranks reload it when they use it."""
        if self.offload_mode is not None:
            parts = [part for part in PARTS[self.offload_mode] if part != "weights" or not keeps_weights]
            self.ask("offload", parts, context=context.of(OFFLOAD))

    def stop(self) -> None:
        """Kill every process of the group."""
        for worker in self.workers:
            ray.kill(worker, no_restart=True)
        if self._rendezvous_file is not None:
            self._rendezvous_file.unlink(missing_ok=True)
