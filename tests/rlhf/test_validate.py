from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.config.load import load_recipe
from rlhf.config.schema import ModelConfig, OptimizerConfig, Recipe, ScratchConfig
from rlhf.config.stages import check_schedule, critic_updates, policy_updates, stages_of
from rlhf.errors import UserError
from rlhf.placement.machine import Machine
from rlhf.validate import ENGINE_HEAD_SIZES, validate

CPU = Machine(gpus=0, cpus=4)
STAGES = ("sft", "reward", "dpo", "ppo", "pipeline")


@pytest.fixture
def recipe(tmp_path: Path):
    """A recipe that is right everywhere: context 128, prompts of 64, responses of 64. Overrides change it."""
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "judge.py").touch()
    path = tmp_path / "run.yaml"
    path.write_text(
        "name: a\n"
        "model: {scratch: {hidden_size: 64, heads: 2, max_length: 128}}\n"
        f"data: {{path: {tmp_path}/rows.jsonl, max_prompt_length: 64, max_response_length: 64}}\n"
        "rollout: {max_response_length: 64}\n"
    )
    return lambda *overrides: load_recipe(path, [text.replace("TMP", str(tmp_path)) for text in overrides])


def refused(recipe: Recipe, stage: str, machine: Machine = CPU) -> str:
    with pytest.raises(UserError) as error:
        validate(recipe, stage, machine)
    return str(error.value)


@pytest.mark.parametrize("stage", STAGES)
def test_a_good_recipe_passes(recipe, stage):
    validate(recipe(), stage, CPU)
    validate(recipe(), stage, Machine(gpus=8, cpus=1))


def test_stages_of_a_command():
    assert stages_of(Recipe(name="a"), "ppo") == ("ppo",)
    assert stages_of(Recipe(name="a"), "pipeline") == ("sft", "reward", "ppo")


def test_a_scorer_takes_the_place_of_the_reward_stage(recipe):
    scored = recipe("rewards.judge.function=TMP/judge.py:score")
    assert stages_of(scored, "pipeline") == ("sft", "ppo")
    for stage in ("ppo", "pipeline", "reward"):  # a reward model can be trained for another run
        validate(scored, stage, CPU)


def test_scorers_are_checked_where_they_are_used(recipe):
    scored = recipe("rewards.judge.function=nothing", "evaluation.scorer=gone.py:f")
    validate(scored, "sft", CPU)
    validate(scored, "reward", CPU)
    assert "evaluation.scorer" not in refused(scored, "ppo")
    message = refused(scored, "pipeline")
    assert "rewards.judge.function = 'nothing'" in message and "evaluation.scorer = 'gone.py:f'" in message


@pytest.mark.parametrize(
    ("hidden", "heads", "expected"),
    [(100, 3, "is not a whole number"), (160, 4, "makes heads 40 wide"), (4, 4, "makes heads 1 wide")],
)
def test_shape_of_a_scratch_model(recipe, hidden, heads, expected):
    message = refused(recipe(f"model.scratch.hidden_size={hidden}", f"model.scratch.heads={heads}"), "sft")
    assert expected in message and f"model.scratch.hidden_size={32 * heads}" in message
    validate(recipe(f"model.scratch.hidden_size={32 * heads}", f"model.scratch.heads={heads}"), "sft", CPU)


def test_head_sizes_are_even_as_rotary_positions_need():
    assert all(size % 2 == 0 for size in ENGINE_HEAD_SIZES)


def test_heads_are_shared_out_over_an_engines_gpus(recipe):
    split = recipe("rollout.tensor_parallel=4")
    assert "model.scratch.heads = 2 is not divisible by rollout.tensor_parallel = 4" in refused(
        split, "ppo", Machine(gpus=8, cpus=1)
    )


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "ppo"])
def test_prompt_and_response_fit_the_context_exactly_or_are_refused(recipe, stage):
    longer = recipe("data.max_prompt_length=65")
    message = refused(longer, stage)
    assert "= 65 + 64 = 129 tokens exceed the model's context of 128" in message
    assert "model.scratch.max_length=129" in message
    validate(recipe("data.max_prompt_length=65", "model.scratch.max_length=129"), stage, CPU)


def test_the_context_of_a_pretrained_model_comes_from_the_machine(recipe):
    pretrained = replace(recipe(), model=ModelConfig(path="organisation/model"))
    validate(pretrained, "pipeline", CPU)
    validate(pretrained, "pipeline", replace(CPU, context_length=128))
    message = refused(pretrained, "pipeline", replace(CPU, context_length=127))
    assert message.count("exceed the model's context of 127") == 2 and "scratch" not in message


def test_ppo_lengths_come_from_the_rollout(recipe):
    validate(recipe("data.max_response_length=100"), "ppo", CPU)
    assert "data.max_response_length = 64 + 100" in refused(recipe("data.max_response_length=100"), "sft")
    assert "rollout.max_response_length = 64 + 100" in refused(recipe("rollout.max_response_length=100"), "ppo")


