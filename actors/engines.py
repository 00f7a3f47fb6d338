"""The rollout engines of a run: start, generation, offloading, verification of new weights, and replacement.

The prompts of a step are distributed over all serving engines. A failed engine is replaced, and its unanswered prompts
are re-dispatched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from actors.cluster import runtime_environment
from actors.pending import Pending
from actors.placement import Placement
from actors.preload import modules_of_engine
from actors.process import ProcessLocation
from actors.rollout import BlockSummary, RolloutActor
from actors.supervisor import Supervisor
from actors.waiting import ABANDON, START, PhaseContext, fetch, wait
from rlhf.batching import share_prompts
from rlhf.config.schema import Recipe
from rlhf.device import engine_environment, weight_transfer_backend
from rlhf.errors import CanaryError, LostError, MachineryError
from rlhf.placement.pools import ENGINES
from rlhf.recovery.retry_batches import CHANCES, RetryBatches
from rlhf.types import Prompt
from rlhf.weights.fingerprint import Fingerprint, differences

STOP_SECONDS = 10.0
"""Seconds for engines to stop their own processes before they are killed."""


class Engine:
    """One engine: its current actor, and the arguments to start a replacement."""

    def __init__(self, name: str, make: Callable[[], Any], arguments: Sequence[Any], supervisor: Supervisor) -> None:
        self.name, self._make, self._arguments, self._supervisor = name, make, arguments, supervisor
        self.start()

    def start(self) -> None:
        """Start an actor without waiting for it."""
        self.actor: Any = self._make()
        """Its actor; None after ``kill``, until ``start``."""
        self.start_ref: ray.ObjectRef | None = self.actor.build.remote(*self._arguments)
        """Result of the actor's start; None once it has started."""
        self.version: int | None = None
        """Version of the weights that it has been verified to hold and serves with; None: it does not serve."""
        self._supervisor.started(self.name, self.actor)

    def kill(self) -> None:
        """Kill the actor, if there is one."""
        if self.actor is not None:
            with suppress(Exception):
                ray.kill(self.actor, no_restart=True)
        self.actor = self.start_ref = self.version = None

    @property
    def is_started(self) -> bool:
        """Whether it has an actor that has loaded the model."""
        return self.actor is not None and self.start_ref is None


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Arguments of one ``generate`` call: prompts, as indices into the list given to ``ready``, and a seed for each."""

    indices: Sequence[int]
    seeds: Sequence[int]
    context: PhaseContext

    def at(self, positions: Sequence[int]) -> tuple[list[int], list[int]]:
        """Prompts and seeds at these positions of the call."""
        return [self.indices[i] for i in positions], [self.seeds[i] for i in positions]


class Assignment:
    """Samples assigned to one engine in a call: their positions, and those of the unanswered ones."""

    def __init__(self, engine: Engine, positions: list[int]) -> None:
        self.engine, self.positions, self.unanswered = engine, positions, set(positions)


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

    def take_lost(self, names: Sequence[str]) -> list[Assignment]:
        """Remove the streams of lost engines and return their assignments; the others stay, or become, pending."""
        lost = [stream for stream, assignment in self.assignments.items() if assignment.engine.name in names]
        self.pending.discard(lost)
        taken = [self.assignments.pop(stream) for stream in lost]
        self.pending.replace({stream: assignment.engine.name for stream, assignment in self.assignments.items()})
        return taken


class Engines:
    """The rollout engines of a run."""

    def __init__(
        self,
        recipe: Recipe,
        placement: Placement,
        folder: Path,
        max_length: int,
        end_tokens: Sequence[int],
        logs: Path,
        supervisor: Supervisor,
        publishes: bool,
    ) -> None:
        """Start an actor for each engine, without waiting for them; ``ready`` waits.

        Args:
            folder: folder of the model.
            max_length: longest sequence of prompt and response, in tokens.
            end_tokens: token ids that end a response.
            logs: folder for the actors' output.
            publishes: whether weights will be published; if not, the engines serve the weights of ``folder`` at once.
        """
        self.config, self.supervisor, self.publishes = recipe.rollout, supervisor, publishes
        self.trust_remote_code = recipe.model.trust_remote_code
        self.sleeps = publishes and placement.engines_share
        self._starting = Pending()
        """Starts of replacements."""
        self.poison_prompts: set[int] = set()
        """Indices of prompts that killed an engine; they are not given to an engine again."""
        self.backend = weight_transfer_backend(placement.device, placement.engines_share) if publishes else None
        self.restore_serving: Callable[[PhaseContext], None] = self._wait_for_one
        """Called when no engine serves; returns once one does. ``RunActors`` replaces it by a publish of the policy."""
        variables = engine_environment(placement.device, self.config, self.backend)
        modules = modules_of_engine(placement.device)
        environment = runtime_environment(recipe.placement, placement.device, modules, variables)
        arguments = (
            folder,
            recipe.model,
            recipe.rollout,
            placement.device,
            max_length,
            end_tokens,
            self.backend,
            self.sleeps,
            recipe.seed,
            recipe.deterministic,
        )

        def engine(index: int) -> Engine:
            """The engine with this index; starts its actor."""
            name, log = f"rollout engine {index}", (logs / f"rollout-{index}.log").resolve()

            def make() -> Any:
                actor = ray.remote(RolloutActor).options(
                    runtime_env=environment, **placement.actor_options(ENGINES, index)
                )
                return actor.remote(name, log, placement.device, self.config, self.backend)

            return Engine(name, make, arguments, supervisor)

        self.all = [engine(index) for index in range(self.config.engines)]

    def ready(self, prompts: Sequence[Prompt]) -> None:
        """Wait until every engine has started, and give each the prompts."""
        self._prompts = ray.put(prompts)
        start_refs = [engine.start_ref for engine in self.all]
        context = PhaseContext(phase=START)
        locations = wait(start_refs, [engine.name for engine in self.all], context, self.supervisor.deadlines)
        self._initialise(self.all, locations, context)

    def set_prompts(self, prompts: Sequence[Prompt], context: PhaseContext) -> None:
        """Replace the prompts of all engines, also of those that start later; poison prompts are forgotten."""
        self._prompts = ray.put(prompts)
        self.poison_prompts = set()
        self._each([engine for engine in self.all if engine.is_started], "set_prompts", context, self._prompts)

    def _initialise(
        self, engines: Sequence[Engine], locations: Sequence[ProcessLocation], context: PhaseContext
    ) -> None:
        """Give prompts to started engines. Then they sleep, on shared GPUs, or serve, if no weights will be published.

        Failed engines are replaced.
        """
        for engine, where in zip(engines, locations, strict=True):
            self.supervisor.built(where)
            engine.start_ref = None
        alive = [engine for engine, _ in self._each(engines, "set_prompts", context, self._prompts)]
        if self.sleeps:
            alive = [engine for engine, _ in self._each(alive, "sleep", context)]
        if not self.publishes:
            for engine in alive:
                self._start_serving(engine, 0)

    def _start_serving(self, engine: Engine, version: int) -> None:
        engine.version = version
        self.supervisor.verified(engine.name, version)

    @property
    def serving(self) -> list[Engine]:
        """Engines that serve: their weights are verified."""
        return [engine for engine in self.all if engine.version is not None]

    def wait_for_started(self, context: PhaseContext) -> list[Engine]:
        """Engines that have started, and can receive weights; waits for the first one if none has.

        On shared GPUs replacements start in this call, which waits for all of them: no role computes meanwhile.
        """
        while True:
            for engine in self.all:
                if engine.actor is None:
                    engine.start()
            ready = [engine for engine in self.all if engine.is_started]
            is_complete = len(ready) == len(self.all) if self.sleeps else bool(ready)
            self._collect_started(context, wait_for_one=not is_complete)
            if is_complete:
                return [engine for engine in self.all if engine.is_started]

    def _collect_started(self, context: PhaseContext, wait_for_one: bool) -> None:
        """Initialise the engines that have started by now; ``wait_for_one`` waits for the first."""
        starting = {engine.start_ref: engine for engine in self.all if engine.start_ref}
        self._starting.replace({ref: engine.name for ref, engine in starting.items()})
        start = PhaseContext(phase=START, step=context.step)
        while self._starting and (wait_for_one or self._starting.wait(0.0)):
            try:
                ref, name = self.supervisor.deadlines.next_ready(self._starting, start)
                where = fetch(ref, name, start, self.supervisor.deadlines)
            except LostError as error:
                self.replace_lost(self.supervisor.with_dead_actors(error), start)
                return
            if starting[ref].start_ref is ref:  # otherwise it was lost and replaced meanwhile
                self._initialise([starting[ref]], [where], context)
                wait_for_one = False

    def _wait_for_one(self, context: PhaseContext) -> None:
        while not self.serving:
            self._collect_started(context, wait_for_one=True)

    def replace_lost(self, error: LostError, context: PhaseContext, samples: int = 0) -> None:
        """Replace failed engines; the replacements serve once the current weights are verified.

        Args:
            samples: number of unanswered samples to re-dispatch.

        Raises:
            LostError: no engine is among the lost actors.
            MachineryError: the restart budget is spent.
        """
        failed = [engine for engine in self.all if engine.name in error.names]
        if not failed:
            raise error
        self.supervisor.handle_loss(error.of(engine.name for engine in failed), context, samples)
        self.replace(failed)

    def replace(self, engines: Sequence[Engine]) -> None:
        """Kill these engines and start replacements, on shared GPUs in the next ``wait_for_started``.

        vLLM measures the GPU's free memory while it starts, and fails if another process frees some meanwhile.
        """
        self.supervisor.terminate([engine.name for engine in engines])
        for engine in engines:
            engine.kill()
            if not self.sleeps:
                engine.start()

    def generate(
        self, indices: Sequence[int], seeds: Sequence[int], context: PhaseContext
    ) -> Iterator[tuple[Any, BlockSummary]]:
        """Generate on all serving engines; yields finished blocks as (reference, summary).

        Generation starts on this call, not on first iteration.

        A poison prompt, which kills engines, is quarantined in this and in every later call.

        Raises:
            MachineryError: the restart budget is spent, or an engine did not answer all prompts.
            CanaryError: no engine served, and the weights published to a replacement were not verified.
        """
        call, batches = Generation(indices=indices, seeds=seeds, context=context), RetryBatches.of(len(indices))
        streams = Streams()
        if batches.waiting:
            streams.add(self._dispatch_next(batches, call))
        return self._stream_answers(call, batches, streams)

    def _stream_answers(
        self, call: Generation, batches: RetryBatches, streams: Streams
    ) -> Iterator[tuple[Any, BlockSummary]]:
        while batches.waiting or streams.assignments:
            if not streams.assignments:
                streams.add(self._dispatch_next(batches, call))
                continue
            try:
                stream, name = self.supervisor.deadlines.next_ready(streams.pending, call.context)
                answer = self._next_block(stream, name, call.context)
            except LostError as found:
                self._redispatch(self.supervisor.with_dead_actors(found), call, batches, streams)
                continue
            if answer is not None:
                streams.answered(stream, answer[1])
                yield answer
            elif streams.assignments.pop(stream).unanswered:
                raise MachineryError(f"{name} did not answer all prompts during {call.context}") from None
        yield from self._placeholder_block(batches.set_aside, call)

    def _redispatch(self, error: LostError, call: Generation, batches: RetryBatches, streams: Streams) -> None:
        """Replace lost engines, and dispatch their unanswered samples to those that remain, or later."""
        lost = streams.take_lost(error.names)
        self.replace_lost(error, call.context, sum(len(assignment.unanswered) for assignment in lost))
        for assignment in lost:
            quarantined = batches.lost(assignment.positions, sorted(assignment.unanswered))
            self.poison_prompts |= {call.indices[i] for i in quarantined}
        if batches.losses <= CHANCES and batches.waiting and self.serving:
            streams.add(self._dispatch_next(batches, call))

    def _dispatch_next(self, batches: RetryBatches, call: Generation) -> dict[Any, Assignment]:
        """Dispatch the next batch without known poison prompts, which are quarantined."""
        positions = batches.next()
        batches.set_aside += [i for i in positions if call.indices[i] in self.poison_prompts]
        return self._dispatch([i for i in positions if call.indices[i] not in self.poison_prompts], call)

    def _dispatch(self, positions: Sequence[int], call: Generation) -> dict[Any, Assignment]:
        """Distribute samples over the serving engines and start generation; returns the streams."""
        if not positions:
            return {}
        if not self.serving:
            self.restore_serving(call.context)
        engines = self.serving
        parts = share_prompts([call.indices[i] for i in positions], len(engines))
        assignments = [Assignment(engine, [positions[i] for i in part]) for engine, part in zip(engines, parts)]
        return {
            assignment.engine.actor.generate.options(num_returns="streaming").remote(
                assignment.positions, *call.at(assignment.positions), self.config.block_size
            ): assignment
            for assignment in assignments
            if assignment.positions
        }

    def _placeholder_block(self, positions: Sequence[int], call: Generation) -> Iterator[tuple[Any, BlockSummary]]:
        """Placeholder block for quarantined samples, so that the batch keeps its size."""
        while positions:
            if not self.serving:
                self.restore_serving(call.context)
            reason, context = "the prompt terminated the engine", call.context.of("quarantine")
            engine = self.serving[0]
            task = engine.actor.set_aside.options(num_returns=2)
            block, summary = task.remote(positions, *call.at(positions), reason)
            try:
                yield block, fetch(summary, engine.name, context, self.supervisor.deadlines)
                return
            except LostError as error:
                self.replace_lost(self.supervisor.with_dead_actors(error), call.context)

    def _next_block(self, stream: Any, name: str, context: PhaseContext) -> tuple[Any, BlockSummary] | None:
        """Next block of a stream and its summary; None at the end of the stream."""
        block = next(stream, None)
        if block is None:
            return None
        summary = next(stream, block)  # a failed stream ends with one item, its error; `fetch` raises it
        return block, fetch(summary, name, context, self.supervisor.deadlines)

    def abandon(self, context: PhaseContext) -> None:
        """Abort generation and any unfinished weight update on all started engines."""
        self._each([engine for engine in self.all if engine.is_started], ABANDON, context)

    def decode(self, tokenizer_folder: Path, block: ray.ObjectRef, context: PhaseContext) -> dict[int, str]:
        """Responses of a block as text, by seed."""
        while True:
            if not self.serving:
                self.restore_serving(context)
            for _, texts in self._each(
                self.serving[:1], "decode", context, str(tokenizer_folder), self.trust_remote_code, block
            ):
                return dict(texts)

    def sleep(self, context: PhaseContext) -> None:
        """Release GPU memory for the trainer, if they share GPUs. Engines that sleep already are not affected."""
        if self.sleeps:
            self._each([engine for engine in self.all if engine.is_started], "sleep", context)

    def wake(self, part: str, engines: Sequence[Engine], context: PhaseContext) -> None:
        """Reacquire GPU memory: ``weights`` before a publish, ``kv_cache`` after it."""
        if self.sleeps:
            self._each(engines, "wake", context, part)

    def verify(self, engines: Sequence[Engine], sent: Fingerprint, version: int, context: PhaseContext) -> None:
        """Compare each engine's fingerprint with the trainer's; engines that agree serve ``version``.

        Raises:
            CanaryError: an engine's weights differ; the message names the layers.
        """
        equal = []
        for engine, held in self._each(engines, "held_fingerprint", context):
            wrong = differences(sent, held)
            if wrong:
                raise CanaryError(
                    f"canary weights/fingerprint at {context}: {engine.name} does not hold version {version} of the "
                    f"weights; different in {', '.join(wrong[:6])}"
                    f"{f' and {len(wrong) - 6} more' if len(wrong) > 6 else ''}\n"
                    "  usual causes: a tensor was not sent or was changed on the way; a tied output head was not sent "
                    "under its own name; the engine loads this architecture's weights in another form than they are "
                    "saved"
                )
            equal.append(engine)
        for engine, _ in self._each(equal, "serve", context, version):
            self._start_serving(engine, version)

    def mark_outdated(self, version: int) -> None:
        """Stop all engines from serving until ``version`` of the weights is verified, which is sent next."""
        for engine in self.all:
            engine.version = None
            self.supervisor.published(engine.name, version)

    def _each(
        self, engines: Sequence[Engine], method: str, context: PhaseContext, *arguments: Any
    ) -> list[tuple[Engine, Any]]:
        """Call a method of each engine; returns the answers of those that did not fail, and replaces the others."""
        asked = {getattr(engine.actor, method).remote(*arguments): engine for engine in engines}
        pending = Pending({ref: engine.name for ref, engine in asked.items()})
        answers: list[tuple[Engine, Any]] = []
        deadlines, work = self.supervisor.deadlines, context.of(method)
        while pending:
            try:
                ref, name = deadlines.next_ready(pending, work)
                answers.append((asked[ref], fetch(ref, name, work, deadlines)))
            except LostError as found:
                error = self.supervisor.with_dead_actors(found)
                self.replace_lost(error, context)
                pending.discard([ref for ref, engine in asked.items() if engine.name in error.names])
                answers = [(engine, answer) for engine, answer in answers if engine.name not in error.names]
        return answers

    def stop(self) -> None:
        """Stop every engine and its processes."""
        running = [engine for engine in self.all if engine.is_started]
        with suppress(MachineryError):  # a dead or stuck engine is killed below
            refs = {engine.actor.stop.remote(): engine.name for engine in running}
            ray.wait(list(refs), num_returns=len(refs), timeout=STOP_SECONDS) if refs else None
        self.kill()

    def kill(self) -> None:
        """Kill every engine at once; Ray ends its child processes."""
        for engine in self.all:
            engine.kill()
        self.all = []
