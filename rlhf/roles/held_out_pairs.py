"""Metrics of DPO on held-out pairs, from log-probabilities that the ranks computed.

Separate from ``dpo.py``, which imports DeepSpeed and transformers and so takes seconds to import.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rlhf.algorithms.losses import dpo_loss
from rlhf.config.schema import DPOConfig
from rlhf.evaluation.accuracy import preference_accuracy
from rlhf.roles.forward import BlockResult, join_tokens
from rlhf.types import Float32, Int64, Sequences


def response_logprobs(shares: Sequence[BlockResult], sequences: Sequences) -> Float32:
    """(2K,) log-probabilities of whole responses, in nats, from the ranks' shares of token log-probabilities."""
    tokens = join_tokens(shares, sequences)
    owner = np.repeat(np.arange(len(sequences)), sequences.response_lengths)
    return np.bincount(owner, weights=tokens, minlength=len(sequences)).astype(np.float32)


def held_out_metrics(logprobs: Float32, reference: Float32, prompt_ids: Int64, config: DPOConfig) -> dict[str, float]:
    """Loss, reward margin, and accuracy of the implicit reward β log(π/π_ref) on held-out pairs.

    Shapes: logprobs, reference (2K,), of whole responses, K ≥ 1; prompt_ids (K,) equal for the pairs of one prompt.
    """
    count = len(logprobs) // 2
    policy, start = torch.from_numpy(logprobs).view(-1, 2).T, torch.from_numpy(reference).view(-1, 2).T
    terms = dpo_loss(policy[0], policy[1], start[0], start[1], config.beta, config.label_smoothing)
    return {
        **preference_accuracy(config.beta * (logprobs - reference), np.zeros(count, dtype=np.float32), prompt_ids),
        "eval/loss": float(terms.loss) / count,
        "eval/rewards_margin": float(terms.chosen_rewards - terms.rejected_rewards) / count,
    }
