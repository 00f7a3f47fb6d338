"""All actors of a PPO run: started together, ready together, stopped together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray

from actors.engines import Engines
from actors.group import Group
from actors.placement import Placement
from actors.waiting import Moment, fetch, wait
from actors.weight_client import EngineClient
from rlhf.algorithms.controller import AlgorithmState
from rlhf.config.schema import Recipe
from rlhf.device import Device
from rlhf.roles.assemble import Batch, BatchReport, Contribution, assemble
from rlhf.roles.critic import CriticRole
from rlhf.roles.policy import PolicyRole
from rlhf.roles.reference import ReferenceRole
from rlhf.roles.reward import make_reward
from rlhf.types import Prompt


@dataclass(frozen=True, kw_only=True)
class Crew:
    """The actors of PPO. ``tokenizer`` is the policy's folder; ``rewards`` are by the names of the reward's parts.

    ``judge`` is who watches for over-optimisation, where the recipe asks for that. Without a group of its own for the
    reference, the policy is its own, with its adapters off.
    """

    recipe: Recipe
    tokenizer: str
    rewards: Mapping[str, Group]
    policy: Group
    reference: Group | None
    critic: Group | None
    judge: Group | None
    engines: Engines

    @property
    def scoring(self) -> tuple[tuple[Group, str, Contribution], ...]:
        """Who scores a block, by which method, and what comes of it."""
        reference, method = (self.reference, "logprobs") if self.reference else (self.policy, "reference_logprobs")
        scorers = [(group, "scores", "score", name) for name, group in self.rewards.items()]
        scorers += [(self.policy, "logprobs", "old_logprobs", ""), (reference, method, "ref_logprobs", "")]
        if self.critic is not None:
            scorers.append((self.critic, "values", "values", ""))
        return tuple(
            (group, method, Contribution(kind=kind, ranks=len(group.workers), name=name))
            for group, method, kind, name in scorers
        )

    def score(self, block: ray.ObjectRef) -> list[ray.ObjectRef]:
        """Have every rank of every scoring role compute its share of a block."""
        return [ref for group, method, _ in self.scoring for ref in group.call(method, block)]

    def wait_for_scores(self, refs: Sequence[ray.ObjectRef], moment: Moment) -> None:
        """Wait for the shares of several blocks; they stay where they are."""
        names = [name for group, _, _ in self.scoring for name in group.names]
        everyone = names * (len(refs) // len(names))
        wait(refs, everyone, moment, self.recipe.placement.phase_timeout_seconds, values=False)

    def assemble(
        self, step: int, state: AlgorithmState, parts: Sequence[ray.ObjectRef]
    ) -> tuple[ray.ObjectRef, BatchReport]:
        """Have the policy's first rank put blocks and scores together.

        Returns a reference to the experience, and its report.
        """
        contributions = tuple(contribution for _, _, contribution in self.scoring)
        batch = Batch(recipe=self.recipe, tokenizer=self.tokenizer, step=step, state=state, contributions=contributions)
        experience, report = self.policy.workers[0].run.options(num_returns=2).remote(assemble, batch, *parts)
        seconds = self.recipe.placement.phase_timeout_seconds
        return experience, fetch(report, self.policy.names[0], Moment(phase="advantages", step=step), seconds)

    def update(self, experience: ray.ObjectRef, step: int) -> dict[str, float]:
        """Train critic and policy at the same time; the policy rests while the critic warms up."""
        rests = step < self.recipe.algorithm.critic_warmup_steps
        groups = [group for group in (self.critic, None if rests else self.policy) if group is not None]
        refs = [ref for group in groups for ref in group.call("update", experience, step)]
        names = [name for group in groups for name in group.names]
        answers = wait(refs, names, Moment(phase="update", step=step), self.recipe.placement.phase_timeout_seconds)
        return {name: value for answer in answers for name, value in answer.items()}


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a crew starts from: model folders, the engine's limits, the prompts, and where logs go.

    ``reward_models`` are the folders of the reward's parts that are models, by name; ``judge_model`` is that of a judge
    that is one. ``held_out`` are the prompts whose answers are judged.
    """

    policy: Path
    critic: Path
    reward_models: Mapping[str, Path]
    max_length: int
    end_tokens: Sequence[int]
    prompts: Sequence[Prompt]
    logs: Path
    judge_model: Path | None = None
    held_out: Sequence[Prompt] = ()


