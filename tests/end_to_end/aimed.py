"""``python -m tests.end_to_end.aimed ppo RECIPE ...``: the command line, with faults at moments that no signal hits.

``AIMED`` says which, as ``fault@step``. Each happens once: ``AIMED_MARKS`` is a folder that keeps which have happened.
The policy is the real one but for these.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor

from actors.process import ProcessLocation
from actors.rollout import RolloutActor
from rlhf.models.load import DTYPES
from rlhf.roles.policy import PolicyRole
from rlhf.types import Experience, RolloutBlock
from rlhf.zero.source import ZeroSource

CHUNK_BYTES = 60_000
"""Several chunks a publish, however small the model."""
STUCK_SECONDS = 600.0
MANY_STEPS = 20
"""Steps of vLLM after which a rollout is in its middle."""


class Unreadable:
    """An answer that the controller cannot read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


class Aims:
    """The faults that are still to happen, as seen by one rank."""

    def __init__(self, rank: int) -> None:
        self.rank, self.marks = rank, Path(os.environ["AIMED_MARKS"])
        self.steps = {name: int(step) for name, _, step in (aim.partition("@") for aim in os.environ["AIMED"].split())}

    def hit(self, fault: str, step: int) -> bool:
        """Whether this fault happens now, to this rank."""
        mark = self.marks / f"{fault}-{self.rank}"
        if self.steps.get(fault) != step or mark.exists():
            return False
        mark.touch()
        return True

    def has_happened(self, fault: str, rank: int) -> bool:
        return (self.marks / f"{fault}-{rank}").exists()


class AimedSource(ZeroSource):
    """Ends its process in the middle of the stream of weights: an update is open in the engines."""

    aims: Aims
    step = -1

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        last = len(self.metadata()) - 1
        for place, named in enumerate(super().__iter__()):
            for fault, rank, moment in (
                ("sender-dies-at-once", 0, 0),
                ("sender-dies", 0, last // 2),
                ("sender-dies-late", 0, last),
                ("peer-dies", 1, last // 2),
            ):
                if self.aims.rank == rank and place == moment and self.aims.hit(fault, self.step):
                    os._exit(1)
            yield named


class AimedPolicy(PolicyRole):
    """The policy, with faults."""

    def __init__(self, recipe: Any, folder: str, rank: Any) -> None:
        from rlhf.weights import shared_memory

        shared_memory.CHUNK_BYTES = CHUNK_BYTES
        self.aims, self.slow_seconds = Aims(rank.rank), recipe.recovery.stall_floor_seconds + 2
        super().__init__(recipe, folder, rank)

    def make_source(self) -> AimedSource:
        """The stream that may end."""
        source = AimedSource(self.engine, self.lm, DTYPES[self.recipe.model.dtype])
        source.aims = self.aims
        return source

    def logprobs(self, block: RolloutBlock) -> Any:
        """All ranks are stuck at once."""
        if self.aims.hit("group-stalls", self.source.step + 1):
            time.sleep(STUCK_SECONDS)
        return super().logprobs(block)

    def update(self, experience: Experience, step: int) -> Any:
        """A rank dies in it; the update that is made in its place takes longer than the floor of all deadlines."""
        if self.aims.rank == 1 and self.aims.hit("rank-dies", step):
            os._exit(1)
        if self.aims.has_happened("rank-dies", 1) and self.aims.hit("slow", step):
            time.sleep(self.slow_seconds)
        metrics = super().update(experience, step)
        self.source.step = step
        return Unreadable() if self.aims.rank == 0 and self.aims.hit("unreadable", step) else metrics

    def snapshot(self) -> Any:
        """A rank dies in it: there is the one before."""
        if self.aims.rank == 1 and self.aims.hit("snapshot-dies", self.source.step):
            os._exit(1)
        return super().snapshot()


class AimedEngine(RolloutActor):
    """The engine's actor, which is killed at its work, or in which vLLM fails in the middle of a rollout."""

    async def build(self, *arguments: Any) -> ProcessLocation:
        where = await super().build(*arguments)
        aims, llm, steps = Aims(0), self.engine.llm, count()
        step = llm.step

        def fail_or_step() -> list[Any]:
            if aims.hit("engine-dies", self.engine.version):
                os.kill(os.getpid(), signal.SIGKILL)
            if next(steps) > MANY_STEPS and aims.hit("vllm-fails", self.engine.version):
                raise RuntimeError("out of blocks")
            found: list[Any] = step()
            return found

        llm.step = fail_or_step
        return where


def main() -> int:
    """The command line with that policy and that engine."""
    import actors.engines
    import actors.ppo
    from launch.cli import main as command
    from tests.end_to_end.aimed import AimedEngine

    actors.engines.RolloutActor = AimedEngine  # type: ignore[misc]
    actors.ppo.start_actors = partial(actors.ppo.start_actors, policy_role="tests.end_to_end.aimed:AimedPolicy")
    return command()


if __name__ == "__main__":
    sys.exit(main())
