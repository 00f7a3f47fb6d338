from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf.config.keys import all_keys
from rlhf.config.load import load_recipe, recipe_digest, to_yaml
from rlhf.config.schema import (
    EndpointConfig,
    ModelConfig,
    OptimizerConfig,
    Recipe,
    RewardSourceConfig,
    RoleConfig,
    ScratchConfig,
    TrackingConfig,
)
from rlhf.errors import UserError
from rlhf.placement.machine import Machine
from rlhf.validate import problems_of


@pytest.fixture
def load(tmp_path: Path):
    def _load(text: str, *overrides: str) -> Recipe:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return load_recipe(path, overrides)

    return _load


@pytest.fixture
def refused(load):
    def _refused(text: str, *overrides: str) -> str:
        with pytest.raises(UserError) as error:
            load(text, *overrides)
        return str(error.value)

    return _refused


def test_defaults(load):
    assert load("name: a\n") == Recipe(name="a")


def test_values_of_every_kind(load):
    recipe = load(
        "name: a\n"
        "model: {scratch: {layers: 2}, dtype: bfloat16}\n"
        "data: {columns: {chosen: better}, max_rows: 7, held_out_fraction: 0}\n"
        "ppo: {optimizer: {betas: [0, 0.5]}}\n"
        "placement: {policy: {zero_stage: 3, offload: true}}\n"
        "tracking: {tags: [x, y]}\n"
        "algorithm: {missing_eos_penalty: null}\n"
    )
    assert recipe.model == ModelConfig(scratch=ScratchConfig(layers=2), dtype="bfloat16")
    assert recipe.data.columns == {"chosen": "better"} and recipe.data.max_rows == 7
    assert recipe.data.held_out_fraction == 0.0 and type(recipe.data.held_out_fraction) is float
    assert recipe.ppo.optimizer.betas == (0.0, 0.5)
    assert recipe.placement.policy == RoleConfig(zero_stage=3, offload=True)
    assert recipe.tracking.tags == ("x", "y")
    assert recipe.algorithm.missing_eos_penalty is None


def test_a_parents_own_defaults_survive_a_partly_given_section(load):
    recipe = load("name: a\nppo: {optimizer: {warmup_steps: 5}, critic_optimizer: {eps: 1e-8}}\n")
    assert recipe.ppo.optimizer == OptimizerConfig(lr=1e-6, warmup_steps=5)
    assert recipe.ppo.critic_optimizer == OptimizerConfig(lr=9e-6, eps=1e-8)


def test_parts_of_the_reward_have_names_of_their_own(load):
    recipe = load(
        "name: a\nrewards:\n  correct: {function: 'f.py:g'}\n  style: {endpoint: {url: 'http://h:1/s'}, weight: 0.2}\n",
        "rewards.style.endpoint.on_failure=drop",
    )
    endpoint = EndpointConfig(url="http://h:1/s", on_failure="drop")
    assert recipe.rewards == {
        "correct": RewardSourceConfig(function="f.py:g"),
        "style": RewardSourceConfig(endpoint=endpoint, weight=0.2),
    }
    assert not recipe.trains_reward and load("name: a\n").trains_reward


def test_a_label_is_an_index_or_a_name(load):
    written = ("1", "good", "null")
    labels = [load(f"name: a\nrewards: {{a: {{model: m, label: {text}}}}}\n").rewards["a"].label for text in written]
    assert labels == [1, "good", None] and type(labels[0]) is int


def test_naming_a_part_replaces_the_trained_model(load):
    assert list(load("name: a\n", "rewards.correct.function=f.py:g").rewards) == ["correct"]


def test_section_whose_keys_are_commented_out_is_the_default(load):
    assert load("name: a\nppo:\n  # steps: 3\nmodel:\n  scratch:\n") == Recipe(name="a")


def test_overrides_win_over_the_file(load):
    recipe = load("name: a\nppo: {steps: 1, batch_size: 8}\n", "ppo.steps=5", "model.scratch.heads=2", "name=b")
    assert (recipe.name, recipe.ppo.steps, recipe.ppo.batch_size, recipe.model.scratch.heads) == ("b", 5, 8, 2)


