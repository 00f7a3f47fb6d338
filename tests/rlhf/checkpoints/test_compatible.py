from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rlhf.checkpoints.compatible import ABSENT, data_changes, differing_keys, require_same, require_same_data
from rlhf.checkpoints.store import CheckpointStore
from rlhf.config.load import to_yaml
from rlhf.config.schema import Recipe
from rlhf.errors import UserError
from rlhf.records import DataFile
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


def test_a_key_of_a_later_version_is_no_difference_at_its_default() -> None:
    now = to_yaml(Recipe(name="a"))
    then = now.replace("  max_rows: null\n", "").replace("  long_prompts: drop\n", "")
    assert then != now and differing_keys(then, now, ["data"]) == []
    changed = now.replace("max_rows: null", "max_rows: 5")
    assert differing_keys(then, changed, ["data"]) == [("data.max_rows", ABSENT, 5)]


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


A, B, LONGER = DataFile("data/a.jsonl", 3, "aa"), DataFile("data/b.jsonl", 5, "bb"), DataFile("data/a.jsonl", 4, "cc")


@pytest.mark.parametrize(
    ("then", "now", "expected"),
    [
        ([A, B], [A, B], []),
        (None, [A], []),  # by a version that did not keep it
        ([A], [replace(A, file="moved/c.jsonl")], []),
        ([A], [LONGER], ["data/a.jsonl has other content: 3 rows then, 4 rows now"]),
        ([A, B], [A], ["data/b.jsonl (5 rows) is not read any more"]),
        ([A], [A, B], ["data/b.jsonl (5 rows) is new"]),
        ([A, B], [B, A], ["the files are the same, but are read in another order"]),
        (
            [A],
            [replace(LONGER, file="x.jsonl")],
            ["data/a.jsonl (3 rows) is not read any more", "x.jsonl (4 rows) is new"],
        ),
        ([], [A], ["data/a.jsonl (3 rows) is new"]),
    ],
)
def test_data_changes_where_content_does(then, now, expected: list[str]) -> None:
    assert data_changes(then, now) == expected


def test_changed_data_is_refused_on_one_screen_with_ways_on(tmp_path: Path) -> None:
    require_same_data("the stage", [], tmp_path)
    with pytest.raises(UserError, match="the stage was made with other data") as caught:
        require_same_data("the stage", [f"change {i}" for i in range(30)], tmp_path)
    assert "change 9" in caught.value.what and "and 20 more" in caught.value.what
    assert "checkpoint.changed_data=accept" in caught.value.fix and f"delete {tmp_path}" in caught.value.fix
