"""Problems with a known optimal policy, and the project's update on tabular policies.

All that is not the project's here is the table in place of a language model, the sampler in place of the engine, and
one process in place of DeepSpeed's ranks. The rest is what a run does: blocks, experience, minibatches, losses, roles.

The problems maximise E[score − β Σ_t log(π/π_ref)]. A state is the prompt before the first token, and the place before
the others; where the table has fewer rows than there are states, the last row serves the rest.

Shapes: S rows of a table, V tokens, n samples, L longest response.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import get_scheduler

from rlhf.algorithms import canaries
from rlhf.algorithms.state import AlgorithmState
from rlhf.config.schema import (
    AlgorithmConfig,
    CanaryConfig,
    OptimizerConfig,
    PlacementConfig,
    PPOConfig,
    Recipe,
    RoleConfig,
    RolloutConfig,
)
from rlhf.config.stages import critic_updates, policy_updates
from rlhf.experience import Scored, build_experience, drop_uniform_groups, experience_metrics
from rlhf.models.logprobs import Entropy, token_logprobs
from rlhf.models.packed_row import PackedRow
from rlhf.roles.block_result import join_tokens
from rlhf.roles.critic import CriticRole
from rlhf.roles.policy import PolicyRole
from rlhf.types import FinishReason, RolloutBlock, Sequences
from rlhf.zero.finite import FiniteCheck
from rlhf.zero.process_group import Rank
from rlhf.zero.settings import SCHEDULES, optimizer_arguments

Array = np.ndarray
HERE = Rank(rank=0, world=1, rendezvous="", device="cpu", threads=1, timeout_seconds=1.0)


def softmax(logits: Array) -> Array:
    """(S, V) probabilities of rows of logits."""
    likely = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return likely / likely.sum(axis=-1, keepdims=True)


def divergence(policy: Array, reference: Array) -> Array:
    """(S,) KL(policy ‖ reference) of every row, in nats."""
    return (policy * np.log(policy / reference)).sum(axis=-1)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Sampling and rewards of a problem.

    ``reference`` (S, V) probabilities; ``end`` the end token, without which every response has L tokens; ``score``
    takes prompts (n,), tokens (n, L) and lengths (n,) and gives (n,); ``objective`` is J of a policy (S, V), exactly.
    """

    reference: Array
    longest: int
    prompts: int
    end: int | None
    score: Callable[[Array, Array, Array], Array]
    objective: Callable[[Array, float], float]


# A. Four prompts, eight answers of one token.

BANDIT_REWARDS = np.array([[(2 * k + 3 * a) % 5 / 4 for a in range(8)] for k in range(4)])
BANDIT_REFERENCE = softmax(np.array([[(3 * k + 5 * a) % 7 / 3 for a in range(8)] for k in range(4)]))


def bandit_objective(policy: Array, beta: float) -> float:
    """Mean over prompts of E[r] − β KL."""
    gain = (policy * BANDIT_REWARDS).sum(axis=-1)
    return float((gain - beta * divergence(policy, BANDIT_REFERENCE)).mean())


BANDIT = Problem(
    reference=BANDIT_REFERENCE,
    longest=1,
    prompts=4,
    end=None,
    score=lambda prompts, tokens, lengths: BANDIT_REWARDS[prompts, tokens[:, 0]],
    objective=bandit_objective,
)

# B. Sixteen tokens of 32, eight of which make the score. All places share one distribution.

CLASS_SIZE, CLASS_LENGTH = 8, 16
CLASS_REFERENCE = np.full((1, 32), 1 / 32)


def in_class(policy: Array) -> float:
    """q, the probability of a token of the class."""
    return float(policy[0, :CLASS_SIZE].sum())


def class_objective(policy: Array, beta: float) -> float:
    """Tokens do not depend on each other: sixteen times that of one."""
    return in_class(policy) - CLASS_LENGTH * beta * float(divergence(policy, CLASS_REFERENCE)[0])


TOKEN_CLASS = Problem(
    reference=CLASS_REFERENCE,
    longest=CLASS_LENGTH,
    prompts=1,
    end=None,
    score=lambda prompts, tokens, lengths: (tokens < CLASS_SIZE).mean(axis=1),
    objective=class_objective,
)

# C. When to stop: at each of twelve places the end token has a probability, its hazard.

END, LENGTH_LIMIT = 1, 12
LENGTH_REFERENCE = np.tile([0.9, 0.1], (LENGTH_LIMIT, 1))
LENGTH_SCORES = np.array([1.0 if 4 <= length <= 6 else 0.0 for length in range(1, LENGTH_LIMIT + 1)])
MISSING_END = -1.0


def reached(policy: Array) -> Array:
    """(13,) the probability of coming to each place, and past the last one without an end."""
    return np.concatenate([[1.0], np.cumprod(policy[:, 1 - END])])