@pytest.mark.parametrize("text", ["1e-5", "0.00001", "1.0e-5", "'1e-5'", "+1E-5"])
def test_floats_as_people_write_them(load, text):
    assert load(f"name: a\nsft: {{optimizer: {{lr: {text}}}}}\n").sft.optimizer.lr == 1e-5


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("ppo.steps", "many", "ppo.steps is 'many', expected a whole number"),
        ("ppo.steps", "true", "ppo.steps is true, expected a whole number"),
        ("ppo.steps", "1.5", "ppo.steps is 1.5, expected a whole number"),
        ("ppo.steps", "1e3", "ppo.steps is 1000.0, expected a whole number"),
        ("ppo.steps", "'3'", "ppo.steps is '3', expected a whole number"),
        ("ppo.steps", "null", "ppo.steps is null, expected a whole number"),
        ("ppo.steps", "[1]", "ppo.steps is [1], expected a whole number"),
        ("data.max_rows", "x", "data.max_rows is 'x', expected a whole number or null"),
        ("algorithm.gamma", "true", "algorithm.gamma is true, expected a number"),
        ("algorithm.gamma", ".nan", "algorithm.gamma is nan, expected a number"),
        ("algorithm.gamma", "-.inf", "algorithm.gamma is -inf, expected a number"),
        ("algorithm.gamma", "nan", "algorithm.gamma is 'nan', expected a number"),
        ("algorithm.gamma", "1" + "0" * 400, "expected a number"),
        ("algorithm.gamma", "high", "algorithm.gamma is 'high', expected a number"),
        ("rollout.enforce_eager", "1", "rollout.enforce_eager is 1, expected true or false"),
        ("rollout.enforce_eager", "'yes'", "rollout.enforce_eager is 'yes', expected true or false"),
        ("model.dtype", "float16", "model.dtype is 'float16', expected one of float32, bfloat16"),
        ("placement.policy.zero_stage", "4", "expected one of 0, 1, 2, 3"),
        ("placement.policy.zero_stage", "true", "expected one of 0, 1, 2, 3"),
        ("placement.policy.zero_stage", "1.0", "expected one of 0, 1, 2, 3"),
        ("placement.policy", "2", "placement.policy is 2, expected a section"),
        ("model.scratch", "small", "model.scratch is 'small', expected a section"),
        ("ppo.optimizer.betas", "[0.9]", "ppo.optimizer.betas is [0.9], expected a list of 2 numbers"),
        ("ppo.optimizer.betas", "[0.9, x]", "expected a list of 2 numbers"),
        ("ppo.optimizer.betas", "0.9", "expected a list of 2 numbers"),
        ("tracking.tags", "x", "tracking.tags is 'x', expected a list of texts"),
        ("tracking.tags", "!!set {a, b}", "expected a list of texts"),
        ("tracking.tags", "[1]", "tracking.tags is [1], expected a list of texts"),
        ("data.columns", "[chosen]", "expected a mapping of text to text"),
        ("data.columns", "{chosen: 1}", "expected a mapping of text to text"),
        ("data.columns", "null", "data.columns is null, expected a mapping of text to text"),
    ],
)
def test_wrong_type_says_key_value_expected_and_place(refused, tmp_path, key, value, said):
    section, _, name = key.partition(".")
    for part in reversed(name.split(".")):
        value = f"{{{part}: {value}}}"
    message = refused(f"name: a\n{section}: {value}\n")
    assert message.startswith(f"{tmp_path}/run.yaml:2: ") and said in message


@pytest.mark.parametrize("value", ["2024", "true", "1.5", "1e3"])
def test_text_that_yaml_reads_as_something_else_asks_for_quotes(refused, value):
    assert "put the value in quotes" in refused(f"name: a\ntracking: {{project: {value}}}\n")
    assert "put the value in quotes" in refused("name: a\n", f"tracking.wandb={value}")


@pytest.mark.parametrize("text", ["2024-01-01", "off", "1:30", "0b1", "1_000", "12:30:45"])
def test_text_that_yaml_1_1_took_for_something_else_is_text(load, text):
    assert load(f"name: a\ntracking: {{project: {text}}}\n").tracking.project == text
    assert load("name: a\n", f"tracking.project={text}").tracking.project == text


@pytest.mark.parametrize(("text", "number"), [("010", 10), ("0100", 100), ("0o17", 15), ("0x1F", 31), ("+3", 3)])
def test_whole_numbers_are_those_of_yaml_1_2(load, text, number):
    assert load(f"name: a\nseed: {text}\n").seed == load("name: a\n", f"seed={text}").seed == number


@pytest.mark.parametrize("text", ["1:30", "1_000", "0b11", "08:00", "2024-01-01"])
@pytest.mark.parametrize("key", ["ppo.steps", "ppo.optimizer.lr"])
def test_what_yaml_1_2_takes_for_text_is_no_number(refused, key, text):
    assert "write digits alone" in refused("name: a\n", f"{key}={text}")


@pytest.mark.parametrize(("text", "instead"), [("yes", "true"), ("Off", "false"), ("n", "false")])
def test_a_switch_is_true_or_false(refused, text, instead):
    assert f"write {instead}" in refused("name: a\n", f"deterministic={text}")


