"""``rlhf plan`` answers or refuses at once, and in little memory, however large a whole number of the recipe is."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import psutil
import pytest

from launch.plan.cluster import parse_cluster
from launch.plan.report import make_plan
from rlhf.config.fields import MOST_WHOLE
from rlhf.config.keys import sections, types_of, without_none
from rlhf.config.load import load_recipe
from rlhf.errors import UserError
from tests.launch.plan.small import find

BASE = """\
name: huge
model: {path: tiny, lora: {rank: 2}}
data: {path: data.jsonl, max_prompt_length: 16, max_response_length: 16}
rollout: {max_response_length: 16}
algorithm: {adaptive_kl: {target: 6.0}}
rewards:
  model: {model: tiny}
  service: {endpoint: {url: "http://127.0.0.1:1/score"}}
early_stop: {scorer: {model: trained}}
"""
SCRATCH = "model: {scratch: {}}"
CLUSTER = parse_cluster("nodes=4,gpus=8,gpu=h100-80")
LITTLE_BYTES = 256 * 2**20
"""More memory than this is not taken."""
SOON_SECONDS = 30.0
"""CPU time of one plan, the search for a change that fits included."""


def whole_numbers() -> list[str]:
    """Dotted keys of all whole numbers of a recipe."""
    found = []
    for prefix, section in sections():
        for name, kind in types_of(section).items():
            inner = without_none(kind)[0]
            if int in (inner, *get_args(inner)):
                found.append(f"{prefix}.{name}".lstrip("."))
    return found


def settings_of(key: str) -> str:
    """The key in the recipe that is tried: parts of the reward have names there."""
    part = "service" if "endpoint" in key else "model"
    return key.replace("early_stop.scorer.endpoint", "rewards.service.endpoint").replace("<name>", part)


@contextmanager
def little_memory() -> Iterator[None]:
    """No more than ``LITTLE_BYTES`` of new memory can be taken in this context."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + LITTLE_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def plan_or_refusal(path: Path, overrides: list[str]) -> Any:
    try:
        return make_plan(load_recipe(path, overrides), "pipeline", CLUSTER, find)
    except UserError as error:
        return error


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("huge") / "run.yaml"
    path.write_text(BASE)
    made = plan_or_refusal(path, [])
    assert not isinstance(made, UserError), made
    return path


@pytest.mark.parametrize("key", whole_numbers())
def test_every_whole_number_may_be_huge(key: str, recipe: Path) -> None:
    overrides = [f"{settings_of(key)}={MOST_WHOLE}"]
    if key.startswith("model.scratch"):
        overrides = ["model.path=null", "model.lora=null", "rewards.model.model=trained", *overrides]
    began = time.process_time()
    with little_memory():
        found = plan_or_refusal(recipe, overrides)
    assert time.process_time() - began < SOON_SECONDS
    if isinstance(found, UserError):
        assert key.rpartition(".")[2] in str(found)


@pytest.mark.parametrize(
    "overrides",
    [
        ["reward.batch_size=16777216"],
        ["sft.batch_size=16777216", "dpo.batch_size=16777216"],
        ["ppo.batch_size=16777216", "rollout.block_size=1"],
        ["ppo.batch_size=16777216", "algorithm.name=dapo", "ppo.samples_per_prompt=8", "ppo.oversampling=1000",
         "algorithm.adaptive_kl=null"],
        ["placement.policy.ranks=1000000", "sft.batch_size=1000000", "ppo.batch_size=1000000"],
        ["rollout.engines=999999"],
    ],
)  # fmt: skip
def test_the_largest_numbers_that_are_allowed_are_planned(overrides: list[str], recipe: Path) -> None:
    began = time.process_time()
    with little_memory():
        plan_or_refusal(recipe, overrides)
    assert time.process_time() - began < SOON_SECONDS


def test_a_batch_beyond_any_memory_is_refused_with_its_limit(recipe: Path) -> None:
    refused = plan_or_refusal(recipe, ["reward.batch_size=2147483648"])
    assert "reward.batch_size = 2147483648 is out of range" in str(refused)
    assert "choose a value: from 1 to 16777216" in str(refused)
