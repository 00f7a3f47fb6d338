"""All rollout engines as one.

Placed and started together, sharing the prompts of a step, proven after every publish.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

from actors.cluster import worker_environment
from actors.placement import Placement
from actors.rollout import RolloutActor
from actors.waiting import Moment, fetch, late, wait
from rlhf.batching import share_prompts
from rlhf.config.schema import Recipe
from rlhf.device import weight_transfer_backend
from rlhf.errors import CanaryError, MachineryError
from rlhf.types import Prompt
from rlhf.weights.fingerprint import Fingerprint, differences

STOP_SECONDS = 30.0
"""Time that engines have to end their own processes before they are killed."""


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
        publishes: bool,
    ) -> None:
        self.config, self.seconds = recipe.rollout, recipe.placement.phase_timeout_seconds
        self.trust_remote_code = recipe.model.trust_remote_code
        self.start_seconds = recipe.placement.start_timeout_seconds
        self.sleeps = publishes and placement.colocated
        self.backend = weight_transfer_backend(placement.device, placement.colocated) if publishes else None
        environment = {
            "env_vars": worker_environment(recipe.placement.threads_per_rank, recipe.placement.ray_address is None)
        }
        self.names = [f"rollout engine {i}" for i in range(self.config.engines)]
        self.actors = [
            ray.remote(RolloutActor)
            .options(runtime_env=environment, **placement.place(i, self.config.tensor_parallel))
            .remote(name, (logs / f"rollout-{i}.log").resolve(), placement.device, self.config.memory_gib, self.backend)
            for i, name in enumerate(self.names)
        ]
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
        )
        self._building = [actor.build.remote(*arguments) for actor in self.actors]

    def ready(self, prompts: Sequence[Prompt]) -> None:
        """Wait until every engine has started, and hand it the prompts."""
        self.names = wait(self._building, self.names, Moment(phase="start"), self.start_seconds)
        shared = ray.put(prompts)
        self._all("use", Moment(phase="start"), shared)

    def generate(self, chosen: Sequence[int], seeds: Sequence[int], moment: Moment) -> Iterator[ray.ObjectRef]:
        """Answer prompts on all engines; yields blocks in the order in which they finish.

        Raises:
            MachineryError: an engine failed, was late, or did not answer every prompt that it was given.
        """
        answered = 0
        streams = {
            actor.generate.options(num_returns="streaming").remote(
                [chosen[i] for i in places], [seeds[i] for i in places], self.config.block_size
            ): name
            for actor, name, places in zip(
                self.actors, self.names, share_prompts(chosen, len(self.actors)), strict=True
            )
            if places
        }
        while streams:
            stream = self._next_ready(streams, moment)
            block = next(stream, None)
            if block is None:
                del streams[stream]
                continue
            self._next_ready({stream: streams[stream]}, moment)
            size = next(stream, block)  # a stream that failed ends with the failure in place of a block
            answered += fetch(size, streams[stream], moment, self.seconds)
            yield block
        if answered != len(chosen):
            raise MachineryError(f"{answered} of {len(chosen)} prompts were answered during {moment}")

    def _next_ready(self, streams: Mapping[Any, str], moment: Moment) -> Any:
        """A stream that has something to give, or has ended."""
        done, _ = ray.wait(list(streams), num_returns=1, timeout=self.seconds, fetch_local=False)
        if not done:
            raise MachineryError(late(list(streams.values()), moment, self.seconds))
        return done[0]

    def decode(self, tokenizer: Path, block: ray.ObjectRef, moment: Moment) -> dict[int, str]:
        """A block's responses as text, by seed."""
        ref = self.actors[0].decode.remote(str(tokenizer), self.trust_remote_code, block)
        return dict(fetch(ref, self.names[0], moment, self.seconds))

    def sleep(self, moment: Moment) -> None:
        """Give GPU memory to the trainer, where they share it."""
        if self.sleeps:
            self._all("sleep", moment)

    def wake(self, part: str, moment: Moment) -> None:
        """Take GPU memory back: ``weights`` before a publish, ``kv_cache`` after."""
        if self.sleeps:
            self._all("wake", moment, part)

    def prove(self, sent: Fingerprint, version: int, moment: Moment) -> None:
        """Have every engine show what it holds, and serve only if that is what the trainer has.

        Raises:
            CanaryError: an engine holds other weights; the message names the layers.
        """
        for name, held in zip(self.names, self._all("held_fingerprint", moment), strict=True):
            wrong = differences(sent, held)
            if wrong:
                raise CanaryError(
                    f"canary weights/fingerprint at {moment}: {name} does not hold version {version} of the weights; "
                    f"different in {', '.join(wrong[:6])}{f' and {len(wrong) - 6} more' if len(wrong) > 6 else ''}\n"
                    "  usual causes: a tensor was not sent or was changed on the way; a tied output head was not sent "
                    "under its own name; the engine loads this architecture's weights in another form than they are "
                    "saved"
                )
        self._all("serve", moment, version)

    def _all(self, method: str, moment: Moment, *arguments: Any) -> list[Any]:
        refs = [getattr(actor, method).remote(*arguments) for actor in self.actors]
        return wait(refs, self.names, moment, self.seconds)

    def stop(self) -> None:
        """End every engine and its processes."""
        with suppress(MachineryError):  # an engine that is dead or stuck is killed below
            wait([actor.stop.remote() for actor in self.actors], self.names, Moment(phase="stop"), STOP_SECONDS)
        for actor in self.actors:
            ray.kill(actor, no_restart=True)
