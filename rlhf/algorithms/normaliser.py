"""Token weights and normaliser of a loss, independent of how ranks, micro-batches and packed rows split the batch.

A loss is Σ_t w_t ℓ_t / n over all tokens of an update's minibatch: w_t is the weight of a token, n is the same number
on every rank.

- ``token``: w = 1, n = number of tokens. Long responses count for more.
- ``sequence``: w = 1/(tokens of the response), n = number of responses. Every response counts the same (GRPO), so that
  a token of a long response counts for less.
- ``constant``: w = 1, n = number of responses × longest allowed length (Dr. GRPO): the gradient of the expected reward
  without a length bias.

Shapes: B samples, R response tokens of all samples, packed.
"""

from __future__ import annotations

import numpy as np

from rlhf.algorithms.rewards import count_by_sample, sample_of_token, sum_by_sample
from rlhf.config.schema import LossMean
from rlhf.types import Bool, Float32, Int32


def token_weights(loss_mean: LossMean, response_lengths: Int32, response_mask: Bool) -> Float32:
    """(R,) weight w of each token in the loss; 0 outside the mask."""
    weights = response_mask.astype(np.float32)
    if loss_mean != "sequence":
        return weights
    counts = sum_by_sample(weights, response_lengths, response_mask)
    return weights / np.maximum(counts, 1)[sample_of_token(response_lengths)]


def normaliser(loss_mean: LossMean, response_lengths: Int32, response_mask: Bool, max_length: int) -> int:
    """Normaliser n of a minibatch, given all of its samples; responses without a token in the mask do not count."""
    if loss_mean == "token":
        return int(np.count_nonzero(response_mask))
    counts = count_by_sample(response_lengths, response_mask)
    responses = int(np.count_nonzero(counts))
    return responses if loss_mean == "sequence" else responses * max_length