def length_objective(policy: Array, beta: float) -> float:
    """Over lengths: each has its score, and each place that is come to its KL."""
    at = reached(policy)
    gain = (at[:-1] * policy[:, END] * LENGTH_SCORES).sum() + at[-1] * MISSING_END
    return float(gain - beta * (at[:-1] * divergence(policy, LENGTH_REFERENCE)).sum())


STOPPING = Problem(
    reference=LENGTH_REFERENCE,
    longest=LENGTH_LIMIT,
    prompts=1,
    end=END,
    score=lambda prompts, tokens, lengths: LENGTH_SCORES[lengths - 1],
    objective=length_objective,
)


# The project's roles over tables.


def states(row: PackedRow, places: Tensor) -> Tensor:
    """The state at each place of a row, whose prompts are one token: the prompt, and after it the place."""
    positions = row.positions[0, places]
    return torch.where(positions == 0, row.tokens[0, places], positions)


class LogitTable(nn.Module):
    """A policy network whose logits are its parameters, (S, V)."""

    form = "packed"

    def __init__(self, probabilities: Array) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(np.log(probabilities), dtype=torch.float32))

    def forward(self, row: PackedRow, temperature: float, entropy: Entropy = "none") -> tuple[Tensor, ...]:
        hidden = self.logits[states(row, row.predict_at).clamp(max=len(self.logits) - 1)]
        return token_logprobs(hidden, lambda logits: logits, row.targets, temperature, hidden.shape[1], entropy)


class ValueTable(nn.Module):
    """A critic whose values are its parameters, (S,)."""

    form, reader = "packed", "head"

    def __init__(self, count: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(count))

    def forward(self, row: PackedRow, places: Tensor) -> Tensor:
        return self.values[states(row, places)]


class PlainEngine:
    """Stand-in for ``ZeroEngine``: one process, without DeepSpeed."""

    def __init__(self, network: nn.Module, config: OptimizerConfig, total_updates: int) -> None:
        self.engine, self.parameters, self.finite = network, list(network.parameters()), FiniteCheck()
        self.optimizer = torch.optim.AdamW(self.parameters, **optimizer_arguments(config))
        self.schedule = get_scheduler(SCHEDULES[config.schedule], self.optimizer, 0, total_updates)

    def forward(self, *arguments: object) -> object:
        with torch.no_grad():
            return self.engine(*arguments)

    def update(self, micro_batches: list[object], loss: Callable[[object], Tensor], count: int) -> float:
        self.optimizer.zero_grad()
        for micro_batch in micro_batches:
            (loss(micro_batch) / max(1, count)).backward()
        self.finite.require(self.all_reduce)
        self.learning_rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        self.schedule.step()
        return float(torch.nn.utils.get_total_norm([p.grad for p in self.parameters]))

    def skip_updates(self, count: int) -> None:
        for _ in range(count):
            self.schedule.step()

    def all_reduce(self, sums: Tensor) -> Tensor:
        return sums


class TablePolicy(PolicyRole):
    """The project's policy role with a table as language model. The reference is another, never updated."""

    def __init__(self, recipe: Recipe, probabilities: Array) -> None:
        self.recipe, self.config, self.rank = recipe, recipe.placement.policy, HERE
        self.device, self.network = torch.device("cpu"), LogitTable(probabilities)
        self.engine = PlainEngine(self.network, recipe.ppo.optimizer, policy_updates(recipe))

    def utilisation(self, *measured: object) -> dict[str, float]:
        """A table has no layers whose operations could be counted."""
        return {}

    def probabilities(self) -> Array:
        """(S, V) at the sampling temperature, in float64."""
        return softmax(self.network.logits.detach().double().numpy() / self.recipe.rollout.temperature)


class TableCritic(CriticRole):
    """The project's critic role with a table as network."""

    def __init__(self, recipe: Recipe, count: int) -> None:
        self.recipe, self.config, self.rank = recipe, recipe.placement.critic, HERE
        self.device, self.network = torch.device("cpu"), ValueTable(count)
        self.engine = PlainEngine(self.network, recipe.ppo.critic_optimizer, critic_updates(recipe))


# Training.


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long and how fast; rates fall to 0 in a straight line."""

    steps: int
    batch: int
    lr: float
    group: int = 1
    temperature: float = 1.0
    engine_bias: float = 0.0
    """Added to every second logit in sampling, so that the engine's probabilities differ from the trainer's."""
    seed: int = 0

    def recipe(self, problem: Problem, algorithm: AlgorithmConfig) -> Recipe:
        """The recipe of a run of this size."""
        role = RoleConfig(micro_batch_tokens=10**6)
        optimizer = OptimizerConfig(lr=self.lr, schedule="linear", betas=(0.9, 0.99), eps=1e-8)
        return Recipe(
            name="tabular",
            seed=self.seed,
            algorithm=algorithm,
            rollout=RolloutConfig(temperature=self.temperature, max_response_length=problem.longest),
            ppo=PPOConfig(
                steps=self.steps,
                batch_size=self.batch,
                samples_per_prompt=self.group,
                optimizer=optimizer,
                critic_optimizer=optimizer,
            ),
            placement=PlacementConfig(policy=role, critic=role),
            canaries=CanaryConfig(logprob_gap_limit=1e9 if self.engine_bias else None),
        )


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The policy (S, V) at the end, and every step's metrics."""

    policy: Array
    metrics: list[dict[str, float]]


