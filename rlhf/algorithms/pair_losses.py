"""Losses on comparisons that replace DPO's, and the choice between them; each summed over pairs.

Shapes: K pairs; chosen, rejected (K,) log-probabilities of whole responses, in nats.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from rlhf.algorithms.losses import DPOLoss, dpo_loss
from rlhf.config.schema import DPOConfig

LEAST_NATS = 1e-6
"""ORPO's odds are those of a mean token probability of at most exp(−``LEAST_NATS``); at 1 they would be infinite."""


def ipo_loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> DPOLoss:
    """IPO loss, summed over pairs: Σ (h − 1/(2β))², h = (log π_c − log π_r) − (log ref_c − log ref_r).

    Azar et al. (2023), eq. 17, with β for their τ. Log-probabilities are sums over tokens, as in the paper. A pair's
    margin h is pulled to 1/(2β), and not beyond, however consistently people prefer the chosen response.
    """
    chosen_ratio, rejected_ratio = chosen - ref_chosen, rejected - ref_rejected
    margins = chosen_ratio - rejected_ratio
    return _pair_loss((margins - 1 / (2 * beta)).square().sum(), beta * chosen_ratio, beta * rejected_ratio)


def orpo_loss(chosen: Tensor, rejected: Tensor, beta: float) -> DPOLoss:
    """ORPO loss, summed over pairs: Σ −log P_c − β log σ(log odds_c − log odds_r), odds = P/(1 − P).

    Hong et al. (2024), eq. 3, 6 and 7, with β for their λ. P is the geometric mean of a response's token probabilities.
    The first term is that of SFT on the chosen responses, each with the same weight. There is no reference: the reward
    of a response is β log P.

    Args:
        chosen, rejected: (K,) log P: log-probabilities averaged over each response's tokens.
    """
    likelier = functional.logsigmoid(_log_odds(chosen) - _log_odds(rejected))
    return _pair_loss(-(chosen + beta * likelier).sum(), beta * chosen, beta * rejected)


def _log_odds(mean_logprobs: Tensor) -> Tensor:
    bounded = mean_logprobs.clamp(max=-LEAST_NATS)
    return bounded - (-bounded.expm1()).log()


def _pair_loss(loss: Tensor, chosen_rewards: Tensor, rejected_rewards: Tensor) -> DPOLoss:
    return DPOLoss(
        loss=loss,
        chosen_rewards=chosen_rewards.detach().sum(),
        rejected_rewards=rejected_rewards.detach().sum(),
        correct=(chosen_rewards > rejected_rewards).detach().sum(),
    )


def comparison_loss(logprobs: Tensor, reference: Tensor, config: DPOConfig) -> DPOLoss:
    """The loss ``dpo.loss`` of pairs.

    Args:
        logprobs, reference: (2, K), row 0 chosen, row 1 rejected; sums over tokens, or means if the loss has no
            reference, whose log-probabilities are then not read.
    """
    (chosen, rejected), (ref_chosen, ref_rejected) = logprobs, reference
    if config.loss == "orpo":
        return orpo_loss(chosen, rejected, config.beta)
    if config.loss == "ipo":
        return ipo_loss(chosen, rejected, ref_chosen, ref_rejected, config.beta)
    return dpo_loss(chosen, rejected, ref_chosen, ref_rejected, config.beta, config.label_smoothing)
