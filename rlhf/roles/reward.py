"""Rewards of whole responses: a frozen reward model's rank, or a Python function."""

from __future__ import annotations

import numpy as np

from rlhf.config.schema import Recipe
from rlhf.evaluation.scorers import load_scorer
from rlhf.models.load import load_classifier, load_tokenizer, reward_shift
from rlhf.models.scalar import ScalarNet
from rlhf.roles.forward import Share, forward_share
from rlhf.types import RolloutBlock
from rlhf.zero.engine import ZeroEngine, building
from rlhf.zero.process_group import Rank, join


class RewardRole:
    """A frozen reward model on one rank. Its score is read at the last token of the response as it was truncated."""

    def __init__(self, recipe: Recipe, folder: str, rank: Rank) -> None:
        self.recipe, self.rank = recipe, rank
        self.place = join(rank)
        role = recipe.placement.reward
        keep = building(role, recipe.model.dtype, rank)
        classifier = load_classifier(folder, recipe.model)
        self.shift = reward_shift(classifier)
        self.engine = ZeroEngine(ScalarNet(classifier), role, recipe.model.dtype, rank, self.place)
        del keep

    def scores(self, block: RolloutBlock) -> Share:
        """This rank's share of the rewards, one a sample; demonstrations score 0 on average."""
        budget = self.recipe.placement.reward.micro_batch_tokens
        return forward_share(
            block.sequences,
            self.rank.rank,
            self.rank.world,
            budget,
            self.place,
            lambda row: self.engine.forward(row, row.last) + self.shift,
        )


class FunctionReward:
    """A Python function as the reward: it is given prompts and responses as text, without special tokens."""

    def __init__(self, recipe: Recipe, folder: str, rank: Rank) -> None:
        assert recipe.reward.scorer is not None
        self.scorer = load_scorer(recipe.reward.scorer)
        self.tokenizer = load_tokenizer(folder, recipe.model)

    def scores(self, block: RolloutBlock) -> Share:
        """All rewards of the block, one a sample."""
        sequences, count = block.sequences, len(block)
        prompts = self.tokenizer.batch_decode([sequences.prompt(i) for i in range(count)], skip_special_tokens=True)
        answers = self.tokenizer.batch_decode([sequences.response(i) for i in range(count)], skip_special_tokens=True)
        return Share(samples=np.arange(count), values=self.scorer(prompts, answers).astype(np.float32))
