"""Model folders that do not fit their role in the recipe are refused before anything starts, by key."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from actors.session import Session
from launch.preflight import check_classifiers
from rlhf.config.load import load_recipe
from rlhf.errors import UserError
from rlhf.models.scratch import train_tokenizer
from rlhf.tracking.console import Console
from tests.end_to_end.small import RECIPE, make_small_data, overrides
from tests.rlhf.tiny import tiny_model
from tests.rlhf.tiny_classifiers import pair_tokenizer, tiny_classifier


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a policy, a finished reward model, one with two labels, and an encoder."""
    root = tmp_path_factory.mktemp("given")
    make_small_data(root)
    made: dict[str, Any] = {
        "policy": tiny_model(AutoModelForCausalLM, "llama"),
        "finished": tiny_classifier("llama"),
        "labels": tiny_classifier("llama", labels=2),
        "encoder": tiny_classifier("bert"),
        "headless": tiny_classifier("bert").bert,
    }
    for name, model in made.items():
        model.save_pretrained(root / name)
        tokenizer = pair_tokenizer("bert") if name in ("encoder", "headless") else train_tokenizer([], 258)
        tokenizer.save_pretrained(root / name)
    return root


def session(root: Path, *settings: str) -> Session:
    start = [f"model.path={root}/policy", "model.scratch=null", f"ppo.policy_init={root}/policy"]
    given = [setting.replace("@", f"{root}/") for setting in settings]
    recipe = load_recipe(RECIPE, [*overrides(root, "x"), *start, *given])
    return Session(recipe=recipe, console=Console(sys.stdout), device="cpu", gpus=0)


@pytest.mark.parametrize(
    ("stage", "settings", "message"),
    [
        ("ppo", ["rewards.one.model=@policy"], r"rewards.one.model = .*policy is no .*: it lacks score.weight"),
        ("ppo", ["rewards.one.model=@headless"], r"rewards.one.model = .*headless .* lacks classifier.bias, classif"),
        (
            "ppo",
            ["rewards.one.model=@labels"],
            r"has 2 labels.*\n.*0 \(LABEL_0\), 1 \(LABEL_1\).*\n.*rewards.one.label=",
        ),
        ("ppo", ["rewards.one={model: '@finished', label: 1}"], r"rewards.one.label = 1 is no label"),
        ("ppo", ["early_stop.scorer.model=@policy"], r"early_stop.scorer.model = .*policy is no .* lacks score.weight"),
        ("ppo", ["early_stop.scorer.model=@labels"], r"early_stop.scorer.label=<index or name>"),
        ("ppo", ["ppo.critic_init=@encoder"], r"ppo.critic_init = .*another vocabulary"),
        ("reward", ["reward.init=@encoder"], r"reward.init = .*another vocabulary"),
        ("reward", ["reward.init=@labels"], r"reward.init = .* has 2 labels"),
    ],
)
def test_what_a_folder_cannot_be_is_refused_with_its_key(
    stage: str, settings: list[str], message: str, folders: Path
) -> None:
    with pytest.raises(UserError) as caught:
        check_classifiers(session(folders, *settings), stage)
    assert re.search(message, str(caught.value)), str(caught.value)


def test_what_can_be_passes(folders: Path) -> None:
    rewards = "rewards={a: {model: '@finished'}, b: {model: '@labels', label: LABEL_1}, c: {model: '@encoder'}}"
    critic = ["ppo.critic_init=@labels", "early_stop.scorer={model: '@labels', label: 0}"]
    check_classifiers(session(folders, rewards, *critic), "ppo")
    for start in ("finished", "policy"):
        check_classifiers(session(folders, f"reward.init=@{start}"), "reward")
