from __future__ import annotations

from typing import Literal

import pytest

from rlhf.config.keys import all_keys, describe, nearest, section_of, sections, types_of
from rlhf.config.schema import ModelConfig, OptimizerConfig, Recipe, RewardSourceConfig, ScratchConfig


def test_all_keys_reach_into_optional_and_repeated_sections():
    keys = all_keys()
    assert {"name", "model", "model.scratch.heads", "ppo.critic_optimizer.betas", "placement.reward.ranks"} <= set(keys)
    assert len(keys) == len(set(keys))


def test_sections_begin_with_the_recipe_and_name_each_place_of_a_shared_one():
    found = list(sections())
    assert found[0] == ("", Recipe)
    optimizers = [prefix for prefix, section in found if section is OptimizerConfig]
    stages = ["sft.optimizer", "reward.optimizer", "dpo.optimizer", "ppo.optimizer", "ppo.critic_optimizer"]
    assert optimizers == stages
    parts = [prefix for prefix, section in found if section is RewardSourceConfig]
    assert parts == ["rewards.<name>", "early_stop.scorer"]


def test_section_of_looks_through_optional():
    types = types_of(ModelConfig)
    assert section_of(types["scratch"]) is ScratchConfig
    assert section_of(types["path"]) is None and section_of(types["dtype"]) is None


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (str, "text"),
        (bool, "true or false"),
        (int | None, "a whole number or null"),
        (int | str | None, "a whole number or text or null"),
        (float, "a number"),
        (Literal["x", "y"], "one of x, y"),
        (Literal[0, 1], "one of 0, 1"),
        (tuple[float, float], "a list of 2 numbers"),
        (tuple[str, ...], "a list of texts"),
        (dict[str, str], "a mapping of text to text"),
        (ScratchConfig | None, "a section or null"),
    ],
)
def test_types_in_words(kind, words):
    assert describe(kind) == words


def test_no_guess_where_only_the_section_is_right():
    assert nearest("ppo.optimizer.zzz") is None
    assert nearest("") is None
