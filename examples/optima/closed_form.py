"""The best policies: π* ∝ π_ref exp(r/β), with objective J* = β log Z. Nothing here is sampled or learned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logsumexp
from scipy.stats import binom


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """Of the best policy: objective J*, mean reward, and KL to the reference in nats a response."""

    objective: float
    reward: float
    kl: float


PROMPTS, ANSWERS = 4, 8
CLASS, VOCABULARY, TOKENS = 8, 32, 16
CLASS_SHARE = CLASS / VOCABULARY
HAZARD, LONGEST, FIRST_GOOD, LAST_GOOD = 0.1, 12, 4, 6


def bandit_logits() -> np.ndarray:
    """Problem A: (4, 8) logits of the reference."""
    k, a = np.indices((PROMPTS, ANSWERS))
    return ((3 * k + 5 * a) % 7) / 3


def bandit_rewards() -> np.ndarray:
    """Problem A: (4, 8) rewards."""
    k, a = np.indices((PROMPTS, ANSWERS))
    return ((2 * k + 3 * a) % 5) / 4


def bandit_value(policy: np.ndarray, beta: float) -> Optimum:
    """What a policy (4, 8) is worth, averaged over the prompts."""
    reference = np.exp(bandit_logits() - logsumexp(bandit_logits(), axis=1, keepdims=True))
    kl = float((policy * np.log(np.maximum(policy, 1e-300) / reference)).sum(axis=1).mean())
    reward = float((policy * bandit_rewards()).sum(axis=1).mean())
    return Optimum(objective=reward - beta * kl, reward=reward, kl=kl)


def bandit_spread(policy: np.ndarray, beta: float) -> float:
    """Standard deviation of score − β k over a policy's answers to one prompt, all prompts alike; 0 for the best."""
    reference = np.exp(bandit_logits() - logsumexp(bandit_logits(), axis=1, keepdims=True))
    total = bandit_rewards() - beta * np.log(np.maximum(policy, 1e-300) / reference)
    mean = (policy * total).sum(axis=1, keepdims=True)
    return float(np.sqrt((policy * (total - mean) ** 2).sum(axis=1).mean()))


def bandit_policy(beta: float) -> np.ndarray:
    """Problem A: (4, 8) the best policy."""
    logits = bandit_logits() + bandit_rewards() / beta
    return np.exp(logits - logsumexp(logits, axis=1, keepdims=True))


def bandit(beta: float) -> Optimum:
    """Problem A."""
    return bandit_value(bandit_policy(beta), beta)


def class_share(beta: float, reward_per_token: float = 1 / TOKENS) -> float:
    """Problem B: q, the probability that a token of the best policy is in the class."""
    odds = CLASS_SHARE / (1 - CLASS_SHARE) * np.exp(reward_per_token / beta)
    return float(odds / (1 + odds))


def token_class(beta: float, reward_per_token: float = 1 / TOKENS) -> Optimum:
    """Problem B."""
    q, p = class_share(beta, reward_per_token), CLASS_SHARE
    kl = float(TOKENS * (q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))))
    reward = TOKENS * q * reward_per_token
    return Optimum(objective=reward - beta * kl, reward=reward, kl=kl)


def length_rewards() -> np.ndarray:
    """Problem C: (13,) the reward of an end at the 1st to 12th token, and of no end."""
    lengths = np.arange(1, LONGEST + 1)
    return np.append(((lengths >= FIRST_GOOD) & (lengths <= LAST_GOOD)).astype(float), -1.0)


def length_distribution(hazards: np.ndarray) -> np.ndarray:
    """(13,) probabilities of an end at each token, and of none, from the hazards (12,)."""
    survival = np.concatenate([[1.0], np.cumprod(1 - hazards)])
    return np.append(survival[:-1] * hazards, survival[-1])


def length_hazards(beta: float) -> np.ndarray:
    """Problem C: (12,) probability of an end at each token, given that there was none before."""
    weights = length_distribution(np.full(LONGEST, HAZARD)) * np.exp(length_rewards() / beta)
    return weights[:-1] / np.cumsum(weights[::-1])[::-1][:-1]


def length(beta: float) -> Optimum:
    """Problem C."""
    reference, best = length_distribution(np.full(LONGEST, HAZARD)), length_distribution(length_hazards(beta))
    kl = float((best * np.log(best / reference)).sum())
    reward = float((best * length_rewards()).sum())
    return Optimum(objective=reward - beta * kl, reward=reward, kl=kl)


def accuracy_ceiling(gain: float) -> float:
    """Problem D: the best accuracy on comparisons of two random sequences labelled Bernoulli(σ(gain · Δcount))."""
    count = np.arange(TOKENS + 1)
    both = np.outer(*[binom.pmf(count, TOKENS, CLASS_SHARE)] * 2)
    right = expit(gain * np.abs(count[:, None] - count))
    return float((both * right).sum())
