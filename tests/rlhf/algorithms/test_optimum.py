"""The project's update converges to the optimal policy of problems where it is known in closed form.

Expected numbers are exact: computed from Z = Σ π_ref exp(r/β), outside this project. Trained policies are judged by
their tables, not by samples, so that J* cannot be exceeded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import pytest

from rlhf.algorithms.state import AlgorithmState
from rlhf.config.schema import AlgorithmConfig, AlgorithmName
from rlhf.experience import build_experience
from tests.rlhf.algorithms.tabular import (
    BANDIT,
    BANDIT_REFERENCE,
    BANDIT_REWARDS,
    END,
    LENGTH_LIMIT,
    LENGTH_REFERENCE,
    STOPPING,
    TOKEN_CLASS,
    Array,
    Budget,
    TablePolicy,
    Trained,
    block_of,
    divergence,
    in_class,
    reached,
    score,
    train,
)

BANDIT_BUDGET = Budget(steps=50, batch=128, lr=0.15, group=32)
CLASS_BUDGET = Budget(steps=80, batch=192, lr=0.05)
STOPPING_BUDGET = Budget(steps=70, batch=192, lr=0.15)


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """β, J*, and what is known of the best policy: the expected reward and KL of A; q of B."""

    beta: float
    objective: float
    reward: float = 0.0
    kl: float = 0.0
    q: float = 0.0


BANDIT_OPTIMA = (
    Optimum(beta=0.05, objective=0.897679, reward=0.995562, kl=1.957666),
    Optimum(beta=0.2, objective=0.707772, reward=0.864339, kl=0.782835),
    Optimum(beta=1.0, objective=0.528054, reward=0.585795, kl=0.05774),
)
CLASS_OPTIMA = (
    Optimum(beta=0.05, objective=0.387217, kl=3.011160, q=0.537775),
    Optimum(beta=0.1, objective=0.314303, kl=0.694587, q=0.383762),
)
STOPPING_OPTIMUM = Optimum(beta=0.2, objective=0.679185)
STOPPING_HAZARDS = np.array(
    [0.00335, 0.00303, 0.00273, 0.36587, 0.51927, 0.97217, 0.2118, 0.24184, 0.28709, 0.36243, 0.51162, 0.94283]
)


def tilted(reference: Array, rewards: Array, beta: float) -> Array:
    """π_ref exp(r/β)/Z, row by row."""
    likely = reference * np.exp(rewards / beta)
    return likely / likely.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("optimum", BANDIT_OPTIMA, ids=str)
def test_the_objective_of_a_table_is_exact_on_answers(optimum: Optimum) -> None:
    best = tilted(BANDIT_REFERENCE, BANDIT_REWARDS, optimum.beta)
    assert BANDIT.objective(best, optimum.beta) == pytest.approx(optimum.objective, abs=1e-6)
    assert (best * BANDIT_REWARDS).sum(axis=-1).mean() == pytest.approx(optimum.reward, abs=1e-6)
    assert divergence(best, BANDIT_REFERENCE).mean() == pytest.approx(optimum.kl, abs=1e-6)


@pytest.mark.parametrize("optimum", CLASS_OPTIMA, ids=str)
def test_the_objective_of_a_table_is_exact_on_classes(optimum: Optimum) -> None:
    best = np.where(np.arange(32) < 8, optimum.q / 8, (1 - optimum.q) / 24)[None]
    assert TOKEN_CLASS.objective(best, optimum.beta) == pytest.approx(optimum.objective, abs=1e-6)
    assert 16 * divergence(best, TOKEN_CLASS.reference)[0] == pytest.approx(optimum.kl, abs=1e-4)


def test_the_objective_of_a_table_is_exact_on_lengths() -> None:
    best = np.stack([1 - STOPPING_HAZARDS, STOPPING_HAZARDS], axis=1)
    assert STOPPING.objective(best, STOPPING_OPTIMUM.beta) == pytest.approx(STOPPING_OPTIMUM.objective, abs=1e-6)
    assert reached(best)[-1] == pytest.approx(6.377e-5, rel=1e-3)


def algorithm_for_answers(name: AlgorithmName, beta: float = 0.2) -> AlgorithmConfig:
    """With the KL in the reward where the algorithm divides by a standard deviation; the tests below say why."""
    divides = name in ("grpo", "reinforce++_baseline", "dapo", "gspo", "cispo")
    return AlgorithmConfig(name=name, kl_coef=beta, kl_in="reward" if divides else None, epochs=2)


def assert_best_answers(trained: Trained) -> None:
    best = BANDIT_OPTIMA[1]
    assert best.objective - 0.005 < BANDIT.objective(trained.policy, best.beta) < best.objective + 1e-6


@pytest.mark.parametrize("name", get_args(AlgorithmName))
def test_every_algorithm_finds_the_best_answers(name: AlgorithmName) -> None:
    assert_best_answers(train(BANDIT, algorithm_for_answers(name), BANDIT_BUDGET))


def algorithm_for_classes(beta: float) -> AlgorithmConfig:
    """λ = 1: a table of values by place does not see the count so far, and λ < 1 would trust it all the same."""
    return AlgorithmConfig(name="ppo", kl_coef=beta, lam=1.0, epochs=2)


def assert_best_class(trained: Trained, optimum: Optimum) -> None:
    assert abs(in_class(trained.policy) - optimum.q) < 0.01
    assert optimum.objective - 0.002 < TOKEN_CLASS.objective(trained.policy, optimum.beta) < optimum.objective + 1e-6
    metrics = trained.metrics[-1]
    assert metrics["objective/rlhf_reward_std"] < 0.02 < metrics["objective/scores_std"]


@pytest.mark.parametrize("optimum", CLASS_OPTIMA, ids=str)
def test_ppo_finds_the_best_probability_of_a_class(optimum: Optimum) -> None:
    assert_best_class(train(TOKEN_CLASS, algorithm_for_classes(optimum.beta), CLASS_BUDGET), optimum)


def test_the_optimum_is_that_of_the_policy_at_its_sampling_temperature() -> None:
    budget = replace(CLASS_BUDGET, temperature=0.7)
    assert_best_class(train(TOKEN_CLASS, algorithm_for_classes(0.05), budget), CLASS_OPTIMA[0])


BIASED_BUDGET = replace(BANDIT_BUDGET, engine_bias=0.7)
"""An engine that draws every second token twice as often, against the others, as the trainer's policy would."""


