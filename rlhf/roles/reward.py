"""Rewards of whole responses: a frozen reward model's rank, or a Python function."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlhf.config.schema import Recipe, RewardSourceConfig
from rlhf.evaluation.scorers import load_scorer
from rlhf.models.load import load_classifier, load_tokenizer, reward_shift
from rlhf.models.scalar import ScalarNet
from rlhf.roles.forward import Share
from rlhf.roles.role import Role
from rlhf.types import Prompt, RolloutBlock
from rlhf.zero.process_group import Rank


class RewardRole(Role[ScalarNet]):
    """A frozen reward model on one rank. Its score is read at the last token of the response as it was truncated."""

    def __init__(self, recipe: Recipe, folder: str, rank: Rank) -> None:
        super().__init__(
            recipe, recipe.placement.reward, rank, lambda: ScalarNet(load_classifier(folder, recipe.model))
        )
        self.shift = reward_shift(self.network.classifier)

    def scores(self, block: RolloutBlock) -> Share:
        """This rank's share of the rewards, one a sample; demonstrations score 0 on average."""
        return self.share(block.sequences, lambda row: self.engine.forward(row, row.last) + self.shift)


class FunctionReward:
    """A Python function as the reward: it is given prompts and responses as text, without special tokens."""

    def __init__(self, recipe: Recipe, function: str, policy: str) -> None:
        self.scorer = load_scorer(function)
        self.tokenizer = load_tokenizer(policy, recipe.model)

    def scores(self, block: RolloutBlock) -> Share:
        """All rewards of the block, one a sample."""
        sequences, count = block.sequences, len(block)
        prompts = self.tokenizer.batch_decode([sequences.prompt(i) for i in range(count)], skip_special_tokens=True)
        answers = self.tokenizer.batch_decode([sequences.response(i) for i in range(count)], skip_special_tokens=True)
        return Share(samples=np.arange(count), values=self.scorer(prompts, answers).astype(np.float32))


def make_reward(
    recipe: Recipe,
    source: RewardSourceConfig,
    policy: str,
    folder: str | None,
    prompts: Sequence[Prompt],
    rank: Rank,
) -> RewardRole | FunctionReward:
    """One part of the reward on one rank.

    Args:
        policy: folder whose tokenizer the responses are in.
        folder: that of the reward model, for a part that is one.
        prompts: what the policy is asked, by a block's ``prompt_ids``.
    """
    if folder is not None:
        return RewardRole(recipe, folder, rank)
    assert source.function is not None
    return FunctionReward(recipe, source.function, policy)
