"""All actors of a PPO run: started together, ready together, stopped together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray

from actors.engines import Engines
from actors.group import Group
from actors.placement import Placement
from actors.waiting import Moment, fetch, wait
from actors.weight_client import EngineClient
from rlhf.config.schema import Recipe
from rlhf.device import Device
from rlhf.roles.assemble import Batch, BatchReport, assemble
from rlhf.roles.critic import CriticRole
from rlhf.roles.policy import PolicyRole
from rlhf.roles.reference import ReferenceRole
from rlhf.roles.reward import FunctionReward, RewardRole
from rlhf.types import Prompt


@dataclass(frozen=True, kw_only=True)
class Crew:
    """The actors of PPO. ``tokenizer`` is the policy's folder."""

    recipe: Recipe
    tokenizer: str
    reward: Group
    policy: Group
    reference: Group
    critic: Group
    engines: Engines

    @property
    def scoring(self) -> tuple[tuple[Group, str], ...]:
        """Who scores a block, and by which method, in the order that ``assemble`` expects."""
        return (self.reward, "scores"), (self.policy, "logprobs"), (self.reference, "logprobs"), (self.critic, "values")

    def score(self, block: ray.ObjectRef) -> list[ray.ObjectRef]:
        """Have every rank of every scoring role compute its share of a block."""
        return [ref for group, method in self.scoring for ref in group.call(method, block)]

    def wait_for_scores(self, refs: Sequence[ray.ObjectRef], moment: Moment) -> None:
        """Wait for the shares of several blocks; they stay where they are."""
        names = [name for group, _ in self.scoring for name in group.names]
        everyone = names * (len(refs) // len(names))
        wait(refs, everyone, moment, self.recipe.placement.phase_timeout_seconds, values=False)

    def assemble(self, step: int, parts: Sequence[ray.ObjectRef]) -> tuple[ray.ObjectRef, BatchReport]:
        """Have the policy's first rank put blocks and scores together.

        Returns a reference to the experience, and its report.
        """
        counts = [len(group.workers) for group, _ in self.scoring]
        batch = Batch(recipe=self.recipe, tokenizer=self.tokenizer, version=step, step=step, ranks=tuple(counts))
        experience, report = self.policy.workers[0].run.options(num_returns=2).remote(assemble, batch, *parts)
        seconds = self.recipe.placement.phase_timeout_seconds
        return experience, fetch(report, self.policy.names[0], Moment(phase="advantages", step=step), seconds)


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a crew starts from: model folders, the engine's limits, the prompts, and where logs go."""

    policy: Path
    reward: Path
    max_length: int
    end_tokens: Sequence[int]
    prompts: Sequence[Prompt]
    logs: Path


@contextmanager
def crew(
    recipe: Recipe, start: Start, device: Device, gpus: int, policy_role: type[PolicyRole] = PolicyRole
) -> Iterator[Crew]:
    """Have all actors within the block, loaded, connected and given their prompts; they end with it."""
    placement = Placement(recipe, device, "ppo", gpus)
    function = recipe.reward.scorer is not None
    groups: list[Group] = []
    engines: list[Engines] = []
    try:
        # Engines first: they take longest to start.
        engines.append(
            Engines(recipe, placement, start.policy, start.max_length, start.end_tokens, start.logs, publishes=True)
        )
        groups += [_group("policy", recipe, placement, start), _group("critic", recipe, placement, start)]
        groups += [
            _group("reference", recipe, placement, start),
            Group("reward", 1, placement, start.logs, gpus=0)
            if function
            else _group("reward", recipe, placement, start),
        ]
        policy, critic, reference, reward = groups
        if placement.colocated:
            engines[0].ready(start.prompts)  # vLLM measures the free memory: nothing else may be loading
        policy.start(policy_role, recipe, str(start.policy))
        critic.start(CriticRole, recipe, str(start.policy if function else start.reward))
        reference.start(ReferenceRole, recipe, str(start.policy))
        reward.start(
            *(FunctionReward, recipe, str(start.policy)) if function else (RewardRole, recipe, str(start.reward))
        )
        for group in groups:
            group.ready()
        if not placement.colocated:
            engines[0].ready(start.prompts)
        _connect(policy, engines[0], recipe)
        yield Crew(
            recipe=recipe,
            tokenizer=str(start.policy),
            reward=reward,
            policy=policy,
            reference=reference,
            critic=critic,
            engines=engines[0],
        )
    finally:
        for group in groups:
            group.stop()
        for engine in engines:
            engine.stop()
        placement.free()


def _group(role: str, recipe: Recipe, placement: Placement, start: Start) -> Group:
    return Group(role, getattr(recipe.placement, role).ranks, placement, start.logs)


def _connect(policy: Group, engines: Engines, recipe: Recipe) -> None:
    client = EngineClient(engines.actors, recipe.rollout.tensor_parallel, recipe.placement.phase_timeout_seconds)
    address, port = policy.meeting_point()
    workers = recipe.rollout.engines * recipe.rollout.tensor_parallel
    policy.ask("connect", client, engines.backend, workers, address, port, moment=Moment(phase="connect"))
