"""Where the score of a response comes from: a frozen reward model's rank, a Python function, or a service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rlhf.config.schema import Recipe, RewardSourceConfig
from rlhf.evaluation.scorers import load_scorer
from rlhf.models.folder import context_length, load_tokenizer
from rlhf.roles.endpoint import Endpoint
from rlhf.roles.retokenise import Retokeniser, same_tokens
from rlhf.roles.text import BlockReader, TextReward
from rlhf.types import Prompt
from rlhf.zero.rank import Rank

if TYPE_CHECKING:
    from rlhf.roles.reward_model import RewardRole

PATIENCE = 0.9
"""Part of ``placement.phase_timeout_seconds`` that a service is given for one block: it fails by name before the wait
for it does."""


def make_reward(
    recipe: Recipe,
    source: RewardSourceConfig,
    policy: str,
    folder: str | None,
    prompts: Sequence[Prompt],
    rank: Rank,
) -> RewardRole | TextReward:
    """One part of the reward on one rank.

    Args:
        policy: folder whose tokenizer the responses are in.
        folder: that of the reward model, for a part that is one.
        prompts: what the policy is asked, found by a block's ``prompt_ids``.
    """
    reader = BlockReader(load_tokenizer(policy, recipe.model), prompts)
    if folder is not None:
        from rlhf.roles.reward_model import RewardRole  # a function or a service needs neither DeepSpeed nor models

        return RewardRole(recipe, folder, rank, _own_tokens(recipe, folder, reader))
    if source.function is not None:
        return TextReward(load_scorer(source.function), reader)
    assert source.endpoint is not None
    return TextReward(Endpoint(source.endpoint, PATIENCE * recipe.placement.phase_timeout_seconds), reader)


def _own_tokens(recipe: Recipe, folder: str, reader: BlockReader) -> Retokeniser | None:
    """How the reward model reads a block; None where the policy's tokens are its own. Says which in the log."""
    own = load_tokenizer(folder, replace(recipe.model, chat_template=None))
    if same_tokens(reader.tokenizer, own, list(reader.by_id.values())):
        print(f"reward model {folder}: reads the policy's tokens, its tokenizer being the same", flush=True)
        return None
    context = context_length(folder, recipe.model)
    print(
        f"reward model {folder}: reads text, its tokenizer being another than the policy's; at most {context:,} tokens",
        flush=True,
    )
    return Retokeniser(own, context, reader)
