"""Advantages: generalised advantage estimation (Schulman et al. 2016), group-relative advantages, and whitening.

Shapes: B samples, R response tokens of all samples, packed. All sums are in float64.
"""

from __future__ import annotations

import numpy as np

from rlhf.algorithms.rewards import count_by_sample, sample_of_token, sum_by_sample
from rlhf.config.schema import AlgorithmConfig, AlgorithmName
from rlhf.types import Bool, Float32, Int32, Int64, exclusive_sum


def generalised_advantages(
    rewards: Float32, values: Float32, response_lengths: Int32, response_mask: Bool, gamma: float, lam: float
) -> tuple[Float32, Float32]:
    """Advantages and returns, (R,) each: δ_t = r_t + γ V_{t+1} − V_t, A_t = Σ_l (γλ)^l δ_{t+l}; returns A_t + V_t.

    V after the last token is 0, also for a truncated response, which is treated as terminal (the common convention).
    Tokens outside the mask are removed before the recursion: they carry no value and add no step of decay. Their
    results are 0.

    Args:
        rewards, values: (R,) r_t and V_t of each response token.
        response_lengths: (B,) response tokens of each sample.
        response_mask: (R,) true for the tokens that are trained on.
    """
    sample = sample_of_token(response_lengths)[response_mask]
    r, v = (array[response_mask].astype(np.float64) for array in (rewards, values))
    next_v = np.where(np.diff(sample, append=-1) != 0, 0.0, np.roll(v, -1))
    advantage = discounted_sums(r + gamma * next_v - v, sample, gamma * lam)
    advantages = np.zeros(len(rewards), dtype=np.float32)
    returns = np.zeros(len(rewards), dtype=np.float32)
    advantages[response_mask] = advantage
    returns[response_mask] = advantage + v
    return advantages, returns


def discounted_sums(terms: np.ndarray, sample: np.ndarray, discount: float) -> np.ndarray:
    """(T,) Σ_l discount^l x_{t+l} within each sample, by the recursion S_t = x_t + discount · S_{t+1}.

    Takes O(T) time and memory: each pass adds one token of every sample that is long enough, from the last token on.

    Args:
        terms: (T,) x of each token, samples one after another.
        sample: (T,) index of each token's sample, ascending.
    """
    lengths = np.bincount(sample)
    from_end = np.cumsum(lengths)[sample] - 1 - np.arange(len(sample))
    counts = np.bincount(from_end)  # samples with more than so many tokens
    begins = exclusive_sum(counts)
    longest_first = np.argsort(np.argsort(-lengths, kind="stable"))
    slots = begins[from_end] + longest_first[sample]  # the tokens of one pass are neighbours, in the same order in all
    sums = np.empty(len(terms))
    sums[slots] = terms
    for before, begin, count in zip(begins, begins[1:], counts[1:]):
        sums[begin : begin + count] += discount * sums[before : before + count]
    return sums[slots]


def whiten(values: Float32, response_mask: Bool) -> Float32:
    """Normalise (R,) values to mean 0 and variance 1 over the masked tokens of the global batch; 0 elsewhere.

    The variance has n − 1 as divisor; 1e-8 is added to it under the root, as in the code of Ziegler et al. (2019).
    """
    chosen = values[response_mask].astype(np.float64)
    whitened = np.zeros(len(values), dtype=np.float32)
    if len(chosen) > 1:
        whitened[response_mask] = (chosen - chosen.mean()) / np.sqrt(chosen.var(ddof=1) + 1e-8)
    return whitened


def returns_to_go(rewards: Float32, response_lengths: Int32, response_mask: Bool) -> Float32:
    """(R,) Σ_{l ≥ t} r_l within each response, the weight of token t in REINFORCE; 0 outside the mask."""
    no_values = np.zeros_like(rewards)
    return generalised_advantages(rewards, no_values, response_lengths, response_mask, 1.0, 1.0)[1]


DIVIDES_BY_STD = ("grpo", "dapo", "gspo", "cispo")
"""Algorithms with the advantages of GRPO."""
GROUP_EPSILON = 1e-4
"""Added to a group's standard deviation before the division, as in TRL."""


