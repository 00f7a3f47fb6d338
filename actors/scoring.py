"""The scores of a step's blocks: computed where the models are, while other blocks are still being generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import ray

from actors.group import Group
from actors.supervisor import Supervisor
from actors.waiting import Moment, fetch
from rlhf.errors import LostError
from rlhf.placement.pools import turns
from rlhf.roles.assemble import Contribution


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Who scores a block, by which method, and what comes of it."""

    group: Group
    method: str
    contribution: Contribution


@dataclass(frozen=True, kw_only=True)
class Task:
    """A block given to a rank. ``share`` is what it computes; it stays there."""

    block: int
    scorer: int
    rank: int
    share: ray.ObjectRef


class ScoringGroups(Protocol):
    """The run's actor groups, as far as scoring uses them: the scorers, and how lost ones are replaced (``Crew``)."""

    supervisor: Supervisor

    @property
    def scorers(self) -> tuple[Scorer, ...]:
        """The scorers of a step."""

    def rest(self, groups: Sequence[Group], moment: Moment) -> None:
        """Have groups leave their GPUs to others, where they share them."""

    def frozen_groups(self, error: LostError) -> list[Group]:
        """The groups whose ranks were lost; raises the error where one of them is trained."""

    def revive(self, error: LostError, moment: Moment, samples: int) -> None:
        """Replace the lost ranks of frozen groups."""


class Scoring:
    """Blocks are sent as they come, and settled together. What a role that died had not finished is sent again."""

    def __init__(self, crew: ScoringGroups, moment: Moment, scorers: Sequence[Scorer] | None = None) -> None:
        """Args: scorers are those of a step where none are named."""
        self.crew, self.moment, self.scorers = crew, moment, crew.scorers if scorers is None else scorers
        self.blocks: list[ray.ObjectRef] = []
        self.sizes: list[int] = []
        self._shares: dict[tuple[int, int, int], ray.ObjectRef] = {}
        self._pending: dict[ray.ObjectRef, Task] = {}

    def send(self, block: ray.ObjectRef, samples: int) -> None:
        """Have every rank of every scoring role compute its share of a block of so many samples; roles that make room
        for the engines get it later."""
        self.blocks.append(block)
        self.sizes.append(samples)
        for scorer, by in enumerate(self.scorers):
            if by.group.resting != "all":
                self._send(len(self.blocks) - 1, scorer)

    def _send(self, block: int, scorer: int) -> None:
        by = self.scorers[scorer]
        for rank, (share, there) in enumerate(by.group.compute(by.method, self.blocks[block])):
            self._pending[there] = Task(block=block, scorer=scorer, rank=rank, share=share)

    def settle(self) -> list[ray.ObjectRef]:
        """Wait for all shares. Returns, for each block, the block and its shares in the order of the scorers.

        Roles that make room for others score now, one after another.

        Raises:
            LostError: a role is lost that has a state of its own: it is not replaced here.
        """
        for turn in turns({by.group: by.group.resting or "none" for by in self.scorers}):
            for scorer, by in enumerate(self.scorers):
                if by.group in turn and by.group.resting == "all":
                    for block in range(len(self.blocks)):
                        self._send(block, scorer)
            self._finish()
            self.crew.rest(turn, self.moment)
        return [ref for block in range(len(self.blocks)) for ref in (self.blocks[block], *self._of(block))]

    def _finish(self) -> None:
        """Wait for the shares of all that was sent."""
        patience = self.crew.supervisor.patience
        while self._pending:
            try:
                there = patience.next_ready({ref: self._name(task) for ref, task in self._pending.items()}, self.moment)
                fetch(there, self._name(self._pending[there]), self.moment, patience)
            except LostError as error:
                self._again(error)
                continue
            task = self._pending.pop(there)
            self._shares[task.block, task.scorer, task.rank] = task.share

    def _name(self, task: Task) -> str:
        return self.scorers[task.scorer].group.names[task.rank]

    def _of(self, block: int) -> list[ray.ObjectRef]:
        return [
            self._shares[block, scorer, rank]
            for scorer, by in enumerate(self.scorers)
            for rank in range(len(by.group.workers))
        ]

    def _again(self, error: LostError) -> None:
        """Have the roles that were lost rebuilt, and send them what they had not finished."""
        error = self.crew.supervisor.located(error)
        lost = self.crew.frozen_groups(error)
        unfinished = sorted(
            {(t.block, t.scorer) for t in self._pending.values() if self.scorers[t.scorer].group in lost}
        )
        self._pending = {
            ref: task for ref, task in self._pending.items() if (task.block, task.scorer) not in set(unfinished)
        }
        self.crew.revive(error, self.moment, sum(self.sizes[block] for block, _ in unfinished))
        for block, scorer in unfinished:
            self._send(block, scorer)
