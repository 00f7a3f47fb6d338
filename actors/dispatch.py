"""Dispatches the samples of one generation call to the serving engines, and again when engines are lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from actors.pending import Pending
from actors.rollout import BlockSummary
from actors.supervisor import Supervisor
from actors.waiting import PhaseContext, fetch, wait
from rlhf.batching import share_prompts
from rlhf.errors import LostError, MachineryError
from rlhf.recovery.retry_batches import Batch, RetryBatches


class ServingEngine(Protocol):
    """An engine, as far as dispatching needs it."""

    name: str
    actor: Any


class EngineSet(Protocol):
    """The engines, as far as dispatching needs them."""

    supervisor: Supervisor
    poison_prompts: set[int]

    @property
    def serving(self) -> Sequence[ServingEngine]:
        """Engines that serve."""

    def require_replaceable(self, error: LostError) -> None:
        """Raise the error if the engines' replacement does not mend it."""

    def stop_serving(self, names: Sequence[str]) -> None:
        """Give no more work to these engines."""

    def replace_lost(self, error: LostError, context: PhaseContext, samples: int = 0) -> None:
        """Replace failed engines."""

    def restore_serving(self, context: PhaseContext) -> None:
        """Wait until an engine serves."""


@dataclass(frozen=True, kw_only=True)
class GenerationCall:
    """Arguments of one ``generate`` call: prompts, as indices into the list given to ``ready``, and a seed for each."""

    indices: Sequence[int]
    seeds: Sequence[int]
    context: PhaseContext
    block_size: int

    def at(self, positions: Sequence[int]) -> tuple[list[int], list[int]]:
        """Prompts and seeds at these positions of the call."""
        return [self.indices[i] for i in positions], [self.seeds[i] for i in positions]


class Assignment:
    """The part of a batch that one engine was given, and the positions that it has not answered."""

    def __init__(self, engine: ServingEngine, batch: Batch) -> None:
        self.engine, self.batch, self.unanswered = engine, batch, set(batch.positions)


class Streams:
    """The streams of blocks of one call, which are pending until their end, and the samples of each."""

    def __init__(self) -> None:
        self.assignments: dict[Any, Assignment] = {}
        self.pending = Pending()

    def add(self, assignments: Mapping[Any, Assignment]) -> None:
        """Await the first block of streams."""
        self.assignments |= assignments
        for stream, assignment in assignments.items():
            self.pending.add(stream, assignment.engine.name)

    def answered(self, stream: Any, summary: BlockSummary) -> None:
        """Record a block, and await the next one."""
        self.assignments[stream].unanswered.difference_update(summary.positions)
        self.pending.add(stream, self.assignments[stream].engine.name)

    def busy(self, only_suspects: bool = False) -> set[str]:
        """Names of the engines that have work, or suspects."""
        return {
            assignment.engine.name
            for assignment in self.assignments.values()
            if assignment.batch.is_suspect or not only_suspects
        }

    def take_lost(self, names: Sequence[str]) -> list[Assignment]:
        """Remove the streams of lost engines and return their assignments; the others stay, or become, pending."""
        lost = [stream for stream, assignment in self.assignments.items() if assignment.engine.name in names]
        self.pending.discard(lost)
        taken = [self.assignments.pop(stream) for stream in lost]
        self.pending.replace({stream: assignment.engine.name for stream, assignment in self.assignments.items()})
        return taken