@pytest.mark.parametrize(
    ("stage", "roles"),
    [
        ("sft", {"policy"}),
        ("dpo", {"policy"}),
        ("reward", {"reward"}),
        ("ppo", {"policy", "critic", "reference", "reward"}),
    ],
)
def test_a_micro_batch_holds_the_longest_sequence(recipe, stage, roles):
    small = [f"placement.{role}.micro_batch_tokens=127" for role in ("policy", "critic", "reference", "reward")]
    message = refused(recipe(*small), stage)
    named = {role for role in ("policy", "critic", "reference", "reward") if f"placement.{role}.micro" in message}
    assert named == roles and "= 64 + 64 = 128 tokens" in message
    validate(recipe(*(text.replace("127", "128") for text in small)), stage, CPU)


def test_a_role_of_several_stages_needs_the_longest_of_them(recipe):
    lengths = ["data.max_response_length=32", "placement.policy.micro_batch_tokens=100"]
    validate(recipe(*lengths), "sft", CPU)
    message = refused(recipe(*lengths), "pipeline")
    assert "placement.policy.micro_batch_tokens = 100" in message and "rollout.max_response_length = 64 + 64" in message


def test_offload_needs_zero(recipe):
    off = ["placement.critic.offload=true", "placement.critic.zero_stage=0"]
    assert "placement.critic.offload needs ZeRO" in refused(recipe(*off), "ppo")
    validate(recipe(*off), "sft", CPU)
    validate(recipe(off[0], "placement.critic.zero_stage=1"), "ppo", CPU)


@pytest.mark.parametrize(("stage", "role"), [("sft", "policy"), ("dpo", "policy"), ("reward", "reward")])
def test_supervised_batches_are_shared_out_over_the_ranks(recipe, stage, role):
    ranks = f"placement.{role}.ranks=4"
    validate(recipe(ranks, f"{stage}.batch_size=4"), stage, CPU)
    message = refused(recipe(ranks, f"{stage}.batch_size=6"), stage)
    assert f"{stage}.batch_size = 6 is not divisible by placement.{role}.ranks = 4" in message
    assert message.endswith(f"fix: {stage}.batch_size=4 or {stage}.batch_size=8")
    assert refused(recipe(ranks, f"{stage}.batch_size=3"), stage).endswith(f"fix: {stage}.batch_size=4")


def test_dpo_is_a_stage_of_its_own(recipe):
    assert stages_of(Recipe(name="a"), "dpo") == ("dpo",)
    wrong = recipe("dpo.init=./gone", "dpo.batch_size=3", "placement.policy.ranks=2")
    message = refused(wrong, "dpo")
    assert "dpo.init = './gone'" in message and "dpo.batch_size = 3" in message
    for stage in ("reward", "ppo", "pipeline"):
        validate(wrong, stage, CPU)


def test_dpo_learns_from_preferences(recipe):
    assert "the dpo stage has no data" in refused(recipe("data.path=null", "data.prompts=TMP/rows.jsonl"), "dpo")
    validate(recipe("data.path=null", "data.preferences=TMP/rows.jsonl"), "dpo", CPU)


def test_dpo_asks_for_the_policys_gpus_alone(recipe):
    placed = recipe("placement.policy.ranks=4", "placement.reward.ranks=8", "rollout.engines=8")
    validate(placed, "dpo", Machine(gpus=4, cpus=1))
    assert "the run needs 4 GPUs and there are 3" in refused(placed, "dpo", Machine(gpus=3, cpus=1))


def test_ppo_batches_satisfy_all_divisors_with_one_fix(recipe):
    ranks = ["placement.policy.ranks=2", "placement.critic.ranks=3"]
    shape = ["ppo.samples_per_prompt=8", "algorithm.minibatches=2", *ranks]  # 8, 2, 4 and 6: multiples of 24
    message = refused(recipe("ppo.batch_size=100", *shape), "ppo")
    assert (
        "not divisible by ppo.samples_per_prompt = 8, algorithm.minibatches * placement.critic.ranks = 6\n" in message
    )
    assert "fix: ppo.batch_size=96 or ppo.batch_size=120" in message
    validate(recipe("ppo.batch_size=96", *shape), "ppo", CPU)
    validate(recipe("ppo.batch_size=120", *shape), "ppo", CPU)


def test_a_minibatch_smaller_than_the_ranks_is_refused(recipe):
    shape = ["ppo.batch_size=8", "algorithm.minibatches=4"]
    validate(recipe(*shape, "placement.policy.ranks=2"), "ppo", CPU)
    message = refused(recipe(*shape, "placement.policy.ranks=4"), "ppo")
    assert message.endswith("fix: ppo.batch_size=16")


def test_updates_of_policy_and_critic(recipe):
    counted = recipe("ppo.steps=10", "algorithm.epochs=3", "algorithm.minibatches=2", "algorithm.critic_warmup_steps=4")
    assert critic_updates(counted) == 10 * 3 * 2
    assert policy_updates(counted) == 6 * 3 * 2


