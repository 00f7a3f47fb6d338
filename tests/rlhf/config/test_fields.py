"""Limits of single numbers. Impossible values are refused when a section is constructed, ``replace`` included, by a
``ValidationError``; a user gets the ``UserError`` that ``load_recipe`` makes of it."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Literal

import pytest
from pydantic import ValidationError

from rlhf.config.keys import limit_of, sections, types_of, without_none
from rlhf.config.load import load_recipe
from rlhf.config.schema import EndpointConfig, OptimizerConfig, PPOConfig, Recipe, RewardSourceConfig, ScratchConfig
from rlhf.errors import UserError


def test_every_number_of_the_schema_has_a_limit_and_every_limit_a_number():
    numeric = {int, float, tuple[float, float]}
    for _, section in sections():
        for name, kind in types_of(section).items():
            inner = without_none(kind)[0]
            is_number = inner in numeric or inner == Literal["auto"] | int
            assert bool(limit_of(section, name)) == is_number, f"{section}.{name}"


@pytest.mark.parametrize(
    ("section", "name", "bad", "good"),
    [
        ("", "seed", [-1, 2**32], [0, 2**32 - 1]),
        ("model.scratch", "heads", [0, -4], [1]),
        ("model.scratch", "vocab_size", [0, 257, 2**24 + 1], [258]),
        ("model.scratch", "layers", [0, 1001], [1000]),
        ("data", "held_out_fraction", [-0.1, 1.0, 2.0], [0.0, 0.99]),
        ("data", "max_rows", [0], [1, None]),
        ("sft", "batch_size", [0, 2**24 + 1], [1, 2**24]),
        ("reward", "eval_every", [0], [1]),
        ("ppo", "steps", [0, -1], [1]),
        ("ppo.optimizer", "lr", [0.0, -1e-5, 1e-13, 10.5], [1e-12, 10.0]),
        ("ppo.optimizer", "warmup_steps", [-1], [0]),
        ("ppo.critic_optimizer", "betas", [(0.9, 1.0), (-0.1, 0.9)], [(0.0, 0.999)]),
        ("ppo.optimizer", "max_grad_norm", [-1.0], [0.0]),
        ("algorithm", "kl_coef", [-0.01], [0.0]),
        ("algorithm", "clip_range", [0.0, 1.0], [0.2]),
        ("algorithm", "value_clip_range", [0.0, -1.0], [0.2, 5.0]),
        ("algorithm", "gamma", [-0.1, 1.1], [0.0, 1.0]),
        ("algorithm", "lam", [-0.1, 1.1], [0.0, 1.0]),
        ("algorithm", "missing_eos_penalty", [-1.0], [0.0, None]),
        ("rollout", "temperature", [0.0, -1.0, 100.5], [0.01, 100.0]),
        ("rollout", "gpu_memory_fraction", [0.0, 1.01], [1.0]),
        ("rollout", "memory_gib", [0.0], [0.5]),
        ("placement.reference", "ranks", [0, 10**6 + 1], [1, 10**6]),
        ("placement", "start_timeout_seconds", [0.0], [1.0]),
        ("canaries", "logprob_gap_limit", [0.0, -1.0], [1e-4, None]),
        ("canaries", "clipfrac_limit", [-0.1, 1.1], [0.0, 1.0]),
        ("canaries", "min_kl", [0.1], [0.0, -5.0]),
        ("canaries", "max_kl", [0.0], [1.0, None]),
        ("evaluation", "prompts", [0], [1]),
        ("evaluation", "show", [-1], [0]),
        ("tracking", "samples_per_step", [-1], [0]),
    ],
)
def test_boundaries(section, name, bad, good):
    for value in bad:
        with pytest.raises(ValidationError) as refused:
            changed(section, name, value)
        assert {error["loc"][0] for error in refused.value.errors()} == {name}
    for value in good:
        changed(section, name, value)


def changed(section: str, name: str, value: object) -> Recipe:
    recipe = Recipe(name="a")
    recipe = replace(recipe, model=replace(recipe.model, scratch=ScratchConfig()))
    return _changed(recipe, [*filter(None, section.split("."))], name, value)


def _changed(instance, parts, name, value):
    if not parts:
        return replace(instance, **{name: value})
    head, *rest = parts
    return replace(instance, **{head: _changed(getattr(instance, head), rest, name, value)})


def test_a_number_out_of_range_is_named_with_its_place_and_limit(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("name: a\nppo: {optimizer: {lr: -1}, steps: 0}\nrewards: {x: {function: 'f:g', max_length: 0}}\n")
    with pytest.raises(UserError) as refused:
        load_recipe(
            path,
            [
                "data.max_rows=0",
                "canaries.max_kl=1e300",
                "seed=-1",
                "dpo.optimizer.betas=[0.5, 1]",
                "rollout.temperature=1e300",
                "algorithm.clip_range=1e300",
            ],
        )
    message = str(refused.value)
    assert f"{path}:2: ppo.optimizer.lr = -1 is out of range\n  fix: choose a value: from 1e-12 to 10" in message
    assert "command line: canaries.max_kl = 1e+300 is out of range" in message
    assert "choose a value: above 0, and not beyond 3.4e+38" in message
    assert "choose a value: from 0.01 to 100\n" in message, "and nothing of wider limits"
    assert "choose a value: between 0 and 1, both excluded\n" in message
    assert "dpo.optimizer.betas = [0.5, 1] is out of range" in message
    for key in ("ppo.steps = 0", "data.max_rows = 0", "seed = -1", f"{path}:3: rewards.x.max_length = 0"):
        assert f"{key} is out of range" in message
    assert "9 problems" in message


@pytest.mark.parametrize("value", ["3", 3.0, True, 2**32, None])
def test_a_whole_number_is_of_its_own_type(value: object) -> None:
    with pytest.raises(ValidationError):
        PPOConfig(steps=value)


@pytest.mark.parametrize("value", [True, "fast", "nan", float("nan"), float("inf"), 10**400, 1e39, None])
def test_a_float_is_finite_and_no_boolean(value: object) -> None:
    with pytest.raises(ValidationError):
        RewardSourceConfig(model="m", weight=value)
    assert RewardSourceConfig(model="m", weight="-1e-5").weight == -1e-5
    assert type(RewardSourceConfig(model="m", weight=2).weight) is float


def test_a_weight_decay_that_turns_the_weights_round_is_refused() -> None:
    OptimizerConfig(lr=0.01, weight_decay=99.0)
    with pytest.raises(ValidationError, match="multiplies the weights"):
        OptimizerConfig(lr=0.01, weight_decay=100.0)


def test_a_section_is_frozen_has_no_further_keys_and_survives_pickling() -> None:
    recipe = Recipe(name="a", ppo=PPOConfig(optimizer=OptimizerConfig(lr=1e-7)))
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    with pytest.raises(FrozenInstanceError):
        recipe.ppo.steps = 3
    with pytest.raises(ValidationError):
        replace(recipe.ppo, stepz=3)


def test_an_error_does_not_repeat_what_may_be_a_password() -> None:
    for values in ({"url": "ftp://me:hunter22@host/x"}, {"url": "http://me:hunter22@host/x", "retries": -1}):
        with pytest.raises(ValidationError) as refused:
            EndpointConfig(**values)
        assert "hunter22" not in str(refused.value)
