from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rlhf.checkpoints.compatible import ABSENT, differing_keys, require_same
from rlhf.checkpoints.store import CheckpointStore
from rlhf.config.load import to_yaml
from rlhf.config.schema import Recipe
from rlhf.errors import UserError
from tests.rlhf.checkpoints.making import CONFIG, commit


def test_keys_that_differ_are_named_with_both_values() -> None:
    then = "seed: 1\nppo: {steps: 5, lr: 0.5, list: [1, 2]}\nrewards: {a: {weight: 1.0}}\nearly_stop: null\n"
    now = "seed: 1\nppo: {steps: 9, lr: 0.5, list: [1]}\nrewards: {b: {weight: 1.0}}\nearly_stop: {every: 2}\n"
    assert differing_keys(then, now, ["seed", "ppo", "rewards"]) == [
        ("ppo.steps", 5, 9),
        ("ppo.list", [1, 2], [1]),
        ("rewards.a", {"weight": 1.0}, ABSENT),
        ("rewards.b", ABSENT, {"weight": 1.0}),
    ]
    assert differing_keys(then, now, ["early_stop"]) == [("early_stop", None, {"every": 2})]
    assert differing_keys(then, now, ["seed"]) == []


def test_a_recipe_differs_where_it_was_changed() -> None:
    recipe = Recipe(name="a")
    other = replace(recipe, seed=recipe.seed + 1, ppo=replace(recipe.ppo, steps=12345), name="b")
    found = differing_keys(to_yaml(recipe), to_yaml(other), ["ppo", "rollout"])
    assert found == [("ppo.steps", recipe.ppo.steps, 12345)]


def test_another_configuration_is_refused_on_one_screen(tmp_path: Path) -> None:
    checkpoint = commit(CheckpointStore(tmp_path, 1, 0), 3)
    require_same(checkpoint, CONFIG, ["name", "ppo"])
    require_same(checkpoint, CONFIG.replace("demo", "other"), ["ppo"])
    many = "ppo:\n  steps: 5\n" + "".join(f"  key_{k}: {'x' * 500}\n" for k in range(20))
    with pytest.raises(UserError, match="another configuration") as caught:
        require_same(checkpoint, many, ["ppo"])
    text = str(caught.value)
    assert "ppo.steps: 4 then, 5 now" in text and "ppo.key_8" in text and "and 11 more" in text
    assert "name=..." in caught.value.fix and f"delete {tmp_path}" in caught.value.fix
    assert len(text) < 1500 + len(str(tmp_path)) * 2


@pytest.mark.parametrize("text", ["", "[", "a: [", "5", "x: 2024-13-45", "\x00"])
def test_what_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not"):
        differing_keys(text, CONFIG, ["ppo"])