class Dispatcher:
    """One generation call: its waiting batches and running streams."""

    def __init__(self, engines: EngineSet, call: GenerationCall) -> None:
        """Start generation on all serving engines."""
        self.engines, self.call, self.deadlines = engines, call, engines.supervisor.deadlines
        self.batches, self.streams = RetryBatches.of(len(call.indices)), Streams()
        self._dispatch(wait_for_engine=True)

    def answers(self) -> Iterator[tuple[Any, BlockSummary]]:
        """Yield finished blocks as (reference, summary).

        Raises:
            MachineryError: the restart budget is spent, or an engine did not answer all prompts.
        """
        while self.batches.waiting or self.streams.assignments:
            self._dispatch(wait_for_engine=not self.streams.assignments)
            if not self.streams.assignments:  # all that waited was quarantined
                continue
            try:
                stream, name = self.deadlines.next_ready(self.streams.pending, self.call.context)
                answer = self._next_block(stream, name)
            except LostError as found:
                self._redispatch(self.engines.supervisor.with_dead_actors(found))
                continue
            if answer is not None:
                self.streams.answered(stream, answer[1])
                yield answer
            elif self.streams.assignments.pop(stream).unanswered:
                raise MachineryError(f"{name} did not answer all prompts during {self.call.context}") from None
        yield from self._placeholder_block(self.batches.set_aside)

    def _next_block(self, stream: Any, name: str) -> tuple[Any, BlockSummary] | None:
        """Next block of a stream and its summary; None at the end of the stream."""
        block = next(stream, None)
        if block is None:
            return None
        summary = next(stream, block)  # a failed stream ends with one item, its error; `fetch` raises it
        return block, fetch(summary, name, self.call.context, self.deadlines)

    def _redispatch(self, error: LostError) -> None:
        """Requeue the samples of lost engines, give them to those that remain, and replace the lost ones.

        The others get the work first: the diagnosis of the loss takes time.
        """
        self.engines.require_replaceable(error)
        is_continued = self.engines.supervisor.is_continued(error)
        self.engines.stop_serving(error.names)
        lost = self.streams.take_lost(error.names)
        assignments = Counter(assignment.engine.name for assignment in lost)
        for assignment in lost:
            is_alone = assignments[assignment.engine.name] == 1
            left = sorted(assignment.unanswered)
            quarantined = self.batches.lost(assignment.batch, left, is_alone, is_continued)
            self.engines.poison_prompts |= {self.call.indices[i] for i in quarantined}
        self._dispatch(wait_for_engine=False)
        self.engines.replace_lost(error, self.call.context, sum(len(assignment.unanswered) for assignment in lost))

    def _dispatch(self, wait_for_engine: bool) -> None:
        """Give the waiting batches to engines; those for which none is free stay.

        Suspects go to one engine that has no other work, all other samples to all engines that have no suspects.
        """
        waiting, self.batches.waiting = self.batches.waiting, []
        for batch in waiting:
            positions = self._without_poison(batch.positions)
            if positions and wait_for_engine and not self.engines.serving:
                self.engines.restore_serving(self.call.context)
            if positions and not self._send(batch.part(positions)):
                self.batches.waiting.append(batch.part(positions))

    def _without_poison(self, positions: Sequence[int]) -> tuple[int, ...]:
        """Positions without known poison prompts, which are quarantined."""
        poison = [i for i in positions if self.call.indices[i] in self.engines.poison_prompts]
        self.batches.set_aside += poison
        return tuple(i for i in positions if i not in set(poison))

    def _send(self, batch: Batch) -> bool:
        """Start generation of a batch; returns whether an engine was free for it."""
        busy = self.streams.busy(only_suspects=not batch.is_suspect)
        free = [engine for engine in self.engines.serving if engine.name not in busy]
        if batch.is_suspect:
            free = free[:1]
        if not free:
            return False
        parts = share_prompts([self.call.indices[i] for i in batch.positions], len(free))
        given = [(engine, batch.part([batch.positions[i] for i in part])) for engine, part in zip(free, parts) if part]
        streams = {
            engine.actor.generate.options(num_returns="streaming").remote(
                list(part.positions), *self.call.at(part.positions), self.call.block_size
            ): Assignment(engine, part)
            for engine, part in given
        }
        self.streams.add(streams)
        return True

    def _placeholder_block(self, positions: Sequence[int]) -> Iterator[tuple[Any, BlockSummary]]:
        """Placeholder block for quarantined samples, so that the batch keeps its size."""
        while positions:
            if not self.engines.serving:
                self.engines.restore_serving(self.call.context)
            reason, context = "the prompt terminated the engine", self.call.context.of("quarantine")
            engine = self.engines.serving[0]
            task = engine.actor.set_aside.options(num_returns=2)
            block, summary = task.remote(positions, *self.call.at(positions), reason)
            try:
                yield block, wait([summary], [engine.name], context, self.deadlines)[0]
                return
            except LostError as error:
                self.engines.replace_lost(self.engines.supervisor.with_dead_actors(error), self.call.context)