def group_advantages(algorithm: AlgorithmName, totals: Float32, prompt_ids: Int64, is_counted: Bool) -> Float32:
    """(B,) advantage of each response relative to its group, the responses to one prompt; r is a response's reward.

    - ``grpo``, ``dapo``, ``gspo``, ``cispo``: (r − mean)/(standard deviation + 1e-4) of the group (Shao et al. 2024,
      section 4.1).
    - ``dr_grpo``, ``reinforce++_baseline``: r − mean (Liu et al. 2025, section 3; Hu 2025, section 3.3).
    - ``rloo``: r − mean of the *others*, which is (r − mean) n/(n − 1) (Ahmadian et al. 2024, section 3).

    Args:
        totals: (B,) r, the reward of each whole response.
        prompt_ids: (B,) equal for the responses of one group.
        is_counted: (B,) false for samples that are left out: they enter no mean, and their advantage is 0.
    """
    result = np.zeros(len(totals), dtype=np.float32)
    counted = np.flatnonzero(is_counted)
    members_by_prompt = counted[np.argsort(prompt_ids[counted], kind="stable")]
    edges = np.flatnonzero(np.diff(prompt_ids[members_by_prompt])) + 1
    for members in np.split(members_by_prompt, edges) if len(counted) else ():
        group = totals[members].astype(np.float64)
        above = group - group.mean()
        if algorithm in DIVIDES_BY_STD:
            above = above / (group.std(ddof=1) + GROUP_EPSILON) if len(group) > 1 else above
        elif algorithm == "rloo":
            above = above * len(group) / max(len(group) - 1, 1)
        result[members] = above
    return result


def uniform_groups(scores: Float32, prompt_ids: Int64, is_counted: Bool) -> Bool:
    """(B,) true for the responses of groups whose counted responses all have the same score (Yu et al. 2025, eq. 11).

    Args:
        scores: (B,) shaped score of each response.
        prompt_ids: (B,) equal for the responses of one group.
        is_counted: (B,) false for samples that are left out, whose score has no meaning.
    """
    _, group = np.unique(prompt_ids, return_inverse=True)
    low, high = np.full(group.max(initial=-1) + 1, np.inf), np.full(group.max(initial=-1) + 1, -np.inf)
    np.minimum.at(low, group[is_counted], scores[is_counted])
    np.maximum.at(high, group[is_counted], scores[is_counted])
    uniform: Bool = (low >= high)[group]
    return uniform


def estimate_advantages(
    algorithm: AlgorithmConfig,
    scores: Float32,
    token_rewards: Float32,
    prompt_ids: Int64,
    response_lengths: Int32,
    response_mask: Bool,
) -> Float32:
    """(R,) advantages for the algorithms without a critic; 0 outside the mask.

    ``reinforce++`` uses the return-to-go of each token; its baseline is the batch mean, which the caller subtracts by
    ``whiten`` if ``whiten_advantages`` is set. ``reinforce++_baseline`` first subtracts the group's mean score from the
    return-to-go. The other algorithms assign the response's advantage to every token; with ``kl_in: reward`` it is
    computed from the score minus β times the response's KL.

    Args:
        scores: (B,) shaped score of each response.
        token_rewards: (R,) result of ``token_rewards``.
        prompt_ids: (B,) equal for the responses to one prompt.
        response_lengths: (B,) response tokens of each sample.
        response_mask: (R,) true for the tokens that are trained on.
    """
    is_counted = count_by_sample(response_lengths, response_mask) > 0
    sample = sample_of_token(response_lengths)
    if algorithm.name == "reinforce++":
        return returns_to_go(token_rewards, response_lengths, response_mask)
    if algorithm.name == "reinforce++_baseline":
        baseline = scores - group_advantages(algorithm.name, scores, prompt_ids, is_counted)
        to_go = returns_to_go(token_rewards, response_lengths, response_mask)
        return np.where(response_mask, to_go - baseline[sample], 0.0).astype(np.float32)
    totals = sum_by_sample(token_rewards, response_lengths, response_mask)
    advantages = group_advantages(algorithm.name, totals, prompt_ids, is_counted)
    return np.where(response_mask, advantages[sample], 0.0).astype(np.float32)
