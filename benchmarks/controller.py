"""CPU time of the controller for each sample of a step: rollouts, scoring and the arguments of ``assemble``.

    python -m benchmarks.controller [--samples 25000 50000 100000] [--ranks 256]

A few real actors stand for all ranks and engines, and compute nothing: blocks and results have the size of a sample's
identity alone, while their summaries report real lengths. Everything that the controller does for a step's samples is
the real thing. Where its work is linear, the time for each sample does not grow with the samples.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import ray

from actors import engines as engines_module
from actors.blocks import draw_step, generate_blocks
from actors.cluster import cluster, worker_environment
from actors.engines import Engines
from actors.group import Group
from actors.placement import Placement
from actors.process import ProcessLocation, locate_process
from actors.rollout import BlockSummary
from actors.scoring import ScoredBlocks, Scoring, ScoringMethod
from actors.supervisor import Supervisor
from actors.waiting import PhaseContext, fetch
from actors.worker import HEARTBEAT, Worker
from rlhf.config.schema import PlacementConfig, PPOConfig, Recipe, RoleConfig, RolloutConfig
from rlhf.data.order import OrderState
from rlhf.placement.pools import Sharing
from rlhf.roles.assemble import ResultSpec, ScoredUnit
from rlhf.roles.block_result import BlockResult
from rlhf.types import FinishReason, Prompt, Rollout, RolloutBlock

PROCESSES = 2
"""Real actors that stand for the ranks, and real engines."""
SAMPLE_TOKENS = 256
"""Tokens of each sample that a summary reports."""
ROW_TOKENS = 16_384
SCORERS = ("policy", "reference", "critic", "reward")
PER_PROMPT = 4


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one simulated step cost the controller."""

    samples: int
    ranks: int
    tasks: int
    """Scoring tasks sent to ranks."""
    references: int
    """Blocks and results that ``assemble`` gets, in a list."""
    waits: int
    """Calls of ``ray.wait``, each of which costs time in proportion to its references."""
    longest_wait: int
    """Most references in a call of ``ray.wait``."""
    controller_us_per_sample: float
    """CPU time of the controller's thread."""
    process_us_per_sample: float
    """CPU time of the controller's process, with Ray's own threads."""


class StandInEngine:
    """An engine whose answers are one token long."""

    def __init__(self, name: str, log: Path, *_: Any) -> None:
        self.where = locate_process(name, log)

    async def build(self, *_: Any) -> ProcessLocation:
        """Nothing is loaded."""
        return self.where

    async def set_prompts(self, prompts: Any) -> None:
        """Prompts are known by their indices."""

    async def generate(
        self, positions: Sequence[int], indices: Sequence[int], seeds: Sequence[int], block_size: int
    ) -> AsyncIterator[RolloutBlock | BlockSummary]:
        """See ``RolloutActor.generate``."""
        for begin in range(0, len(positions), block_size):
            part = slice(begin, begin + block_size)
            yield RolloutBlock.pack([_rollout(prompt, seed) for prompt, seed in zip(indices[part], seeds[part])])
            tokens, where = SAMPLE_TOKENS * len(positions[part]), tuple(positions[part])
            yield BlockSummary(stream="", tokens=tokens, positions=where, set_aside=(), faults=())

    async def stop(self) -> None:
        """Nothing has to be ended."""


class StandInRole:
    """A role that computes nothing."""

    def scores(self, block: RolloutBlock) -> BlockResult:
        """A number for each sample."""
        return BlockResult(samples=np.arange(len(block)), values=np.zeros(len(block), dtype=np.float32))


def _rollout(prompt: int, seed: int) -> Rollout:
    return Rollout(
        prompt=Prompt(id=prompt, tokens=(1,)),
        tokens=np.array([2], dtype=np.int32),
        logprobs=np.zeros(1, dtype=np.float32),
        mask=np.ones(1, dtype=bool),
        weight_version=0,
        finish_reason=FinishReason.STOP,
        seed=seed,
    )


def count_samples(units: Sequence[ScoredUnit], values: Sequence[Any]) -> tuple[None, int]:
    """In place of ``assemble``: the number of samples in all blocks, beside a result that stays with the actor."""
    return None, sum(len(value) for value in values if isinstance(value, RolloutBlock))


def make_recipe(samples: int, ranks: int) -> Recipe:
    """A step of so many samples on so many ranks of each role."""
    role = RoleConfig(ranks=ranks, micro_batch_tokens=ROW_TOKENS)
    return Recipe(
        name="controller",
        ppo=PPOConfig(batch_size=samples, samples_per_prompt=PER_PROMPT),
        rollout=RolloutConfig(engines=PROCESSES),
        placement=PlacementConfig(policy=role, critic=role, reference=role, reward=role),
    )


