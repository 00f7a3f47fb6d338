"""Scores a step's blocks on the ranks of the scoring groups, while other blocks are still being generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import ray

from actors.group import Group
from actors.supervisor import Supervisor
from actors.waiting import PhaseContext, fetch
from rlhf.errors import LostError
from rlhf.placement.pools import turns
from rlhf.roles.assemble import ResultSpec


@dataclass(frozen=True, kw_only=True)
class ScoringMethod:
    """A group that scores blocks, the method that is called on its ranks, and the kind of its results."""

    group: Group
    method: str
    result_spec: ResultSpec


@dataclass(frozen=True, kw_only=True)
class Task:
    """A block sent to a rank. ``result`` references the rank's partial result, which stays on its node."""

    block: int
    scorer: int
    rank: int
    result: ray.ObjectRef


class ScoringGroups(Protocol):
    """The part of ``RunActors`` that scoring uses: the scorers, offloading, and the replacement of lost groups."""

    supervisor: Supervisor

    @property
    def scorers(self) -> tuple[ScoringMethod, ...]:
        """Scorers of a step."""

    def offload(self, groups: Sequence[Group], context: PhaseContext) -> None:
        """Offload groups that have an offload mode."""

    def frozen_groups(self, error: LostError) -> list[Group]:
        """Groups with a lost rank; raises the error if one of them is trained."""

    def revive(self, error: LostError, context: PhaseContext, samples: int) -> None:
        """Rebuild frozen groups with a lost rank."""


class Scoring:
    """Sends blocks to the scorers as they arrive, and waits for all scores at the end.

    Unfinished blocks of a scorer that failed are sent again to its replacement.
    """

    def __init__(
        self, actors: ScoringGroups, context: PhaseContext, scorers: Sequence[ScoringMethod] | None = None
    ) -> None:
        """Prepare the scoring of one step's blocks.

        Args:
            scorers: the scoring methods; by default the run's.
        """
        self.actors, self.context, self.scorers = actors, context, actors.scorers if scorers is None else scorers
        self._turns = turns({by.group: by.group.sharing.key for by in self.scorers})
        self.blocks: list[ray.ObjectRef] = []
        self.sizes: list[int] = []
        self._results: dict[tuple[int, int, int], ray.ObjectRef] = {}
        self._pending: dict[ray.ObjectRef, Task] = {}

    def send(self, block: ray.ObjectRef, samples: int) -> None:
        """Have every scoring rank compute its part of the results of a block of ``samples`` samples.

        Groups that share GPUs with the engines, or wait for another group, get it in ``wait_for_results``.
        """
        self.blocks.append(block)
        self.sizes.append(samples)
        for scorer, by in enumerate(self.scorers):
            if self._is_sent_at_once(by.group):
                self._send(len(self.blocks) - 1, scorer)

    def _is_sent_at_once(self, group: Group) -> bool:
        return group in self._turns[0] and not group.sharing.is_after_rollout

    def _send(self, block: int, scorer: int) -> None:
        by = self.scorers[scorer]
        for rank, (result, done) in enumerate(by.group.compute(by.method, self.blocks[block])):
            self._pending[done] = Task(block=block, scorer=scorer, rank=rank, result=result)

    def wait_for_results(self) -> list[ray.ObjectRef]:
        """Wait for all results; returns, for each block, the block and its partial results in the order of the scorers.

        Groups that share GPUs score one after another.

        Raises:
            LostError: a trained group is lost; it is not replaced here.
        """
        for turn in self._turns:
            for scorer, by in enumerate(self.scorers):
                if by.group in turn and not self._is_sent_at_once(by.group):
                    for block in range(len(self.blocks)):
                        self._send(block, scorer)
            self._finish()
            self.actors.offload(turn, self.context)
        keys = [(scorer, rank) for scorer, by in enumerate(self.scorers) for rank in range(len(by.group.workers))]
        return [
            ref
            for number, block in enumerate(self.blocks)
            for ref in (block, *(self._results[number, *key] for key in keys))
        ]

    def _finish(self) -> None:
        """Wait for all pending results."""
        deadlines = self.actors.supervisor.deadlines
        while self._pending:
            try:
                names = {ref: self.scorers[task.scorer].group.names[task.rank] for ref, task in self._pending.items()}
                done = deadlines.next_ready(names, self.context)
                fetch(done, names[done], self.context, deadlines)
            except LostError as error:
                self._redispatch(error)
                continue
            task = self._pending.pop(done)
            self._results[task.block, task.scorer, task.rank] = task.result

    def _redispatch(self, error: LostError) -> None:
        """Rebuild lost frozen groups, and send them their unfinished blocks again."""
        error = self.actors.supervisor.with_dead_actors(error)
        lost = self.actors.frozen_groups(error)
        unfinished = sorted(
            {(t.block, t.scorer) for t in self._pending.values() if self.scorers[t.scorer].group in lost}
        )
        self._pending = {
            ref: task for ref, task in self._pending.items() if (task.block, task.scorer) not in set(unfinished)
        }
        self.actors.revive(error, self.context, sum(self.sizes[block] for block, _ in unfinished))
        for block, scorer in unfinished:
            self._send(block, scorer)
