"""Where the score of a response comes from: a frozen reward model's rank, a Python function, or a service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING

from transformers import AutoTokenizer

from rlhf.config.schema import Recipe, RewardSourceConfig
from rlhf.errors import UserError
from rlhf.evaluation.scorers import load_scorer
from rlhf.models.folder import context_length, from_folder, load_chat, read_facts
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
    day: date,
    rank: Rank,
) -> RewardRole | TextReward:
    """One part of the reward on one rank.

    Args:
        policy: folder whose tokenizer the responses are in.
        folder: that of the reward model, for a part that is one.
        prompts: what the policy is asked, found by a block's ``prompt_ids``.
        day: what chat templates are told, of models that keep none.
    """
    reader = BlockReader(load_chat(policy, recipe.model, day), prompts)
    if folder is not None:
        from rlhf.roles.reward_model import RewardRole  # a function or a service needs neither DeepSpeed nor models

        role = RewardRole(recipe, folder, rank, source.label)
        role.encode = _own_tokens(recipe, source, role, folder, reader, day)
        return role
    if source.function is not None:
        return TextReward(load_scorer(source.function), reader)
    assert source.endpoint is not None
    return TextReward(Endpoint(source.endpoint, PATIENCE * recipe.placement.phase_timeout_seconds), reader)


def _own_tokens(
    recipe: Recipe, source: RewardSourceConfig, role: RewardRole, folder: str, reader: BlockReader, day: date
) -> Encode | None:
    """How the reward model reads a block; None where it reads the policy's tokens as they are. The log has which."""
    context = min(context_length(folder, recipe.model), role.network.positions)
    if source.max_length is not None and source.max_length > context:
        raise UserError(
            f"rewards.<name>.max_length = {source.max_length} is more than the {context} tokens that {folder} reads",
            "a sequence would not fit into the model",
            f"rewards.<name>.max_length={context} or less",
        )
    most = source.max_length or context
    if not role.is_causal:
        tokenizer = from_folder(AutoTokenizer, folder, recipe.model)
        most = min(most, tokenizer.model_max_length)
        _tell(folder, f"reads prompt and response as a pair of texts; at most {most:,} tokens")
        pairs = TextPairs(tokenizer, LengthLimit(most), reader)
        role.network.has_segments = pairs.frame.has_segments
        return pairs
    settings = replace(recipe.model, chat_template=None)
    own = load_chat(folder, settings, day)
    if not same_tokens(reader.chat, own, list(reader.by_id.values())):
        other = "its tokenizer or chat template being another than the policy's"
        _tell(folder, f"reads text, {other}; at most {most:,} tokens")
        facts = replace(read_facts(folder, settings, own.tokenizer), context=most)
        retokeniser = Retokeniser(own, facts, reader)
        retokeniser.check(folder)
        return retokeniser
    _tell(folder, "reads the policy's tokens, its tokenizer being the same")
    longest = recipe.data.max_prompt_length + recipe.rollout.max_response_length
    return CutBlock(LengthLimit(most, own.tokenizer.bos_token_id)) if longest > most else None


def _tell(folder: str, how: str) -> None:
    print(f"reward model {folder}: {how}", flush=True)
