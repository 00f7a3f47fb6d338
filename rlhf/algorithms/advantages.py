"""Advantages: generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438) and whitening.

Shapes: B samples, R response tokens of all samples, packed. All sums are in float64.
"""

from __future__ import annotations

import numpy as np

from rlhf.types import Bool, Float32, Int32


def generalised_advantages(
    rewards: Float32, values: Float32, response_lengths: Int32, response_mask: Bool, gamma: float, lam: float
) -> tuple[Float32, Float32]:
    """Advantages and returns, (R,) each: δ_t = r_t + γ V_{t+1} − V_t, A_t = Σ_l (γλ)^l δ_{t+l}, R_t = A_t + V_t.

    V after the last token is 0, for truncated responses too (the common convention: a truncated response is over).
    Tokens outside the mask are skipped as if they were not there: they neither carry a value nor count in the decay;
    their results are 0.
    """
    sample = np.repeat(np.arange(len(response_lengths)), response_lengths)[response_mask]
    lengths = np.bincount(sample, minlength=len(response_lengths))
    width = int(lengths.max(initial=0))
    column = np.arange(len(sample)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    r, v = np.zeros((2, len(lengths), width + 1))
    r[sample, column] = rewards[response_mask]
    v[sample, column] = values[response_mask]
    advantage = np.zeros((len(lengths), width + 1))
    for t in reversed(range(width)):  # vectorised over samples: after a sample's end r, v and A are 0
        advantage[:, t] = r[:, t] + gamma * v[:, t + 1] - v[:, t] + gamma * lam * advantage[:, t + 1]
    advantages = np.zeros(len(rewards), dtype=np.float32)
    returns = np.zeros(len(rewards), dtype=np.float32)
    advantages[response_mask] = advantage[sample, column]
    returns[response_mask] = (advantage + v)[sample, column]
    return advantages, returns


def whiten(values: Float32, response_mask: Bool) -> Float32:
    """(R,) shifted and scaled to mean 0 and variance 1 over the masked tokens of the global batch; 0 elsewhere.

    The variance is the unbiased one, plus 1e-8 under the root, as in Ziegler et al.'s code.
    """
    chosen = values[response_mask].astype(np.float64)
    whitened = np.zeros(len(values), dtype=np.float32)
    if len(chosen) > 1:
        whitened[response_mask] = (chosen - chosen.mean()) / np.sqrt(chosen.var(ddof=1) + 1e-8)
    return whitened
