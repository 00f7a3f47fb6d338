"""The rollout engines of a run: start, generation, offloading, verification of new weights, and replacement.

The prompts of a step are distributed over all serving engines. A failed engine is replaced, and its unanswered prompts
are re-dispatched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

from actors.cluster import runtime_environment
from actors.dispatch import Dispatcher, GenerationCall
from actors.pending import Pending
from actors.placement import Placement
from actors.preload import modules_of_engine
from actors.process import ProcessLocation
from actors.rollout import BlockSummary, RolloutActor
from actors.supervisor import Supervisor
from actors.waiting import ABANDON, START, PhaseContext, fetch, wait
from rlhf.config.schema import Recipe
from rlhf.device import engine_environment, weight_transfer_backend
from rlhf.errors import CanaryError, LostError, MachineryError
from rlhf.placement.pools import ENGINES
from rlhf.recovery.incident import shortened
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
        self.is_rolled_back: Callable[[LostError], bool] = lambda error: False
        """Whether the step is repeated after a loss, because a trained group is lost too; ``RunActors`` replaces it."""
        variables = engine_environment(placement.device, self.config, self.backend)
        modules = modules_of_engine(placement.device, publishes)
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
        """Engines that serve: their weights are verified, and nothing is known of their death."""
        has_process = self.supervisor.has_process
        return [engine for engine in self.all if engine.version is not None and has_process(engine.name)]

    def wait_for_started(self, context: PhaseContext) -> list[Engine]:
        """Engines that have started, and can receive weights; waits for the first one if none has.

        On shared GPUs replacements start in this call, which waits for all of them: no role computes meanwhile.
        """
        while True:
            has_process = self.supervisor.has_process
            self.replace([each for each in self.all if each.actor is not None and not has_process(each.name)])
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
            LostError: see ``require_replaceable``.
            MachineryError: the restart budget is spent.
        """
        self.require_replaceable(error)
        self.supervisor.handle_loss(error, context, samples)
        self.replace([engine for engine in self.all if engine.name in error.names])

    def require_replaceable(self, error: LostError) -> None:
        """Raise the error if no engine is among the lost actors, or a trained group is: then the step is repeated."""
        if self.is_rolled_back(error) or not any(engine.name in error.names for engine in self.all):
            raise error

    def stop_serving(self, names: Sequence[str]) -> None:
        """Give no more work to these engines."""
        for engine in self.all:
            if engine.name in names:
                engine.version = None

    def _replace_dead(self, context: PhaseContext) -> None:
        """Replace engines that died while they had no work, before they are given some."""
        dead, has_process = self.supervisor.dead_actors(), self.supervisor.has_process
        gone = [each.name for each in self.all if each.version is not None and not has_process(each.name)]
        if gone or any(engine.name in dead for engine in self.serving):
            names = tuple(dict.fromkeys((*gone, *dead)))
            text, reason = f"{', '.join(shortened(names))} died before {context}", "found before it got work"
            self.replace_lost(LostError(text, names, reason=reason, of_whom=names), context)

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
        self._replace_dead(context)
        call = GenerationCall(indices=indices, seeds=seeds, context=context, block_size=self.config.block_size)
        return Dispatcher(self, call).answers()

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
