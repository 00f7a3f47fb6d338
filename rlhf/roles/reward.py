"""Where the score of a response comes from: a frozen reward model's rank, a Python function, or a service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from transformers import AutoTokenizer

from rlhf.config.schema import Recipe, RewardSourceConfig
from rlhf.errors import UserError
from rlhf.evaluation.scorers import load_scorer
from rlhf.models.folder import context_length, from_folder, load_tokenizer
from rlhf.roles.endpoint import Endpoint
from rlhf.roles.length_limit import CutBlock, LengthLimit
from rlhf.roles.retokenise import Retokeniser, same_tokens
from rlhf.roles.text import BlockReader, TextReward
from rlhf.roles.text_pairs import TextPairs
from rlhf.types import Prompt
from rlhf.zero.rank import Rank

if TYPE_CHECKING:
    from rlhf.roles.reward_model import Encode, RewardRole

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

        role = RewardRole(recipe, folder, rank, source.label)
        role.encode = _own_tokens(recipe, source, role, folder, reader)
        return role
    if source.function is not None:
        return TextReward(load_scorer(source.function), reader)
    assert source.endpoint is not None
    return TextReward(Endpoint(source.endpoint, PATIENCE * recipe.placement.phase_timeout_seconds), reader)


def _own_tokens(
    recipe: Recipe, source: RewardSourceConfig, role: RewardRole, folder: str, reader: BlockReader
) -> Encode | None:
    """How the reward model reads a block; None where it reads the policy's tokens as they are. The log has which."""
    context = min(context_length(folder, recipe.model), role.network.positions)
    if source.max_length is not None and source.max_length > context:
        raise UserError(
            f"rewards.<name>.max_length = {source.max_length} is more than the {context} tokens that {folder} reads",
            "a sequence would not fit into the model",
            f"rewards.<name>.max_length={context} or less",
        )
    limit = LengthLimit(source.max_length or context)
    if not role.is_causal:
        tokenizer = from_folder(AutoTokenizer, folder, recipe.model)
        limit.tokens = min(limit.tokens, tokenizer.model_max_length)
        _tell(folder, f"reads prompt and response as a pair of texts; at most {limit.tokens:,} tokens")
        pairs = TextPairs(tokenizer, limit, reader)
        role.network.has_segments = pairs.frame.has_segments
        return pairs
    own = load_tokenizer(folder, replace(recipe.model, chat_template=None))
    if not same_tokens(reader.tokenizer, own, list(reader.by_id.values())):
        most = f"at most {limit.tokens:,} tokens"
        _tell(folder, f"reads text, its tokenizer being another than the policy's; {most}")
        return Retokeniser(own, limit.tokens, reader)
    _tell(folder, "reads the policy's tokens, its tokenizer being the same")
    longest = recipe.data.max_prompt_length + recipe.rollout.max_response_length
    return CutBlock(limit, own.bos_token_id) if longest > limit.tokens else None


def _tell(folder: str, how: str) -> None:
    print(f"reward model {folder}: {how}", flush=True)