@pytest.mark.parametrize("text", ["1e5", "0o17", "1e-5", "yes", "1:30", "2024-01-01", "010", "~", "1_000", ".inf"])
def test_text_comes_back_as_text_from_the_resolved_recipe(load, text):
    """Written by one run and read by the next, and by readers of YAML 1.1 such as PyYAML's own."""
    recipe = replace(load("name: a\n"), tracking=TrackingConfig(project=text))
    assert load(to_yaml(recipe)) == recipe
    assert yaml.safe_load(to_yaml(recipe))["tracking"]["project"] == text


def test_a_mapping_may_have_whole_numbers_for_names(load):
    assert load("name: a\n", "data.labels={1: chosen, 2: rejected}").data.labels == {"1": "chosen", "2": "rejected"}


def test_a_mapping_may_have_true_and_fractions_for_names(load, refused):
    labels = load("name: a\n", "data.labels={true: chosen, false: rejected, 0.5: tie}").data.labels
    assert labels == {"true": "chosen", "false": "rejected", "0.5": "tie"}
    assert "expected a mapping of text to text" in refused("name: a\n", "data.labels={1: chosen, '1': rejected}")
    assert "expected a mapping of text to text" in refused("name: a\n", "data.labels={null: chosen}")


def test_nearest_choice_is_offered(refused):
    assert "did you mean bfloat16?" in refused("name: a\nmodel: {dtype: bfloat}\n")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("ppo.kl_coef", "algorithm.kl_coef"),
        ("algorithm.kl_coeff", "algorithm.kl_coef"),
        ("kl_coef", "algorithm.kl_coef"),
        ("algoritm", "algorithm"),
        ("ppo.optimiser", "ppo.optimizer"),
        ("ppo.critic_optimizr.lr", "ppo.critic_optimizer"),
        ("rollout.temprature", "rollout.temperature"),
        ("placement.critic.zero_stages", "placement.critic.zero_stage"),
        ("reward.zero_stage", "placement.reward.zero_stage"),
        ("model.scratch.head", "model.scratch.heads"),
        ("scorer", "early_stop.scorer"),
        ("rewards.judge.fucntion", "rewards.<name>.function"),
        ("Name", "name"),
    ],
)
def test_unknown_key_names_the_nearest_of_the_whole_tree(refused, key, meant):
    message = refused("name: a\n", f"{key}=1")
    assert f"did you mean {meant}?" in message and "command line: there is no key" in message


def test_a_colon_without_a_space_is_explained(refused):
    """YAML reads one long key."""
    assert "write rank: 4, with a space after the colon" in refused("name: a\n", "model.lora={rank:4}")
    assert "write hidden_size: 64, with a space" in refused("name: a\nmodel: {scratch: {hidden_size:64}}\n")


def test_unknown_key_that_resembles_nothing_lists_the_keys_there(refused):
    assert "keys of ppo: steps, batch_size" in refused("name: a\nppo:\n  zzz: 1\n")
    assert "keys of ppo.optimizer: lr, schedule" in refused("name: a\n", "ppo.optimizer.learning_rate=1")
    assert "keys of a recipe: name, seed" in refused("name: a\nzzz: 1\n")


def test_dotted_key_in_a_file_says_how_to_nest_it(refused):
    assert "one line for each part" in refused("name: a\nppo.steps: 3\n")


def test_a_key_that_is_not_text(refused):
    assert "there is no key 1" in refused("name: a\n1: 2\n")


def test_missing_name(refused):
    assert "name is missing" in refused("seed: 1\n")


def test_everything_is_reported_at_once(refused):
    message = refused("seed: x\nppo: {steps: y, stepz: 1}\n", "rollout.engines=z")
    assert "5 problems" in message
    for said in ("seed is 'x'", "ppo.steps is 'y'", "no key ppo.stepz", "rollout.engines is 'z'", "name is missing"):
        assert said in message


def test_to_yaml_round_trips(load):
    recipe = load(
        "name: ä ☃ 'quoted'\nmodel: {scratch: {}}\nppo: {optimizer: {lr: 1.25e-7, betas: [0.1, 0.2]}}\n"
        "tracking: {tags: ['off', '1', '']}\ndata: {columns: {chosen: 'a: b'}, path: '2024-01-01'}\n"
    )
    assert load(to_yaml(recipe)) == recipe
    assert list(yaml.safe_load(to_yaml(recipe)))[:3] == ["name", "seed", "runs_dir"]


