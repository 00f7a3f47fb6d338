"""Pairs of options that cannot work together, each beside its nearest neighbour that can.

Options of the ``algorithm`` section alone are refused when it is constructed, those of several sections by a check.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from rlhf.config.load import load_recipe
from rlhf.config.ppo_rules import check_algorithm
from rlhf.config.schema import (
    AdaptiveKLConfig,
    AlgorithmConfig,
    AlgorithmName,
    CanaryConfig,
    DataConfig,
    EarlyStopConfig,
    LoRAConfig,
    ModelConfig,
    PPOConfig,
    Recipe,
    RewardSourceConfig,
)
from rlhf.errors import UserError
from rlhf.placement.machine import Machine
from rlhf.validate import validate

NAMES = get_args(AlgorithmName)
WITHOUT_CRITIC = [name for name in NAMES if name != "ppo"]
GROUPS = ["grpo", "dr_grpo", "rloo", "reinforce++_baseline", "dapo", "gspo", "cispo"]


def recipe(samples: int = 4, critic_init: str | None = None, **algorithm: Any) -> Recipe:
    """A recipe with these options of the algorithm, and several responses to a prompt."""
    ppo = PPOConfig(samples_per_prompt=samples, critic_init=critic_init)
    return Recipe(name="a", ppo=ppo, algorithm=AlgorithmConfig(**algorithm))


def refused(recipe: Recipe) -> UserError:
    """The one problem of a recipe, which says what, why and how to mend it."""
    [problem] = check_algorithm(recipe)
    assert problem.what and problem.why and problem.fix
    return problem


def broken(**algorithm: Any) -> UserError:
    """The one problem of an ``algorithm`` section that cannot be constructed."""
    with pytest.raises(ValidationError) as caught:
        AlgorithmConfig(**algorithm)
    [error] = caught.value.errors()
    [problem] = error["ctx"]["error"].problems
    assert problem.what and problem.why and problem.fix
    return problem


def passes(recipe: Recipe) -> bool:
    return not list(check_algorithm(recipe))


@pytest.mark.parametrize("name", NAMES)
def test_every_algorithm_passes_by_its_own_defaults(name: AlgorithmName) -> None:
    assert passes(recipe(name=name))


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_of_one_has_nothing_to_compare_with(name: AlgorithmName) -> None:
    problem = refused(recipe(samples=1, name=name))
    assert problem.what == f"algorithm.name = {name} with ppo.samples_per_prompt = 1"
    assert problem.fix.startswith("ppo.samples_per_prompt=8")
    assert passes(recipe(samples=2, name=name))


@pytest.mark.parametrize("name", ["ppo", "reinforce++"])
def test_one_response_a_prompt_is_enough_where_no_group_is_compared(name: AlgorithmName) -> None:
    assert passes(recipe(samples=1, name=name))


@pytest.mark.parametrize(
    ("option", "value", "shown"),
    [
        ("critic_warmup_steps", 2, "2"),
        ("lam", 1.0, "1.0"),
        ("gamma", 0.99, "0.99"),
        ("value_clip_range", 0.5, "0.5"),
        ("value_clip_range", None, "null"),
    ],
)
@pytest.mark.parametrize("name", WITHOUT_CRITIC)
def test_options_of_the_critic_need_a_critic(name: AlgorithmName, option: str, value: Any, shown: str) -> None:
    problem = broken(name=name, **{option: value})
    assert problem.what == f"algorithm.{option} = {shown}: {name} has no critic"
    default = {"critic_warmup_steps": "0", "lam": "0.95", "gamma": "1.0", "value_clip_range": "0.2"}[option]
    assert problem.fix == f"algorithm.{option}={default}, or algorithm.name=ppo"
    assert passes(recipe(name="ppo", **{option: value}))


def test_a_start_for_the_critic_needs_a_critic_and_all_its_options_are_named_together() -> None:
    assert "ppo.critic_init = some/folder: rloo has no critic" in refused(recipe(4, "some/folder", name="rloo")).what
    several = broken(name="grpo", lam=0.9, critic_warmup_steps=1).what
    assert several.startswith("algorithm.lam = 0.9, algorithm.critic_warmup_steps = 1: grpo has no critic")
    assert passes(recipe(critic_init="some/folder"))


def test_dr_grpo_keeps_out_the_biases_that_it_exists_to_leave_out() -> None:
    whitened = broken(name="dr_grpo", whiten_advantages=True)
    by_length = broken(name="dr_grpo", loss_mean="sequence")
    assert whitened.what.startswith("algorithm.whiten_advantages = true") and "algorithm.name=grpo" in whitened.fix
    assert by_length.what.startswith("algorithm.loss_mean = sequence") and "algorithm.name=grpo" in by_length.fix
    assert passes(recipe(name="dr_grpo", whiten_advantages=False, loss_mean="token"))
    assert passes(recipe(name="grpo", whiten_advantages=True, loss_mean="sequence"))


def test_a_factor_cannot_move_a_kl_coefficient_of_0() -> None:
    problem = broken(kl_coef=0.0, adaptive_kl=AdaptiveKLConfig())
    assert problem.what == "algorithm.adaptive_kl with algorithm.kl_coef = 0"
    assert passes(recipe(kl_coef=0.0)) and passes(recipe(kl_coef=1e-9, adaptive_kl=AdaptiveKLConfig()))
    assert passes(recipe(kl_coef=0.0, kl_in="loss")) and passes(recipe(kl_coef=0.0, name="grpo"))


@pytest.mark.parametrize(("cap", "works"), [(5.9, False), (6.0, False), (6.1, True), (None, True)])
def test_a_target_of_the_kl_is_below_the_canarys_cap(cap: float | None, works: bool) -> None:
    steered = replace(recipe(adaptive_kl=AdaptiveKLConfig(target=6.0)), canaries=CanaryConfig(max_kl=cap))
    if works:
        assert passes(steered)
    else:
        assert refused(steered).what == f"algorithm.adaptive_kl.target = 6.0 is not below canaries.max_kl = {cap}"


def test_a_penalty_that_is_taken_off_has_a_size() -> None:
    problem = broken(missing_eos="subtract", missing_eos_penalty=None)
    assert problem.what == "algorithm.missing_eos = subtract with algorithm.missing_eos_penalty = null"
    assert passes(recipe(missing_eos="subtract")) and passes(recipe(missing_eos_penalty=None))


@pytest.mark.parametrize(
    ("options", "works"),
    [
        ({"dual_clip": 1.1}, False),
        ({"dual_clip": 1.2}, True),  # at the edge the bound cuts only what is outside the clip range
        ({"dual_clip": 1.25, "clip_range_high": 0.28}, False),
        ({"dual_clip": 1.25, "clip_range": 0.28, "clip_range_high": 0.2}, True),
        ({"dual_clip": 3.0, "clip_range_high": 0.28}, True),
    ],
)
def test_the_dual_clip_is_outside_the_clip_range(options: dict[str, float], works: bool) -> None:
    if works:
        assert passes(recipe(**options))
    else:
        key = "clip_range_high" if "clip_range_high" in options else "clip_range"
        assert f"is less than 1 + algorithm.{key} = " in broken(**options).what


@pytest.mark.parametrize("option", [{"clip_range": 0.2}, {"dual_clip": 6.0}, {"clip_range": 0.2, "dual_clip": 6.0}])
def test_cispo_clips_weights_from_above_only(option: dict[str, float]) -> None:
    assert f"algorithm.{next(iter(option))} = {next(iter(option.values())):g}" in broken(name="cispo", **option).what
    assert passes(recipe(name="cispo", clip_range_high=2.0))
    assert passes(recipe(name="gspo", **option)) and passes(recipe(name="dapo", **option))


def test_the_limits_of_the_ratio_are_those_of_the_algorithms_paper() -> None:
    limits = {name: (AlgorithmConfig(name=name).clip_range, AlgorithmConfig(name=name).clip_high) for name in NAMES}
    assert limits.pop("dapo") == (0.2, 0.28) and limits.pop("gspo") == (3e-4, 4e-4) and limits.pop("cispo") == (None, 4)
    assert set(limits.values()) == {(0.2, 0.2)}
    assert AlgorithmConfig(name="gspo", clip_range=0.1, clip_range_high=0.3).clip_high == 0.3


@pytest.mark.parametrize("name", ["ppo", "reinforce++"])
def test_uniform_groups_are_left_out_only_where_groups_are_compared(name: AlgorithmName) -> None:
    assert broken(name=name, drop_uniform_groups=True).what.startswith("algorithm.drop_uniform_groups = true with")
    assert passes(recipe(name=name, drop_uniform_groups=False))
    assert all(passes(recipe(name=group, drop_uniform_groups=True)) for group in GROUPS)
    assert [group for group in NAMES if AlgorithmConfig(name=group).drop_uniform_groups] == ["dapo"]


def test_more_responses_than_are_trained_on_need_groups_that_are_left_out() -> None:
    more = replace(recipe(name="grpo"), ppo=PPOConfig(samples_per_prompt=4, oversampling=3))
    assert refused(more).what == "ppo.oversampling = 3 with algorithm.drop_uniform_groups = false"
    assert passes(replace(more, algorithm=AlgorithmConfig(name="dapo")))
    assert passes(replace(more, algorithm=AlgorithmConfig(name="grpo", drop_uniform_groups=True)))
    adaptive = AlgorithmConfig(name="dapo", adaptive_kl=AdaptiveKLConfig(horizon=383))
    assert "ppo.batch_size * ppo.oversampling = 384" in refused(replace(more, algorithm=adaptive)).what


def test_further_rounds_need_groups_that_are_left_out_and_a_rollout_that_does_not_run_ahead() -> None:
    more = replace(recipe(name="grpo"), ppo=PPOConfig(samples_per_prompt=4, sampling_rounds=3))
    assert refused(more).what == "ppo.sampling_rounds = 3 with algorithm.drop_uniform_groups = false"
    dapo = replace(more, algorithm=AlgorithmConfig(name="dapo"))
    assert passes(dapo)
    ahead = replace(dapo, ppo=PPOConfig(samples_per_prompt=4, sampling_rounds=3, staleness=1))
    assert refused(ahead).what == "ppo.sampling_rounds = 3 with ppo.staleness = 1"
    adaptive = AlgorithmConfig(name="dapo", adaptive_kl=AdaptiveKLConfig(horizon=383))
    assert "ppo.batch_size * ppo.sampling_rounds = 384" in refused(replace(more, algorithm=adaptive)).what


@pytest.mark.parametrize(("buffer", "works"), [(1, True), (255, True), (256, False), (300, False)])
def test_the_overlong_buffer_is_shorter_than_the_longest_response(buffer: int, works: bool) -> None:
    made = recipe(overlong_buffer=buffer)
    if works:
        assert passes(made)
    else:
        problem = refused(made)
        assert problem.what == f"algorithm.overlong_buffer = {buffer} is not below rollout.max_response_length = 256"
        assert problem.fix.startswith("algorithm.overlong_buffer=51")


def test_a_cap_needs_importance_weights() -> None:
    problem = broken(importance_sampling="none", importance_cap=5.0)
    assert problem.what == "algorithm.importance_cap = 5.0 with algorithm.importance_sampling = none"
    assert passes(recipe(importance_sampling="none"))
    assert passes(recipe(importance_sampling="sequence_mask", importance_cap=5.0))


def test_a_step_of_one_update_cannot_be_ended_early() -> None:
    problem = broken(target_kl=0.02, epochs=1, minibatches=1)
    assert problem.what == "algorithm.target_kl = 0.02 with a single update per step"
    assert passes(recipe(target_kl=0.02, epochs=2)) and passes(recipe(target_kl=0.02, epochs=1, minibatches=2))
    assert passes(recipe(epochs=1, minibatches=1))


def test_early_stopping_needs_held_out_prompts() -> None:
    nothing = DataConfig(held_out_fraction=0.0)
    stopping = replace(recipe(), early_stop=EarlyStopConfig(scorer=RewardSourceConfig(function="judge.py:score")))
    assert refused(replace(stopping, data=nothing)).what == "early_stop with data.held_out_fraction = 0"
    assert passes(stopping) and passes(replace(recipe(), data=nothing))


def test_what_is_merely_unusual_passes() -> None:
    assert passes(recipe(reward_scale="running_std", reward_clip=5.0, length_penalty=0.01, missing_eos_penalty=None))
    assert passes(recipe(name="reinforce++", whiten_advantages=False, entropy_coef=0.01, kl_in="loss"))
    assert passes(recipe(name="rloo", importance_sampling="sequence_truncate", importance_cap=1.0))
    assert passes(replace(recipe(), model=ModelConfig(lora=LoRAConfig())))


def test_all_problems_come_together() -> None:
    wrong = {"lam": 0.5, "kl_coef": 0.0, "adaptive_kl": AdaptiveKLConfig(), "target_kl": 1.0, "epochs": 1}
    with pytest.raises(ValidationError) as caught:
        AlgorithmConfig(name="grpo", dual_clip=1.1, **wrong)
    assert len(caught.value.errors()[0]["ctx"]["error"].problems) == 4
    assert len(list(check_algorithm(recipe(1, "some/folder", name="grpo")))) == 2


def test_the_rules_hold_wherever_the_policy_is_optimised_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "run.yaml").write_text(
        f"name: a\nmodel: {{scratch: {{}}}}\ndata: {{path: {tmp_path}/rows.jsonl}}\nalgorithm: {{name: grpo}}\n"
    )
    machine = Machine(gpus=0, cpus=4)
    for stage in ("ppo", "pipeline"):
        with pytest.raises(UserError, match=r"algorithm\.name = grpo with ppo\.samples_per_prompt = 1"):
            validate(load_recipe(tmp_path / "run.yaml"), stage, machine)
        validate(load_recipe(tmp_path / "run.yaml", ["ppo.samples_per_prompt=8"]), stage, machine)
    for stage in ("sft", "reward", "dpo"):
        validate(load_recipe(tmp_path / "run.yaml"), stage, machine)


def test_a_horizon_shorter_than_a_step_would_turn_beta_round() -> None:
    assert "more than a fifth" in refused(recipe(adaptive_kl=AdaptiveKLConfig(horizon=127))).why
    assert passes(recipe(adaptive_kl=AdaptiveKLConfig(horizon=128)))


def test_an_early_stop_that_never_comes_is_refused() -> None:
    watch = EarlyStopConfig(scorer=RewardSourceConfig(function="judge.py:score"))
    assert passes(replace(recipe(), early_stop=watch))  # 100 steps, judged every 10
    assert "never stop early" in refused(replace(recipe(), early_stop=replace(watch, every=100))).why
    assert "never stop early" in refused(replace(recipe(), early_stop=replace(watch, patience=10))).why
    assert passes(replace(recipe(), early_stop=replace(watch, patience=9)))
    with pytest.raises(ValidationError, match=r"early_stop\.scorer\.weight = 0"):
        replace(watch, scorer=replace(watch.scorer, weight=0.0))


ONE_PASS: dict[str, Any] = {"name": "grpo", "epochs": 1, "minibatches": 1}


def test_old_logprobs_come_from_the_update_where_it_is_the_only_one() -> None:
    def chosen(**changed: Any) -> str | None:
        return AlgorithmConfig(**{**ONE_PASS, **changed}).old_logprobs

    assert chosen() == "update"
    assert chosen(old_logprobs="scoring") == "scoring"
    assert chosen(name="rloo", kl_coef=0.0) == chosen(name="ppo", kl_coef=0.0) == "update"
    for name, value in NEEDS_SCORING.items():
        assert chosen(**value) == "scoring", name


NEEDS_SCORING: dict[str, dict[str, Any]] = {
    "algorithm.epochs = 4": {"epochs": 4},
    "algorithm.minibatches = 2": {"minibatches": 2},
    "algorithm.kl_in = reward": {"kl_in": "reward"},
    "algorithm.importance_sampling = sequence_mask": {"importance_sampling": "sequence_mask"},
    "algorithm.critic_warmup_steps = 3": {"name": "ppo", "kl_coef": 0.0, "critic_warmup_steps": 3},
}


@pytest.mark.parametrize("option", NEEDS_SCORING)
def test_old_logprobs_by_the_update_are_refused_where_they_are_needed_before(option: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(f"algorithm.old_logprobs = update with {option}")):
        AlgorithmConfig(**{**ONE_PASS, **NEEDS_SCORING[option], "old_logprobs": "update"})