def test_warm_up_ends_before_the_run(recipe):
    run = ["ppo.steps=10", "algorithm.epochs=1", "algorithm.critic_warmup_steps=4"]
    validate(recipe(*run, "ppo.optimizer.warmup_steps=5", "ppo.critic_optimizer.warmup_steps=9"), "ppo", CPU)
    message = refused(recipe(*run, "ppo.optimizer.warmup_steps=6", "ppo.critic_optimizer.warmup_steps=10"), "ppo")
    assert "ppo.optimizer.warmup_steps = 6 is not shorter than the run of 6 updates" in message
    assert "ppo.critic_optimizer.warmup_steps = 10 is not shorter than the run of 10 updates" in message


def test_check_schedule():
    check_schedule(OptimizerConfig(warmup_steps=0), 1, "sft.optimizer")
    check_schedule(OptimizerConfig(warmup_steps=99), 100, "sft.optimizer")
    with pytest.raises(UserError) as error:
        check_schedule(OptimizerConfig(warmup_steps=100), 100, "sft.optimizer")
    assert error.value.fix.startswith("sft.optimizer.warmup_steps=10, or")


def test_critic_warm_up_leaves_steps_to_the_policy(recipe):
    message = refused(recipe("ppo.steps=5", "algorithm.critic_warmup_steps=5"), "ppo")
    assert "leaves the policy none of the run's ppo.steps = 5" in message and "problems" not in message
    validate(recipe("ppo.steps=5", "algorithm.critic_warmup_steps=4"), "ppo", CPU)


def test_a_pipeline_needs_held_out_prompts(recipe):
    validate(recipe("data.held_out_fraction=0"), "sft", CPU)
    assert "leaves nothing to evaluate on" in refused(recipe("data.held_out_fraction=0"), "pipeline")


def test_bfloat16_runs_on_the_cpu(recipe):
    validate(recipe("model.dtype=bfloat16"), "pipeline", CPU)


def test_too_few_gpus(recipe):
    assert "the run needs 5 GPUs and there are 4" in refused(
        recipe("placement.strategy=separate"), "pipeline", Machine(gpus=4, cpus=1)
    )


def test_problems_of_every_kind_come_together(recipe):
    wrong = recipe(
        "name=a/b", "model.path=org/model", "data.path=gone.jsonl", "sft.batch_size=3", "placement.policy.ranks=2",
        "placement.threads_per_rank=99",
    )  # fmt: skip
    message = refused(wrong, "sft")
    assert message.startswith("the recipe 'a/b' cannot run `sft`: 5 problems\n")
    for part in ("cannot be a folder's name", "both are given", "gone.jsonl", "sft.batch_size = 3", "threads_per_rank"):
        assert part in message


SMALL = st.integers(min_value=0, max_value=9)


@settings(max_examples=200, deadline=None)
@given(
    values=st.fixed_dictionaries(
        {},
        optional={
            "model.scratch.hidden_size": SMALL.map(lambda x: 32 * x),
            "model.scratch.heads": SMALL,
            "ppo.steps": SMALL,
            "ppo.batch_size": SMALL,
            "ppo.samples_per_prompt": SMALL,
            "algorithm.minibatches": SMALL,
            "algorithm.epochs": SMALL,
            "algorithm.critic_warmup_steps": SMALL,
            "ppo.optimizer.warmup_steps": SMALL,
            "placement.policy.ranks": SMALL,
            "placement.critic.ranks": SMALL,
            "rollout.engines": SMALL,
            "rollout.tensor_parallel": SMALL,
            "placement.strategy": st.sampled_from(["auto", "colocated", "separate"]),
            "placement.device": st.sampled_from(["auto", "cpu", "cuda"]),
        },
    ),
    stage=st.sampled_from(STAGES),
    gpus=st.integers(min_value=0, max_value=20),
)
def test_what_passes_can_be_shared_out(tmp_path_factory, values, stage, gpus):
    folder = tmp_path_factory.getbasetemp()
    (folder / "r.yaml").write_text(f"name: a\nmodel: {{scratch: {{}}}}\ndata: {{path: {folder}}}\n")
    try:
        recipe = load_recipe(folder / "r.yaml", [f"{key}={value}" for key, value in values.items()])
        validate(recipe, stage, Machine(gpus=gpus, cpus=2))
    except UserError:
        return
    assert isinstance(recipe.model.scratch, ScratchConfig)
    assert recipe.model.scratch.hidden_size % recipe.model.scratch.heads == 0
    if stage in ("ppo", "pipeline"):
        assert recipe.ppo.batch_size % recipe.ppo.samples_per_prompt == 0
        minibatch, rest = divmod(recipe.ppo.batch_size, recipe.algorithm.minibatches)
        assert rest == 0 and minibatch >= recipe.placement.policy.ranks
        assert minibatch % recipe.placement.policy.ranks == 0 == minibatch % recipe.placement.critic.ranks
        assert policy_updates(recipe) > recipe.ppo.optimizer.warmup_steps
