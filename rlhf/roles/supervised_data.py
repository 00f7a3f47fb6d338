"""Packed data of the supervised stages (SFT, reward model, DPO), and DPO's metrics on held-out pairs.

Separate from the roles, which import DeepSpeed and transformers and so take seconds to import.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rlhf.algorithms.losses import kl_estimate, kto_loss
from rlhf.algorithms.pair_losses import comparison_loss
from rlhf.config.schema import DPOConfig
from rlhf.evaluation.accuracy import label_accuracy, preference_accuracy
from rlhf.roles.block_result import BlockResult, join_tokens, token_index
from rlhf.types import Bool, Example, Float32, Int64, LabelledResponse, Pair, Sequences


@dataclass(frozen=True, kw_only=True)
class ExampleData:
    """Packed demonstrations. Shapes: ``sequences`` B samples, R response tokens; mask (R,) true where trained on."""

    sequences: Sequences
    mask: Bool

    @classmethod
    def pack(cls, examples: Sequence[Example]) -> ExampleData:
        """Pack demonstrations, in order."""
        masks = [np.zeros(0, dtype=np.bool_), *(example.mask for example in examples)]
        return cls(
            sequences=Sequences.pack((example.prompt, example.response) for example in examples),
            mask=np.concatenate(masks),
        )

    def __len__(self) -> int:
        return len(self.sequences)

    def mask_of(self, samples: Sequence[int]) -> Bool:
        """Mask of the given samples' response tokens, in the order of the samples."""
        return self.mask[token_index(self.sequences, samples)]


@dataclass(frozen=True, kw_only=True)
class PairData:
    """K packed pairs: pair i is samples 2i (chosen) and 2i + 1 (rejected).

    Shapes: ``sequences`` 2K samples; margins, prompt_ids (K,).
    """

    sequences: Sequences
    margins: Float32
    prompt_ids: Int64
    """Equal for all pairs of one prompt."""

    @classmethod
    def pack(cls, pairs: Sequence[Pair]) -> PairData:
        """Pack pairs, in order."""
        samples = [(pair.prompt, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)]
        margins = np.array([pair.margin for pair in pairs], dtype=np.float32)
        return cls(sequences=Sequences.pack(samples), margins=margins, prompt_ids=prompt_ids(pairs))


@dataclass(frozen=True, kw_only=True)
class LabelledData:
    """K packed responses that people found good or bad. Shapes: ``sequences`` K samples; is_good, prompt_ids (K,)."""

    sequences: Sequences
    is_good: Bool
    prompt_ids: Int64
    """Equal for all responses to one prompt."""

    @classmethod
    def pack(cls, labelled: Sequence[LabelledResponse]) -> LabelledData:
        """Pack responses, in order."""
        return cls(
            sequences=Sequences.pack((each.prompt, each.response) for each in labelled),
            is_good=np.array([each.is_good for each in labelled], dtype=np.bool_),
            prompt_ids=np.array([each.prompt_id for each in labelled], dtype=np.int64),
        )


def mismatched_pairs(labelled: Sequence[LabelledResponse], context: int) -> list[Pair]:
    """For each response, a pair with the next response in order that answers another prompt, as KTO's KL term needs it.

    The pair's ``rejected`` is that response, cut where prompt and response would exceed ``context`` tokens. In data of
    one prompt it is the response itself.
    """
    pairs = []
    for i, each in enumerate(labelled):
        others = (labelled[(i + step) % len(labelled)] for step in range(1, len(labelled)))
        other = next((found for found in others if found.prompt_id != each.prompt_id), each)
        pairs.append(
            Pair(
                prompt=each.prompt,
                chosen=each.response,
                rejected=other.response[: context - len(each.prompt)],
                margin=0.0,
                prompt_id=each.prompt_id,
            )
        )
    return pairs


def prompt_ids(pairs: Sequence[Pair]) -> Int64:
    """(K,) prompt id of each pair."""
    return np.array([pair.prompt_id for pair in pairs], dtype=np.int64)


def response_logprobs(parts: Sequence[BlockResult], sequences: Sequences, is_mean: bool = False) -> Float32:
    """(2K,) log-probabilities of whole responses, in nats, from the ranks' parts of the token log-probabilities.

    Args:
        is_mean: average over each response's tokens instead of summing.
    """
    tokens = join_tokens(parts, sequences)
    owner = np.repeat(np.arange(len(sequences)), sequences.response_lengths)
    sums = np.bincount(owner, weights=tokens, minlength=len(sequences))
    return (sums / sequences.response_lengths if is_mean else sums).astype(np.float32)


def held_out_metrics(logprobs: Float32, reference: Float32, prompt_ids: Int64, config: DPOConfig) -> dict[str, float]:
    """Loss, reward margin, and accuracy of the implicit reward β log(π/π_ref) on held-out pairs.

    Shapes: logprobs, reference (2K,), of whole responses, K ≥ 1; prompt_ids (K,) equal for the pairs of one prompt. If
    the loss has no reference, ``logprobs`` are means over tokens, and ``reference`` is 0.
    """
    count = len(logprobs) // 2
    policy, start = torch.from_numpy(logprobs).view(-1, 2).T, torch.from_numpy(reference).view(-1, 2).T
    terms = comparison_loss(policy, start, config)
    return {
        **preference_accuracy(config.beta * (logprobs - reference), np.zeros(count, dtype=np.float32), prompt_ids),
        "eval/loss": float(terms.loss) / count,
        "eval/rewards_margin": float(terms.chosen_rewards - terms.rejected_rewards) / count,
    }


def held_out_kto_metrics(
    logprobs: Float32, reference: Float32, data: LabelledData, config: DPOConfig
) -> dict[str, float]:
    """Loss, accuracy and rewards of KTO on held-out answers.

    Shapes: logprobs, reference (2K,) of whole responses, true and mismatched alternating, K ≥ 1. An answer counts as
    right if its log-ratio is above the KL estimate and it is good, or below and it is bad.
    """
    log_ratios = logprobs.astype(np.float64) - reference
    kl = kl_estimate(float(log_ratios[1::2].sum()), len(data.is_good))
    policy, start, is_good = (torch.from_numpy(array) for array in (logprobs[0::2], reference[0::2], data.is_good))
    weights = (config.desirable_weight, config.undesirable_weight)
    terms = kto_loss(policy, start, is_good, kl, config.beta, weights)
    rewards = (config.beta * (log_ratios[0::2] - kl)).astype(np.float32)
    good, bad = rewards[data.is_good], rewards[~data.is_good]
    margin = {"eval/rewards_margin": float(good.mean() - bad.mean())} if len(good) and len(bad) else {}
    return {
        **label_accuracy(rewards, data.is_good, data.prompt_ids),
        "eval/loss": float(terms.loss) / len(data.is_good),
        **margin,
    }
