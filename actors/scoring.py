"""Scores a step's blocks on the ranks of the scoring groups, while other blocks are still being generated.

Blocks are joined to units that fill the rows of a forward pass. A unit goes to the ranks whose passes depend on each
other: one rank, a model-parallel group, or under ZeRO-3 all ranks. Which of several such sets it is does not influence
the results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heapreplace
from typing import Protocol, Self

import ray

from actors.blocks import Block
from actors.group import Group
from actors.pending import Pending
from actors.supervisor import Supervisor
from actors.waiting import PhaseContext, fetch
from rlhf.batching import Unit, UnitBuilder
from rlhf.config.schema import RoleConfig
from rlhf.errors import LostError
from rlhf.placement.parallelism import forward_ranks, model_parallel_size
from rlhf.placement.pools import turns
from rlhf.roles.assemble import ResultSpec, ScoredUnit

UNITS_PER_RANK = 2
"""Fewest units of a step for each set of ranks that takes them in turn, even if rows stay empty: with fewer, scoring
would begin late and its end leave ranks idle. Under ZeRO-3 one set has all ranks, and each unit gathers the model."""
FEWEST_TOKENS = 2048
"""Fewest tokens that fill a unit for each data-parallel rank: of shorter rows it gets several, because a call of an
actor costs milliseconds."""


@dataclass(frozen=True, kw_only=True)
class ScoringMethod:
    """A group that scores units of blocks, the method that is called on its ranks, and the kind of its results."""

    group: Group
    method: str
    result_spec: ResultSpec
    unit_tokens: int = 0
    """Tokens that fill a unit."""
    unit_ranks: int = 1
    """Number of consecutive ranks that get a unit, each of which computes a part of it."""

    def builder(self, samples: int) -> UnitBuilder:
        """Builder of the units of a step with so many samples."""
        sets = len(self.group.workers) // self.unit_ranks
        fewest = 1 if sets == 1 < self.unit_ranks else UNITS_PER_RANK * sets
        return UnitBuilder(self.unit_tokens, -(-samples // fewest))

    @classmethod
    def by_role(cls, group: Group, method: str, result_spec: ResultSpec, role: RoleConfig | None) -> Self:
        """Scorer whose units fill a row, or several short ones, of each data-parallel rank that gets them.

        Without a ``role``, a function or a service scores, and gets every block at once.
        """
        if role is None:
            return cls(group=group, method=method, result_spec=result_spec)
        ranks = forward_ranks(role)
        tokens = max(role.micro_batch_tokens, FEWEST_TOKENS) * (ranks // model_parallel_size(role))
        return cls(group=group, method=method, result_spec=result_spec, unit_tokens=tokens, unit_ranks=ranks)


@dataclass(kw_only=True, eq=False)
class Task:
    """A unit sent to ranks of a scorer. ``results`` are references: the ranks' partial results stay on their nodes."""

    scorer: int
    unit: Unit
    results: tuple[ray.ObjectRef, ...]
    unfinished: int
    """Number of ranks that have not finished."""


