"""Where the score of a response comes from: a frozen reward model's rank, a Python function, or a service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING

from rlhf.config.schema import Recipe, RewardSourceConfig
from rlhf.evaluation.scorers import load_scorer
from rlhf.models.folder import load_chat, read_facts
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

        return RewardRole(recipe, folder, rank, _own_tokens(recipe, folder, reader, day))
    if source.function is not None:
        return TextReward(load_scorer(source.function), reader)
    assert source.endpoint is not None
    return TextReward(Endpoint(source.endpoint, PATIENCE * recipe.placement.phase_timeout_seconds), reader)


def _own_tokens(recipe: Recipe, folder: str, reader: BlockReader, day: date) -> Retokeniser | None:
    """How the reward model reads a block; None where the policy's tokens are its own. Says which in the log."""
    settings = replace(recipe.model, chat_template=None)
    own = load_chat(folder, settings, day)
    if same_tokens(reader.chat, own, list(reader.by_id.values())):
        print(f"reward model {folder}: reads the policy's tokens, its tokenizer being the same", flush=True)
        return None
    facts = read_facts(folder, settings, own.tokenizer)
    print(
        f"reward model {folder}: reads text, its tokenizer or chat template being another than the policy's; at most "
        f"{facts.context:,} tokens",
        flush=True,
    )
    retokeniser = Retokeniser(own, facts, reader)
    retokeniser.check(folder)
    return retokeniser