def test_importance_weights_make_up_for_an_engine_with_other_probabilities() -> None:
    """With the KL in the loss: with it in the reward all advantages are 0 at the optimum, whoever draws the tokens."""
    assert_best_answers(train(BANDIT, algorithm_for_answers("dr_grpo"), BIASED_BUDGET))


def algorithm_for_lengths() -> AlgorithmConfig:
    """A missing end token costs 1 in place of the score; γ, λ and the clips as shipped."""
    return AlgorithmConfig(name="ppo", kl_coef=STOPPING_OPTIMUM.beta, epochs=2)


def assert_best_lengths(trained: Trained) -> None:
    visited = reached(np.stack([1 - STOPPING_HAZARDS, STOPPING_HAZARDS], axis=1))[:-1] > 0.01
    assert visited.sum() == 6
    np.testing.assert_allclose(trained.policy[visited, END], STOPPING_HAZARDS[visited], rtol=0, atol=0.03)
    assert reached(trained.policy)[-1] < 0.005
    best = STOPPING_OPTIMUM.objective
    assert best - 0.005 < STOPPING.objective(trained.policy, STOPPING_OPTIMUM.beta) < best + 1e-6
    assert trained.metrics[-1]["objective/rlhf_reward_std"] < 0.02


def test_ppo_finds_when_to_stop() -> None:
    assert_best_lengths(train(STOPPING, algorithm_for_lengths(), STOPPING_BUDGET))


def hazard_after_one_early_end() -> float:
    """The first place's hazard after an update on a response that is the end token alone, with an advantage of 1."""
    budget = Budget(steps=1, batch=1, lr=0.1)
    policy = TablePolicy(budget.recipe(STOPPING, algorithm_for_lengths()), LENGTH_REFERENCE)
    one, tokens = np.ones(1, dtype=np.int32), np.full((1, LENGTH_LIMIT), END)
    block = block_of(0 * one, tokens, one, np.full(tokens.shape, np.log(0.1)), one, one > 0)
    scored = score(block, one.astype(np.float32), policy, policy, None)
    experience, _ = build_experience(
        scored, one.astype(np.float32), AlgorithmConfig(name="rloo"), AlgorithmState(kl_coef=0.2), LENGTH_LIMIT
    )
    policy.update(replace(experience, advantages=one.astype(np.float32)), step=0)
    return float(policy.probabilities()[0, END])


def test_the_end_token_itself_is_trained() -> None:
    """In a table the optimum alone would not tell: a hazard is also learnt from the tokens that go on."""
    assert hazard_after_one_early_end() > 0.11


# Dividing advantages by a standard deviation multiplies β by it, where the KL is in the loss: the fixed point is then
# π ∝ π_ref exp(r/(β s)), s the standard deviation of the rewards under π itself. With s it shrinks, and where β is
# small there is no such point but the greedy policy, whose s is 0.


def self_consistent(beta: float, per_prompt: bool) -> Array:
    """π ∝ π_ref exp(r/(β s)) where s is π's own standard deviation of a prompt's rewards, or over all prompts."""
    s = np.full((4, 1), 0.35)
    for _ in range(200):
        policy = tilted(BANDIT_REFERENCE, BANDIT_REWARDS, beta * s)
        squares = (policy * (BANDIT_REWARDS - (policy * BANDIT_REWARDS).sum(1, keepdims=True)) ** 2).sum(
            1, keepdims=True
        )
        s = np.sqrt(squares if per_prompt else squares.mean())
    return policy


@pytest.mark.parametrize("name", ["grpo", "reinforce++_baseline"])
def test_with_the_kl_in_the_loss_a_division_by_the_standard_deviation_moves_the_optimum(name: AlgorithmName) -> None:
    beta = 2.0
    algorithm = AlgorithmConfig(name=name, kl_coef=beta, epochs=2)
    assert algorithm.kl_in == "loss"
    trained = train(BANDIT, algorithm, Budget(steps=60, batch=256, lr=0.1, group=64))
    np.testing.assert_allclose(trained.policy, self_consistent(beta, name == "grpo"), rtol=0, atol=0.02)
    best = tilted(BANDIT_REFERENCE, BANDIT_REWARDS, beta)
    assert np.abs(trained.policy - best).max() > 0.08
    assert BANDIT.objective(trained.policy, beta) < BANDIT.objective(best, beta) - 0.1


def test_with_the_kl_in_the_loss_and_a_small_beta_grpo_runs_away() -> None:
    """J* at β = .5 is .583349."""
    trained = train(BANDIT, AlgorithmConfig(name="grpo", kl_coef=0.5, epochs=2), BANDIT_BUDGET)
    assert BANDIT.objective(trained.policy, 0.5) < 0.3
    assert (trained.policy * BANDIT_REWARDS).sum(axis=-1).mean() > 0.97
