"""All rollout engines as one.

Placed and started together, sharing the prompts of a step, proven after every publish. One that is lost is replaced,
and what it had not answered is given out again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from actors.cluster import worker_environment
from actors.placement import Placement
from actors.process import Whereabouts
from actors.rollout import Answered, RolloutActor
from actors.supervisor import Supervisor
from actors.waiting import ABANDON, START, Moment, fetch, wait
from rlhf.batching import share_prompts
from rlhf.config.schema import Recipe
from rlhf.device import weight_transfer_backend
from rlhf.errors import CanaryError, LostError, MachineryError
from rlhf.placement.pools import ENGINES
from rlhf.recovery.portions import CHANCES, Portions
from rlhf.types import Prompt
from rlhf.weights.fingerprint import Fingerprint, differences

STOP_SECONDS = 10.0
"""Time that engines have to end their own processes before they are killed."""


class Engine:
    """One engine: its actor, and how another is started in its place."""

    def __init__(self, name: str, make: Callable[[], Any], arguments: Sequence[Any], supervisor: Supervisor) -> None:
        self.name, self._make, self._arguments, self._supervisor = name, make, arguments, supervisor
        self.start()

    def start(self) -> None:
        """Start an actor, without waiting for it."""
        self.actor = self._make()
        self.building: ray.ObjectRef | None = self.actor.build.remote(*self._arguments)
        self.version: int | None = None
        """Version of the weights that it has proven and serves."""
        self._supervisor.started(self.name, self.actor)


@dataclass(frozen=True, kw_only=True)
class Call:
    """What is to be answered: prompts, by the number that ``ready`` gave them, and a seed for each."""

    chosen: Sequence[int]
    seeds: Sequence[int]
    moment: Moment

    def of(self, places: Sequence[int]) -> tuple[list[int], list[int]]:
        """Prompts and seeds at these places."""
        return [self.chosen[i] for i in places], [self.seeds[i] for i in places]


class Share:
    """Prompts that one engine was given in a call: their places, and those that it has not answered yet."""

    def __init__(self, engine: Engine, places: list[int]) -> None:
        self.engine, self.places, self.left = engine, places, set(places)


class Engines:
    """The rollout engines of a run.

    Args:
        publishes: whether new weights will arrive; without, the engines serve the folder's weights at once.
    """

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
        self.config, self.supervisor, self.publishes = recipe.rollout, supervisor, publishes
        self.trust_remote_code = recipe.model.trust_remote_code
        self.sleeps = publishes and placement.engines_share
        self.fatal: set[int] = set()
        """Prompts, by number, that engines died of: none is given another."""
        self.backend = weight_transfer_backend(placement.device, placement.engines_share) if publishes else None
        self.heal: Callable[[Moment], None] = self._await_one
        """Called when no engine serves: has one serve again. Where weights are published, that takes the trainer."""
        environment = {
            "env_vars": worker_environment(recipe.placement.threads_per_rank, recipe.placement.ray_address is None)
        }
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
            name, log = f"rollout engine {index}", (logs / f"rollout-{index}.log").resolve()

            def make() -> Any:
                actor = ray.remote(RolloutActor).options(runtime_env=environment, **placement.place(ENGINES, index))
                return actor.remote(name, log, placement.device, self.config.memory_gib, self.backend)

            return Engine(name, make, arguments, supervisor)

        self.all = [engine(index) for index in range(self.config.engines)]

    def ready(self, prompts: Sequence[Prompt]) -> None:
        """Wait until every engine has started, and hand it the prompts."""
        self._prompts = ray.put(prompts)
        building = [engine.building for engine in self.all]
        moment = Moment(phase=START)
        places = wait(building, [engine.name for engine in self.all], moment, self.supervisor.patience)
        self._greet(self.all, places, moment)

    def _greet(self, engines: Sequence[Engine], places: Sequence[Whereabouts], moment: Moment) -> None:
        """Take in engines that have started; each may be lost, and replaced, at any time."""
        for engine, where in zip(engines, places, strict=True):
            self.supervisor.built(where)
            engine.building = None
        there = [engine for engine, _ in self._each(engines, "use", moment, self._prompts)]
        if self.sleeps:
            there = [engine for engine, _ in self._each(there, "sleep", moment)]
        if not self.publishes:
            for engine in there:
                self._serves(engine, 0)

    def _serves(self, engine: Engine, version: int) -> None:
        engine.version = version
        self.supervisor.proven(engine.name, version)

    @property
    def serving(self) -> list[Engine]:
        """Those that have proven their weights."""
        return [engine for engine in self.all if engine.version is not None]

    def admit(self, moment: Moment) -> list[Engine]:
        """The engines that can be given weights: those that have started. Where none has, the first that does."""
        while True:
            self._welcome(moment, wait_for_one=all(engine.building for engine in self.all))
            started = [engine for engine in self.all if not engine.building]
            if started:
                return started

    def _welcome(self, moment: Moment, wait_for_one: bool) -> None:
        """Take in the engines that have started by now."""
        building = {engine.building: engine for engine in self.all if engine.building}
        while building:
            names = {ref: engine.name for ref, engine in building.items()}
            if not wait_for_one and not ray.wait(list(names), timeout=0, fetch_local=False)[0]:
                return
            start = Moment(phase=START, step=moment.step)
            try:
                ref = self.supervisor.patience.next_ready(names, start)
                where = fetch(ref, names[ref], start, self.supervisor.patience)
            except LostError as error:
                self.lose(self.supervisor.located(error), start)
                return
            self._greet([building.pop(ref)], [where], moment)
            wait_for_one = False

    def _await_one(self, moment: Moment) -> None:
        while not self.serving:
            self._welcome(moment, wait_for_one=True)

    def lose(self, error: LostError, moment: Moment, samples: int = 0) -> None:
        """Start others in place of engines that are lost; they serve once they have proven the current weights.

        Args:
            samples: how many of them had not been answered.

        Raises:
            LostError: somebody else is lost.
            MachineryError: that was one too many.
        """
        gone = [engine for engine in self.all if engine.name in error.names]
        if not gone:
            raise error
        self.supervisor.lost(error.of(engine.name for engine in gone), moment, samples)
        self.replace(gone)

    def replace(self, engines: Sequence[Engine]) -> None:
        """Start others in place of engines, whatever these are at."""
        self.supervisor.end([engine.name for engine in engines])
        for engine in engines:
            with suppress(Exception):
                ray.kill(engine.actor, no_restart=True)
            engine.start()

    def generate(self, chosen: Sequence[int], seeds: Sequence[int], moment: Moment) -> Iterator[tuple[Any, Answered]]:
        """Answer prompts on all engines, which begin at once; yields references to blocks in the order in which they
        finish, each with what is in it. A prompt that engines die of is set aside, then and whenever it comes again.

        Raises:
            MachineryError: engines were lost more often than the run bears.
        """
        call, portions = Call(chosen=chosen, seeds=seeds, moment=moment), Portions.of(len(chosen))
        return self._answers(call, portions, self._next(portions, call) if portions.waiting else {})

    def _answers(self, call: Call, portions: Portions, streams: dict[Any, Share]) -> Iterator[tuple[Any, Answered]]:
        while portions.waiting or streams:
            if not streams:
                streams = self._next(portions, call)
                continue
            names = {stream: share.engine.name for stream, share in streams.items()}
            try:
                stream = self.supervisor.patience.next_ready(names, call.moment)
                answer = self._take(stream, names[stream], call.moment)
            except LostError as found:
                error = self.supervisor.located(found)
                lost = [share for share in streams.values() if share.engine.name in error.names]
                self.lose(error, call.moment, sum(len(share.left) for share in lost))
                streams = {stream: share for stream, share in streams.items() if share not in lost}
                for share in lost:
                    self.fatal |= {call.chosen[i] for i in portions.lost(share.places, sorted(share.left))}
                if portions.losses <= CHANCES and portions.waiting and self.serving:
                    streams |= self._next(portions, call)  # others go on with it at once
                continue
            if answer is None:
                if streams.pop(stream).left:
                    raise MachineryError(f"{names[stream]} did not answer all prompts during {call.moment}") from None
                continue
            streams[stream].left -= set(answer[1].places)
            yield answer
        yield from self._set_aside(portions.set_aside, call)

    def _next(self, portions: Portions, call: Call) -> dict[Any, Share]:
        """Give out the next portion, without the prompts that are known to be fatal."""
        places = portions.next()
        portions.set_aside += [i for i in places if call.chosen[i] in self.fatal]
        return self._give([i for i in places if call.chosen[i] not in self.fatal], call)

    def _give(self, places: Sequence[int], call: Call) -> dict[Any, Share]:
        """Share prompts out over the engines that serve."""
        if not places:
            return {}
        if not self.serving:
            self.heal(call.moment)
        engines = self.serving
        parts = share_prompts([call.chosen[i] for i in places], len(engines))
        shares = [Share(engine=engine, places=[places[i] for i in part]) for engine, part in zip(engines, parts)]
        return {
            share.engine.actor.generate.options(num_returns="streaming").remote(
                share.places, *call.of(share.places), self.config.block_size
            ): share
            for share in shares
            if share.places
        }

    def _set_aside(self, places: Sequence[int], call: Call) -> Iterator[tuple[Any, Answered]]:
        """A block that keeps the places of samples that are given up."""
        while places:
            if not self.serving:
                self.heal(call.moment)
            reason, moment = "the engine died of it", call.moment.of("set aside")
            engine = self.serving[0]
            block, answered = engine.actor.set_aside.options(num_returns=2).remote(places, *call.of(places), reason)
            try:
                yield block, fetch(answered, engine.name, moment, self.supervisor.patience)
                return
            except LostError as error:
                self.lose(self.supervisor.located(error), call.moment)

    def _take(self, stream: Any, name: str, moment: Moment) -> tuple[Any, Answered] | None:
        """The next block of a stream with what is in it; None where the stream has ended."""
        patience = self.supervisor.patience
        block = next(stream, None)
        if block is None:
            return None
        patience.next_ready({stream: name}, moment)
        answered = next(stream, block)  # a stream that failed ends with the failure in place of a block
        return block, fetch(answered, name, moment, patience)

    def abandon(self, moment: Moment) -> None:
        """Have the engines drop what they are generating, and an update that nobody will finish."""
        self._each([engine for engine in self.all if not engine.building], ABANDON, moment)

    def decode(self, tokenizer: Path, block: ray.ObjectRef, moment: Moment) -> dict[int, str]:
        """A block's responses as text, by seed."""
        while True:
            if not self.serving:
                self.heal(moment)
            for _, texts in self._each(
                self.serving[:1], "decode", moment, str(tokenizer), self.trust_remote_code, block
            ):
                return dict(texts)

    def sleep(self, moment: Moment) -> None:
        """Give GPU memory to the trainer, where they share it. One that sleeps already sleeps on."""
        if self.sleeps:
            self._each([engine for engine in self.all if not engine.building], "sleep", moment)

    def wake(self, part: str, engines: Sequence[Engine], moment: Moment) -> None:
        """Have them take GPU memory back: ``weights`` before a publish, ``kv_cache`` after."""
        if self.sleeps:
            self._each(engines, "wake", moment, part)

    def prove(self, engines: Sequence[Engine], sent: Fingerprint, version: int, moment: Moment) -> None:
        """Have each of the engines show what it holds, and serve only if that is what the trainer has.

        Raises:
            CanaryError: an engine holds other weights; the message names the layers.
        """
        proven = []
        for engine, held in self._each(engines, "held_fingerprint", moment):
            wrong = differences(sent, held)
            if wrong:
                raise CanaryError(
                    f"canary weights/fingerprint at {moment}: {engine.name} does not hold version {version} of the "
                    f"weights; different in {', '.join(wrong[:6])}"
                    f"{f' and {len(wrong) - 6} more' if len(wrong) > 6 else ''}\n"
                    "  usual causes: a tensor was not sent or was changed on the way; a tied output head was not sent "
                    "under its own name; the engine loads this architecture's weights in another form than they are "
                    "saved"
                )
            proven.append(engine)
        for engine, _ in self._each(proven, "serve", moment, version):
            self._serves(engine, version)

    def outdate(self, version: int) -> None:
        """No engine serves until it has proven the weights that are about to be published."""
        for engine in self.all:
            engine.version = None
            self.supervisor.published(engine.name, version)

    def _each(
        self, engines: Sequence[Engine], method: str, moment: Moment, *arguments: Any
    ) -> list[tuple[Engine, Any]]:
        """Call a method of each; the answers of those that did not get lost."""
        pending = {getattr(engine.actor, method).remote(*arguments): engine for engine in engines}
        answers, patience, work = [], self.supervisor.patience, moment.of(method)
        while pending:
            try:
                ref = patience.next_ready({r: e.name for r, e in pending.items()}, work)
                answers.append((pending[ref], fetch(ref, pending[ref].name, work, patience)))
                del pending[ref]
            except LostError as found:
                error = self.supervisor.located(found)
                self.lose(error, moment)
                pending = {r: engine for r, engine in pending.items() if engine.name not in error.names}
        return answers

    def stop(self) -> None:
        """End every engine and its processes."""
        running = [engine for engine in self.all if not engine.building]
        with suppress(MachineryError):  # an engine that is dead or stuck is killed below
            refs = {engine.actor.stop.remote(): engine.name for engine in running}
            ray.wait(list(refs), num_returns=len(refs), timeout=STOP_SECONDS) if refs else None
        self.kill()

    def kill(self) -> None:
        """End every engine at once, whatever it is at; Ray ends its processes."""
        for engine in self.all:
            ray.kill(engine.actor, no_restart=True)
        self.all = []
