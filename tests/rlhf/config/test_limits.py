from __future__ import annotations

from dataclasses import replace

import pytest

from rlhf.config.keys import sections, types_of, without_none
from rlhf.config.limits import LIMITS, out_of_limits
from rlhf.config.schema import DataConfig, OptimizerConfig, PPOConfig, Recipe, ScratchConfig


def messages(recipe: Recipe) -> list[str]:
    return [str(problem) for problem in out_of_limits(recipe)]


def test_every_number_of_the_schema_has_a_limit_and_every_limit_a_number():
    numeric = {int, float, tuple[float, float]}
    expected = {
        section: {name for name, kind in types_of(section).items() if without_none(kind)[0] in numeric}
        for _, section in sections()
    }
    for section, names in expected.items():
        assert set(LIMITS.get(section, {})) == names, section


def test_defaults_are_within_limits():
    assert messages(Recipe(name="a")) == []
    assert list(out_of_limits(ScratchConfig())) == []


@pytest.mark.parametrize(
    ("section", "name", "bad", "good"),
    [
        ("", "seed", [-1, 2**32], [0, 2**32 - 1]),
        ("model.scratch", "heads", [0, -4], [1]),
        ("model.scratch", "vocab_size", [0, 257], [258]),
        ("data", "held_out_fraction", [-0.1, 1.0, 2.0], [0.0, 0.99]),
        ("data", "max_rows", [0], [1, None]),
        ("sft", "batch_size", [0], [1]),
        ("reward", "eval_every", [0], [1]),
        ("ppo", "steps", [0, -1], [1]),
        ("ppo.optimizer", "lr", [0.0, -1e-5], [1e-12]),
        ("ppo.optimizer", "warmup_steps", [-1], [0]),
        ("ppo.critic_optimizer", "betas", [(0.9, 1.0), (-0.1, 0.9)], [(0.0, 0.999)]),
        ("ppo.optimizer", "max_grad_norm", [-1.0], [0.0]),
        ("algorithm", "kl_coef", [-0.01], [0.0]),
        ("algorithm", "clip_range", [0.0, 1.0], [0.2]),
        ("algorithm", "value_clip_range", [0.0, -1.0], [0.2, 5.0]),
        ("algorithm", "gamma", [-0.1, 1.1], [0.0, 1.0]),
        ("algorithm", "lam", [-0.1, 1.1], [0.0, 1.0]),
        ("algorithm", "missing_eos_penalty", [-1.0], [0.0, None]),
        ("rollout", "temperature", [0.0, -1.0], [0.01]),
        ("rollout", "gpu_memory_fraction", [0.0, 1.01], [1.0]),
        ("rollout", "memory_gib", [0.0], [0.5]),
        ("placement.reference", "ranks", [0], [1]),
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
        (message,) = messages(changed(section, name, value))
        assert f"{section}.{name} = ".lstrip(".") in message and "choose a value" in message
    for value in good:
        assert messages(changed(section, name, value)) == []


def changed(section: str, name: str, value: object) -> Recipe:
    recipe = Recipe(name="a")
    recipe = replace(recipe, model=replace(recipe.model, scratch=ScratchConfig()))
    return _changed(recipe, [*filter(None, section.split("."))], name, value)


def _changed(instance, parts, name, value):
    if not parts:
        return replace(instance, **{name: value})
    head, *rest = parts
    return replace(instance, **{head: _changed(getattr(instance, head), rest, name, value)})


def test_each_place_of_a_shared_section_is_named():
    recipe = Recipe(name="a", ppo=PPOConfig(optimizer=OptimizerConfig(lr=-1.0), steps=0), data=DataConfig(max_rows=0))
    text = "\n".join(messages(recipe))
    assert "ppo.optimizer.lr = -1.0 is out of range\n  fix: choose a value above 0" in text
    assert "ppo.steps = 0" in text and "data.max_rows = 0" in text and len(messages(recipe)) == 3