@contextmanager
def crew(
    recipe: Recipe, start: Start, device: Device, gpus: int, policy_role: type[PolicyRole] = PolicyRole
) -> Iterator[Crew]:
    """Have all actors within the block, loaded, connected and given their prompts; they end with it."""
    placement = Placement(recipe, device, "ppo", gpus)
    with ExitStack() as stack:
        stack.callback(placement.free)
        # Engines first: they take longest to start.
        engines = Engines(
            recipe, placement, start.policy, start.max_length, start.end_tokens, start.logs, publishes=True
        )
        stack.callback(engines.stop)
        groups = _groups(recipe, placement, start.logs, stack)
        if placement.colocated:
            engines.ready(start.prompts)  # vLLM measures the free memory: nothing else may be loading
        _start(groups, recipe, start, policy_role)
        for group in groups.values():
            group.ready()
        if not placement.colocated:
            engines.ready(start.prompts)
        _connect(groups["policy"], engines, recipe)
        yield Crew(
            recipe=recipe,
            tokenizer=str(start.policy),
            rewards={name: groups[_reward(name)] for name in recipe.rewards},
            policy=groups["policy"],
            reference=groups.get("reference"),
            critic=groups.get("critic"),
            judge=groups.get("judge"),
            engines=engines,
        )


def _reward(name: str) -> str:
    """The group of a part of the reward."""
    return f"reward {name}"


def _groups(recipe: Recipe, placement: Placement, logs: Path, stack: ExitStack) -> dict[str, Group]:
    """A group for each role that the recipe has, by name, placed and not yet started; ``stack`` stops them."""
    groups: dict[str, Group] = {}

    def add(role: str, name: str, gpus: int = 1) -> None:
        ranks = getattr(recipe.placement, role).ranks if gpus else 1
        groups[name] = Group(name, ranks, placement, logs, gpus)
        stack.callback(groups[name].stop)

    add("policy", "policy")
    if recipe.algorithm.has_critic:
        add("critic", "critic")
    if recipe.has_reference:
        add("reference", "reference")
    for name, source in recipe.rewards.items():
        add("reward", _reward(name), gpus=1 if source.model else 0)
    if recipe.early_stop is not None:
        add("reward", "judge", gpus=1 if recipe.early_stop.scorer.model else 0)
    return groups


def _start(groups: Mapping[str, Group], recipe: Recipe, start: Start, policy_role: type[PolicyRole]) -> None:
    """Have every group load what it holds."""
    policy = str(start.policy)
    groups["policy"].start(policy_role, recipe, policy)
    if "critic" in groups:
        groups["critic"].start(CriticRole, recipe, str(start.critic))
    if "reference" in groups:
        groups["reference"].start(ReferenceRole, recipe, policy)
    prompts = ray.put(start.prompts)
    for name, source in recipe.rewards.items():
        folder = str(start.reward_models[name]) if source.model else None
        groups[_reward(name)].start(make_reward, recipe, source, policy, folder, prompts)
    if recipe.early_stop is not None:
        folder = str(start.judge_model) if start.judge_model else None
        groups["judge"].start(make_reward, recipe, recipe.early_stop.scorer, policy, folder, start.held_out)


def _connect(policy: Group, engines: Engines, recipe: Recipe) -> None:
    client = EngineClient(engines.actors, recipe.rollout.tensor_parallel, recipe.placement.phase_timeout_seconds)
    address, port = policy.meeting_point()
    workers = recipe.rollout.engines * recipe.rollout.tensor_parallel
    policy.ask("connect", client, engines.backend, workers, address, port, moment=Moment(phase="connect"))