def test_digest_depends_on_the_named_sections_only():
    recipe = Recipe(name="a")
    digest = recipe_digest(recipe, ["seed", "sft"])
    assert digest == recipe_digest(replace(recipe, name="b"), ["sft", "seed"])
    assert digest != recipe_digest(replace(recipe, seed=1), ["seed", "sft"])
    assert digest != recipe_digest(recipe, ["seed"])
    with pytest.raises(KeyError):
        recipe_digest(recipe, ["steps"])


def test_digest_is_the_hash_of_canonical_json():
    # printf '{"name":"a","seed":0}' | sha256sum
    assert recipe_digest(Recipe(name="a"), ["seed", "name"]) == "fa6465d73f5b"


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JUNK = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3))
PARTS = st.sampled_from(sorted({part for key in all_keys() for part in key.split(".")}))
KEYS = PARTS | st.text(max_size=5)
SHAPED = st.recursive(JUNK, lambda inner: st.dictionaries(KEYS, inner, max_size=4), max_leaves=12)
relaxed = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def recipe_or_user_error(path: Path, overrides: list[str]) -> None:
    try:
        recipe = load_recipe(path, overrides)
    except UserError:
        return
    path.write_text(to_yaml(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe


@relaxed
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_junk_text_is_a_user_error(tmp_path, content):
    (tmp_path / "run.yaml").write_bytes(content)
    recipe_or_user_error(tmp_path / "run.yaml", ["name=a"])


@relaxed
@given(junk=SHAPED)
def test_junk_settings_are_a_user_error(tmp_path, junk):
    (tmp_path / "run.yaml").write_text(yaml.dump(junk), encoding="utf-8")
    recipe_or_user_error(tmp_path / "run.yaml", ["name=a"])


@relaxed
@given(key=st.sampled_from(all_keys()) | st.text(max_size=10), value=st.text(max_size=15) | SCALARS.map(str))
def test_junk_overrides_are_a_user_error(tmp_path, key, value):
    (tmp_path / "run.yaml").write_text("name: a\n", encoding="utf-8")
    recipe_or_user_error(tmp_path / "run.yaml", [f"{key}={value}"])


def test_the_configuration_loads_without_heavy_libraries():
    code = (
        "import sys, rlhf.config.load, rlhf.validate\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'vllm', 'ray', 'deepspeed', 'datasets'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_all_problems_are_listed_together_without_those_that_a_wrong_key_may_cause(tmp_path: Path) -> None:
    """A rule of a section, a rule between sections, a missing path and a typo; the typo's default is not judged."""
    path = tmp_path / "run.yaml"
    path.write_text("name: a\nmodel: {path: /nowhere/model}\nalgorithm: {critic_warmup_steps: 2}\n", encoding="utf-8")
    check = partial(problems_of, stage="ppo", machine=Machine(gpus=0, cpus=16))
    overrides = ["algorithm.name=grpo", "ppo.batch_size=63", "data.pth=x", "placement.policy.ranks=2"]
    with pytest.raises(UserError) as error:
        load_recipe(path, overrides, check)
    text = str(error.value)
    assert "algorithm.critic_warmup_steps = 2: grpo has no critic" in text
    assert "algorithm.name = grpo with ppo.samples_per_prompt = 1" in text
    assert "ppo.batch_size = 63 is not divisible by" in text
    assert "model.path = '/nowhere/model': there is no such file or folder" in text
    assert "there is no key data.pth" in text and "has no data" not in text


@pytest.mark.parametrize("override", ["name=[1]", "early_stop.every=5", "rewards.a b.model=trained", "data=7"])
def test_what_is_left_of_a_refused_recipe_is_checked_where_it_is_one(override: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("name: a\nmodel: {scratch: {}}\n", encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_recipe(path, [override], partial(problems_of, stage="ppo", machine=Machine(gpus=0, cpus=16)))
    assert override.partition("=")[0].partition(".")[0] in str(error.value)
    assert "MISSING" not in str(error.value)


def test_a_key_without_a_value_is_told_the_default(refused) -> None:
    assert "fix: write a value after it, such as the default, ppo.steps=100" in refused("name: a\n", "ppo.steps=")


def test_all_names_that_are_close_are_suggested(refused) -> None:
    assert "did you mean gspo or grpo?" in refused("name: a\n", "algorithm.name=gpro")


@pytest.mark.parametrize("name", ["quickstrat.yaml", "recipes/quickstrat.yaml", "quickstart.yaml"])
def test_a_shipped_recipe_is_suggested_for_a_name_that_is_close(name: str) -> None:
    with pytest.raises(UserError) as error:
        load_recipe(name)
    assert "recipes/quickstart.yaml" in error.value.fix and "cluster.yaml" not in error.value.fix