class Simulation:
    """The controller of a step over actors that stand for ``ranks`` ranks of each role."""

    def __init__(self, ranks: int, logs: Path) -> None:
        self.recipe, self.ranks, self.logs = make_recipe(PER_PROMPT, ranks), ranks, logs
        self.supervisor = Supervisor(self.recipe, lambda kind, **details: None)
        with mock.patch.object(engines_module, "RolloutActor", StandInEngine):
            placement = Placement(self.recipe, "cpu", "generate", 0)
            self.engines = Engines(self.recipe, placement, logs, 8, [1], logs, self.supervisor, publishes=False)
            self.engines.ready([])
        environment = {"env_vars": worker_environment(1, own_ray=True)}
        make = ray.remote(num_cpus=0, concurrency_groups={HEARTBEAT: 1}, runtime_env=environment)(Worker)
        self.workers = [make.remote(f"rank {i}", logs / f"rank-{i}.log") for i in range(PROCESSES)]
        ray.get([worker.build.remote(StandInRole) for worker in self.workers])

    def scorers(self, role: RoleConfig) -> list[ScoringMethod]:
        """Scorers whose ranks are stood for in turn."""
        return [
            ScoringMethod.by_role(self._group(name), "scores", ResultSpec(kind="score", name=name), role)
            for name in SCORERS
        ]

    def _group(self, name: str) -> Group:
        group = Group.__new__(Group)  # its constructor would start a process for every rank
        group.workers = [self.workers[rank % PROCESSES] for rank in range(self.ranks)]
        group.names = [f"{name} rank {rank}" for rank in range(self.ranks)]
        group.offload_mode, group.sharing = None, Sharing()
        return group

    def step(self, samples: int) -> Measured:
        """Measure one step."""
        recipe = make_recipe(samples, self.ranks)
        actors: Any = SimpleNamespace(
            recipe=recipe,
            engines=self.engines,
            supervisor=self.supervisor,
            scorers=self.scorers(recipe.placement.policy),
            offload=lambda groups, context: None,
        )
        with counted_waits() as lengths:
            thread, process = time.thread_time(), time.process_time()
            scored, counted = self._score(actors, recipe)
            thread, process = time.thread_time() - thread, time.process_time() - process
        assert counted == samples, "samples are missing"
        return Measured(
            samples=samples,
            ranks=self.ranks,
            tasks=sum(unit.parts for unit in scored.units),
            references=len(scored.refs),
            waits=len(lengths),
            longest_wait=max(lengths, default=0),
            controller_us_per_sample=round(1e6 * thread / samples, 2),
            process_us_per_sample=round(1e6 * process / samples, 2),
        )

    def _score(self, actors: Any, recipe: Recipe) -> tuple[ScoredBlocks, int]:
        """Steps 1 to 4 of ``PPOTrainer.step``, but for what actors compute."""
        prompt_count, context = recipe.ppo.batch_size, PhaseContext(phase="rollout", step=0)
        scoring = Scoring(actors, replace(context, phase="score"), recipe.ppo.batch_size)
        for block in generate_blocks(self.engines, draw_step(recipe, prompt_count, 0, OrderState(0, 0)), 0, context):
            scoring.send(block)
        scored = scoring.wait_for_results()
        task = self.workers[0].run_on_values.options(num_returns=2)
        _, counted = task.remote(count_samples, scored.refs, scored.units)
        return scored, fetch(counted, "policy rank 0", context, self.supervisor.deadlines)

    def stop(self) -> None:
        """End all actors."""
        self.engines.stop()
        for worker in self.workers:
            ray.kill(worker)


@contextmanager
def counted_waits() -> Iterator[list[int]]:
    """Context that records the number of references in each call of ``ray.wait``."""
    lengths: list[int] = []
    wait = ray.wait

    def counted(refs: list[Any], **options: Any) -> Any:
        lengths.append(len(refs))
        return wait(refs, **options)

    with mock.patch.object(ray, "wait", counted):
        yield lengths


def main() -> None:
    """Print one JSON line for each number of samples; the first step, which is the smallest, warms up."""
    parser = argparse.ArgumentParser(description="CPU time of the controller for each sample of a step.")
    parser.add_argument("--samples", type=int, nargs="+", default=[25_000, 50_000, 100_000])
    parser.add_argument("--ranks", type=int, default=256, help="ranks of each role, which two actors stand for")
    options = parser.parse_args()
    with cluster(None), tempfile.TemporaryDirectory() as folder:
        simulation = Simulation(options.ranks, Path(folder))
        simulation.step(PER_PROMPT * options.ranks)
        for samples in options.samples:
            print(json.dumps(asdict(simulation.step(samples))), flush=True)
        simulation.stop()


if __name__ == "__main__":
    main()