@dataclass(frozen=True, kw_only=True)
class ScoredBlocks:
    """References to all blocks, followed by the results of all units in the order of ``units``."""

    refs: list[ray.ObjectRef]
    units: tuple[ScoredUnit, ...]

    @classmethod
    def join(cls, rounds: Sequence[ScoredBlocks]) -> ScoredBlocks:
        """The blocks and results of all rounds of a step."""
        blocks, results, units = list[ray.ObjectRef](), list[ray.ObjectRef](), list[ScoredUnit]()
        for each in rounds:
            count, first = len(each.refs) - sum(unit.parts for unit in each.units), len(blocks)
            units += [replace(unit, blocks=tuple(first + block for block in unit.blocks)) for unit in each.units]
            blocks += each.refs[:count]
            results += each.refs[count:]
        return cls(refs=blocks + results, units=tuple(units))


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
    """Sends units of blocks to the scorers as blocks arrive, and waits for all scores at the end.

    Unfinished units of a scorer that failed are sent again to its replacement.
    """

    def __init__(
        self,
        actors: ScoringGroups,
        context: PhaseContext,
        samples: int,
        scorers: Sequence[ScoringMethod] | None = None,
    ) -> None:
        """Prepare the scoring of one step's blocks, which have ``samples`` samples.

        Args:
            scorers: the scoring methods; by default the run's.
        """
        self.actors, self.context, self.scorers = actors, context, actors.scorers if scorers is None else scorers
        self._turns = turns({by.group: by.group.sharing.key for by in self.scorers})
        self.blocks: list[Block] = []
        self._builders = [by.builder(samples) for by in self.scorers]
        self._loads = {
            by.group: [(0, rank) for rank in range(0, len(by.group.workers), by.unit_ranks)] for by in self.scorers
        }
        """A heap for each group: the tokens sent to each set of ranks that gets a unit, and the set's first rank."""
        self._pending = Pending()
        self._tasks: dict[ray.ObjectRef, tuple[Task, str]] = {}
        """Task and name of the rank of each pending marker."""
        self._done: list[Task] = []

    def send(self, block: Block) -> None:
        """Have every scorer score a block, with its neighbours, as soon as they fill a unit.

        Groups that share GPUs with the engines, or wait for another group, get it in ``wait_for_results``.
        """
        self.blocks.append(block)
        for scorer, by in enumerate(self.scorers):
            if self._is_sent_at_once(by.group):
                self._add(len(self.blocks) - 1, scorer)

    def _is_sent_at_once(self, group: Group) -> bool:
        return group in self._turns[0] and not group.sharing.is_after_rollout

    def _add(self, block: int, scorer: int) -> None:
        described = self.blocks[block]
        unit = self._builders[scorer].add(block, described.samples, described.tokens, described.stream)
        if unit is not None:
            self._send(unit, scorer)

    def _send(self, unit: Unit, scorer: int) -> None:
        """Send a unit to the ranks that have got the fewest tokens."""
        by = self.scorers[scorer]
        load, first = self._loads[by.group][0]
        heapreplace(self._loads[by.group], (load + unit.tokens, first))
        ranks, blocks = range(first, first + by.unit_ranks), [self.blocks[block].rollouts for block in unit.blocks]
        results, markers = zip(*by.group.score(by.method, blocks, ranks), strict=True)
        task = Task(scorer=scorer, unit=unit, results=results, unfinished=len(markers))
        for rank, marker in zip(ranks, markers, strict=True):
            self._tasks[marker] = task, by.group.names[rank]
            self._pending.add(marker, by.group.names[rank])

    def wait_for_results(self) -> ScoredBlocks:
        """Wait for all results.

        Groups that share GPUs score one after another.

        Raises:
            LostError: a trained group is lost; it is not replaced here.
        """
        for turn in self._turns:
            for scorer, by in enumerate(self.scorers):
                if by.group in turn:
                    self._send_rest(scorer)
            self._finish()
            self.actors.offload(turn, self.context)
        refs = [block.rollouts for block in self.blocks] + [ref for task in self._done for ref in task.results]
        units = tuple(
            ScoredUnit(scorer=task.scorer, blocks=tuple(task.unit.blocks), parts=len(task.results))
            for task in self._done
        )
        return ScoredBlocks(refs=refs, units=units)

    def _send_rest(self, scorer: int) -> None:
        if not self._is_sent_at_once(self.scorers[scorer].group):
            for block in range(len(self.blocks)):
                self._add(block, scorer)
        for unit in self._builders[scorer].rest():
            self._send(unit, scorer)

    def _finish(self) -> None:
        """Wait for all pending results."""
        deadlines = self.actors.supervisor.deadlines
        while self._pending:
            try:
                marker, name = deadlines.next_ready(self._pending, self.context)
                fetch(marker, name, self.context, deadlines)
            except LostError as error:
                self._redispatch(error)
                continue
            task, _ = self._tasks.pop(marker)
            task.unfinished -= 1
            if not task.unfinished:
                self._done.append(task)

    def _redispatch(self, error: LostError) -> None:
        """Rebuild lost frozen groups, and send them their unfinished units again."""
        error = self.actors.supervisor.with_dead_actors(error)
        lost = self.actors.frozen_groups(error)
        tasks = [task for task, _ in self._tasks.values() if self.scorers[task.scorer].group in lost]
        unfinished = dict.fromkeys(tasks)
        self._tasks = {marker: sent for marker, sent in self._tasks.items() if sent[0] not in unfinished}
        self._pending.replace({marker: name for marker, (_, name) in self._tasks.items()})
        samples = sum(self.blocks[block].samples for task in unfinished for block in task.unit.blocks)
        self.actors.revive(error, self.context, samples)
        for task in unfinished:
            self._send(task.unit, task.scorer)