def train(problem: Problem, algorithm: AlgorithmConfig, budget: Budget) -> Trained:
    """Run the training with its canaries; the policy starts as the reference."""
    recipe = budget.recipe(problem, algorithm)
    limits, random = canaries.Limits.of(recipe.canaries, "float32"), np.random.default_rng(budget.seed)
    start = problem.reference**budget.temperature
    policy, reference = TablePolicy(recipe, start), TablePolicy(recipe, start)
    critic = TableCritic(recipe, max(problem.prompts, problem.longest)) if algorithm.has_critic else None
    state, history = AlgorithmState.start(algorithm), []
    for step in range(budget.steps):
        block, raw = sample(problem, policy.probabilities(), budget, random)
        block = replace(block, weight_versions=np.full(len(block), step))
        scored = score(block, raw, policy, reference, critic)
        experience, state = build_experience(scored, raw, algorithm, state, problem.longest)
        metrics = experience_metrics(experience, raw, step)
        if algorithm.drop_uniform_groups:
            experience, *_ = drop_uniform_groups(experience, budget.batch, random)
        metrics |= policy.update(experience, step)
        if critic is not None:
            metrics |= critic.update(experience, step)
        canaries.check(metrics, step, limits)
        history.append(metrics)
    return Trained(policy=policy.probabilities(), metrics=history)


def score(
    block: RolloutBlock, raw: Array, policy: TablePolicy, reference: TablePolicy, critic: TableCritic | None
) -> Scored:
    """Scores, log-probabilities and values of the rollouts."""
    old, ref = (join_tokens([role.logprobs(block)], block.sequences) for role in (policy, reference))
    return Scored(
        rollouts=block,
        scores={"score": raw},
        dropped=np.zeros(len(block), dtype=bool),
        old_logprobs=old,
        ref_logprobs=ref,
        values=None if critic is None else join_tokens([critic.values(block)], block.sequences),
    )


def sample(problem: Problem, policy: Array, budget: Budget, random: np.random.Generator) -> tuple[RolloutBlock, Array]:
    """Responses, grouped by prompt, and their raw scores."""
    groups = np.repeat(np.arange(budget.batch // budget.group), budget.group)
    prompts, everyone = groups % problem.prompts, np.arange(budget.batch)
    biased = softmax(np.log(policy) + budget.engine_bias * (np.arange(policy.shape[1]) % 2))
    tokens = np.zeros((budget.batch, problem.longest), dtype=np.int32)
    chances = np.zeros(tokens.shape)
    for t in range(problem.longest):
        likely = biased[np.minimum(prompts if t == 0 else t, len(biased) - 1)]
        draws = random.random((budget.batch, 1))
        tokens[:, t] = np.minimum((likely.cumsum(axis=-1) < draws).sum(axis=-1), policy.shape[1] - 1)
        chances[:, t] = np.broadcast_to(likely, (budget.batch, policy.shape[1]))[everyone, tokens[:, t]]
    ended = tokens == problem.end if problem.end is not None else np.zeros(tokens.shape, dtype=bool)
    stopped = ended.any(axis=1)
    lengths = np.where(stopped, ended.argmax(axis=1) + 1, problem.longest).astype(np.int32)
    raw = problem.score(prompts, tokens, lengths).astype(np.float32)
    return block_of(prompts, tokens, lengths, np.log(chances), groups, stopped | (problem.end is None)), raw


def block_of(
    prompts: Array, tokens: Array, lengths: Array, logprobs: Array, groups: Array, stopped: Array
) -> RolloutBlock:
    """Rows of tokens (n, L) with their lengths, packed."""
    inside = np.arange(tokens.shape[1]) < lengths[:, None]
    rows = np.concatenate([prompts[:, None], tokens], axis=1)
    with_prompt = np.concatenate([np.ones((len(rows), 1), dtype=bool), inside], axis=1)
    return RolloutBlock(
        sequences=Sequences(
            tokens=rows[with_prompt].astype(np.int32),
            prompt_lengths=np.ones(len(rows), dtype=np.int32),
            response_lengths=lengths,
        ),
        logprobs=logprobs[inside].astype(np.float32),
        response_mask=np.ones(int(lengths.sum()), dtype=bool),
        prompt_ids=groups.astype(np.int64),
        weight_versions=np.zeros(len(rows), dtype=np.int64),
        finish_reasons=np.where(stopped, FinishReason.STOP, FinishReason.LENGTH).astype(np.int32),
        seeds=np.zeros(len(rows), dtype=np.int64),
        cached_tokens=np.zeros(len(rows), dtype=np.int32),
    )
