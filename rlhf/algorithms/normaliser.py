"""What a loss is divided by: one definition for every split of a batch over ranks, micro-batches and packed rows.

A loss is Σ_t w_t ℓ_t / n over the tokens of an update's whole minibatch: w is the weight of a token, n the same number
everywhere.

- ``token``: w = 1, n the tokens. Long responses count for more.
- ``sequence``: w = 1/tokens of the response, n the responses. Each response counts the same (GRPO), so that a token of
  a long response counts for less.
- ``constant``: w = 1, n the responses times the longest allowed length (Dr. GRPO): the gradient of the sequences'
  objective, with no preference for long or short ones.

Shapes: B samples, R response tokens of all samples, packed.
"""

from __future__ import annotations

import numpy as np

from rlhf.algorithms.rewards import count_by_sample, sample_of_token, sum_by_sample
from rlhf.config.schema import LossMean
from rlhf.types import Bool, Float32, Int32


def token_weights(how: LossMean, response_lengths: Int32, response_mask: Bool) -> Float32:
    """(R,) w, 0 outside the mask."""
    weights = response_mask.astype(np.float32)
    if how != "sequence":
        return weights
    counts = sum_by_sample(weights, response_lengths, response_mask)
    return weights / np.maximum(counts, 1)[sample_of_token(response_lengths)]


def normaliser(how: LossMean, response_lengths: Int32, response_mask: Bool, max_length: int) -> int:
    """n of a minibatch, given all of its samples; responses without a token in the mask do not count."""
    if how == "token":
        return int(np.count_nonzero(response_mask))
    counts = count_by_sample(response_lengths, response_mask)
    responses = int(np.count_nonzero(counts))
    return responses if how == "sequence" else responses * max_length
