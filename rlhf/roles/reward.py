"""Builds one part of the reward: a rank of a frozen reward model, a Python function, or an HTTP service."""

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
from rlhf.models.tokenizer_dropout import switch_dropout_off
from rlhf.roles.encoders import BlockTruncator, LengthLimit, Retokeniser, TextPairs, same_tokens
from rlhf.roles.endpoint import Endpoint
from rlhf.roles.text import BlockReader, TextReward
from rlhf.types import Prompt
from rlhf.zero.process_group import Rank

if TYPE_CHECKING:
    from rlhf.roles.reward_model import Encode, RewardRole

ENDPOINT_FRACTION = 0.9
"""Fraction of ``placement.phase_timeout_seconds`` granted to a service for one block, so that the error names the
service, not the phase."""


def make_reward(
    recipe: Recipe,
    source: RewardSourceConfig,
    policy: str,
    folder: str | None,
    prompts: Sequence[Prompt],
    day: date,
    rank: Rank,
) -> RewardRole | TextReward:
    """Build one part of the reward on one rank.

    Args:
        policy: folder of the policy, whose tokenizer made the responses' tokens.
        folder: folder of the reward model; None if the part is a function or a service.
        prompts: the run's prompts, looked up by a block's ``prompt_ids``.
        day: date that is passed to the chat templates of models whose folder stores none.

    Raises:
        UserError: the model cannot be used as a reward, ``max_length`` exceeds its context, it cannot read a prompt, or
            the function or the endpoint is not usable.
    """
    reader = BlockReader(load_chat(policy, recipe.model, day), prompts)
    if folder is not None:
        from rlhf.roles.reward_model import RewardRole  # not needed, and slow to import, for a function or a service

        role = RewardRole(recipe, folder, rank, source.label)
        role.encode = _choose_encoding(recipe, source, role, folder, reader, day)
        return role
    if source.function is not None:
        return TextReward(load_scorer(source.function), reader)
    assert source.endpoint is not None
    return TextReward(Endpoint(source.endpoint, ENDPOINT_FRACTION * recipe.placement.phase_timeout_seconds), reader)


def _choose_encoding(
    recipe: Recipe, source: RewardSourceConfig, role: RewardRole, folder: str, reader: BlockReader, day: date
) -> Encode | None:
    """Choose and log how blocks are encoded for the reward model; None if it reads the policy's tokens unchanged."""
    context = min(context_length(folder, recipe.model), role.network.positions)
    if source.max_length is not None and source.max_length > context:
        raise UserError(
            f"rewards.<name>.max_length = {source.max_length} exceeds the context of {folder}, {context} tokens",
            "longer sequences do not fit into the model",
            f"rewards.<name>.max_length={context} or less",
        )
    most = source.max_length or context
    if not role.is_causal:
        tokenizer = from_folder(AutoTokenizer, folder, recipe.model)
        if remark := switch_dropout_off(tokenizer, folder):
            _log(folder, remark)
        most = min(most, tokenizer.model_max_length)
        _log(folder, f"reads prompt and response as a pair of texts; at most {most:,} tokens")
        pairs = TextPairs(tokenizer, LengthLimit(most), reader)
        role.network.has_segments = pairs.frame.has_segments
        return pairs
    settings = replace(recipe.model, chat_template=None)
    own = load_chat(folder, settings, day)
    if not same_tokens(reader.chat, own, list(reader.by_id.values())):
        reason = "because its tokenizer or chat template differs from the policy's"
        _log(folder, f"reads text, {reason}; at most {most:,} tokens")
        facts = replace(read_facts(folder, settings, own.tokenizer), context=most)
        retokeniser = Retokeniser(own, facts, reader)
        retokeniser.check(folder)
        return retokeniser
    _log(folder, "reads the policy's tokens, because its tokenizer is the same")
    longest = recipe.data.max_prompt_length + recipe.rollout.max_response_length
    return BlockTruncator(LengthLimit(most, own.tokenizer.bos_token_id)) if longest > most else None


def _log(folder: str, message: str) -> None:
    print(f"reward model {folder}: {message}", flush=True)
