"""Tests of placement: on any node without GPUs, and in placement groups on three raylets with fictitious GPUs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from actors.placement import GPU_SHARE, Placement
from rlhf.config.schema import PlacementConfig, Recipe

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "recipes/llama_8b_8gpu.yaml")
MEMBERS = ["placement.critic.ranks=4", "placement.reference.ranks=1", "placement.reward.ranks=1"]
APART = ["place", "placement.strategy=separate", *MEMBERS]
ROLES = {
    "apart": [*APART, "placement.policy.ranks=6", "rollout.engines=2", "rollout.tensor_parallel=4"],
    "large": [*APART, "placement.policy.ranks=12", "rollout.engines=2", "rollout.tensor_parallel=1"],
    "typed": [
        *APART,
        "placement.policy.ranks=4",
        "placement.policy.gpu_type=A100",
        "rollout.engines=1",
        "rollout.tensor_parallel=8",
    ],
    "shared": [
        *APART,
        "placement.policy.ranks=8",
        "placement.critic.share_with=policy",
        "placement.reference.share_with=policy",
        "placement.rollout.share_with=policy",
        "rollout.engines=8",
        "rollout.tensor_parallel=1",
    ],
    "colocated": ["place", "placement.strategy=colocated", "placement.policy.ranks=8", "rollout.engines=8", *MEMBERS],
    "many": ["refuse", "placement.strategy=separate", "placement.policy.ranks=16", "rollout.engines=8", *MEMBERS],
    "busy": ["place", "placement.strategy=separate", "placement.policy.ranks=21", "rollout.engines=8", *MEMBERS],
    "wide": [
        "refuse",
        "placement.strategy=separate",
        "placement.policy.ranks=4",
        "placement.critic.ranks=1",
        "placement.reference.ranks=1",
        "placement.reward.ranks=1",
        "rollout.engines=1",
        "rollout.tensor_parallel=8",
        "placement.rollout.gpu_type=A100",
        "placement.reward.gpu_type=T4",
    ],
    "stopped": ["stop", *APART[1:], "placement.policy.ranks=4", "rollout.engines=1", "rollout.tensor_parallel=1"],
    "stopped-busy": ["stop", *APART[1:], "placement.policy.ranks=21", "rollout.engines=8"],
    "lost": [*APART, "placement.policy.ranks=4", "rollout.engines=1", "rollout.tensor_parallel=1"],
}
ROLES["lost"][0] = "lose"


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("placing")
    rows, answers = folder / "rows.jsonl", folder / "answers.jsonl"
    rows.touch()
    common = [f"data.path={rows}", "placement.device=cuda", "placement.start_timeout_seconds=4"]
    common += ["model.path=null", "model.scratch={}", "placement.ray_address=auto", "tracking.wandb=disabled"]
    lines = "".join(json.dumps([RECIPE, *settings, *common]) + "\n" for settings in ROLES.values())
    command = [sys.executable, "-m", "tests.actors.placing", answers]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(ROLES, map(json.loads, answers.read_text().splitlines()), strict=True))


def test_on_cpus_nothing_is_reserved() -> None:
    placement = Placement(Recipe(name="x", placement=PlacementConfig(device="cpu")), "cpu", "ppo", 0)
    assert placement.pools == () and not placement.engines_share
    anywhere = {"num_cpus": 0, "scheduling_strategy": "SPREAD"}
    assert placement.actor_options("policy", 0) == placement.actor_options("reward x", 0) == anywhere


def test_no_group_and_no_engine_lies_on_two_nodes(answers: dict[str, Any]) -> None:
    found = answers["apart"]
    assert {role: len(set(own)) for role, own in found.items() if role != "rollout"} == dict.fromkeys(
        (role for role in found if role != "rollout"), 1
    )
    assert len(found["policy"]) == 6 and set(found["policy"]) <= {"left", "right"}


def test_a_group_larger_than_any_node_fills_one_and_goes_on_with_the_next(answers: dict[str, Any]) -> None:
    assert sorted(Counter(answers["large"]["policy"]).values()) == [4, 8]


def test_a_role_gets_the_type_of_gpu_that_it_asks_for(answers: dict[str, Any]) -> None:
    assert set(answers["typed"]["policy"]) == {"small"}
    assert answers["typed"]["rollout"][0] != answers["typed"]["critic"][0]


def test_who_shares_sits_together_rank_by_rank(answers: dict[str, Any]) -> None:
    found = answers["shared"]
    assert found["critic"] == found["policy"][:4] and found["reference"] == found["policy"][:1]
    assert found["rollout"] == found["policy"] and len(set(found["policy"])) == 1
    together = answers["colocated"]
    assert together["rollout"] == together["policy"]
    assert all(own == together["policy"][: len(own)] for own in together.values())
    assert 10 * GPU_SHARE <= 1


def test_more_than_there_is_is_refused_with_the_table(answers: dict[str, Any]) -> None:
    assert "the run needs 30 GPUs and there are 20" in answers["many"]
    assert "    policy          16" in answers["many"] and "    there           20" in answers["many"]


def test_gpus_that_are_there_but_not_where_they_are_needed_are_refused(answers: dict[str, Any]) -> None:
    said = answers["wide"]
    assert "placement.reward.gpu_type = 'T4' and there is no such GPU" in said and "A100, H100" in said
    assert "are there, but not where they are needed" in said
    assert "    rollout: 1 x 8 A100" in said and ": 4 A100" in said


def test_gpus_that_do_not_become_free_are_waited_for_until_the_deadline(answers: dict[str, Any]) -> None:
    assert "were not free within 4 s: requested policy 21 x 1, critic 4 x 1" in answers["busy"]
    assert "free now on each node: " in answers["busy"]


def test_what_was_on_a_lost_node_is_placed_again_and_nothing_else(answers: dict[str, Any]) -> None:
    before, after = answers["lost"]
    gone = before["critic"][0]
    assert gone not in {node for own in after.values() for node in own}
    for role, own in before.items():
        assert all(new == old for old, new in zip(own, after[role], strict=True) if old != gone), role


@pytest.mark.parametrize("waiting", ["stopped", "stopped-busy"])
def test_a_stop_is_answered_while_slots_are_awaited_and_none_stays_reserved(
    waiting: str, answers: dict[str, Any]
) -> None:
    """The deadline is 4 s, the request comes after one: others hold the CPUs, or more GPUs are asked for than exist."""
    seconds, reserved = answers[waiting]
    assert 1.0 <= seconds < 2.5 and reserved == []
