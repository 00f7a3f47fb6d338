"""Who shares GPUs with whom, and on which nodes they lie: by hand, and that no packing breaks its rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.config.schema import (
    TRAINED,
    AlgorithmConfig,
    EarlyStopConfig,
    EnginePlacementConfig,
    PlacementConfig,
    Recipe,
    RewardSourceConfig,
    RoleConfig,
    RolloutConfig,
)
from rlhf.placement.pools import (
    ENGINES,
    NodeGPUs,
    Pool,
    RoleRequest,
    Sharing,
    check_sharing,
    offload_modes,
    pack,
    pools,
    sharing,
    turns,
)


def recipe(algorithm: str = "ppo", **placement: Any) -> Recipe:
    return Recipe(
        name="a",
        rewards={"model": RewardSourceConfig(model=TRAINED)},
        algorithm=AlgorithmConfig(name=algorithm),
        placement=PlacementConfig(**{"strategy": "separate", "policy": RoleConfig(ranks=4), **placement}),
        rollout=RolloutConfig(engines=2),
    )


def pool(role: str, ranks: int, width: int = 1, gpu_type: str | None = None) -> Pool:
    return Pool(members=(RoleRequest(role=role, key=role, ranks=ranks, width=width),), gpu_type=gpu_type)


def nodes(*gpus: int, types: str = "") -> list[NodeGPUs]:
    return [NodeGPUs(gpus=each, type=kind.strip() or None) for each, kind in zip(gpus, types or " " * len(gpus))]


def where(wanted: list[Pool], there: list[NodeGPUs]) -> dict[str, list[int]]:
    """Name of a pool → the node of each of its seats."""
    chunks = pack(wanted, there)
    assert chunks is not None
    found: dict[str, list[int]] = {}
    for chunk in sorted(chunks, key=lambda each: (each.pool, each.first)):
        found.setdefault(wanted[chunk.pool].name, []).extend([chunk.node] * chunk.slots)
    return found


def test_who_rests_is_who_shares_where_the_recipe_leaves_it_open() -> None:
    """A judge never leaves; what is said for a role is done wherever it sits; other stages have one role each."""
    said = {"reference": RoleConfig(share_with="policy"), "reward": RoleConfig(offload_between_phases="all")}
    judged = EarlyStopConfig(scorer=RewardSourceConfig(model=TRAINED))
    made = replace(recipe(**said), early_stop=judged)
    apart = pools(made, "ppo", "separate")
    expected = {"policy": "states", "critic": "none", "reference": "states", "reward model": "all", "judge": "states"}
    assert offload_modes(made, "ppo", apart) == expected
    together = offload_modes(made, "ppo", pools(made, "ppo", "colocated"))
    assert together == {**expected, "critic": "states"}
    assert offload_modes(made, "sft", pools(made, "sft", "colocated")) == {}
    assert offload_modes(made, "ppo", ()) == {
        **dict.fromkeys(expected, "none"),
        "reward model": "all",
        "judge": "states",
    }


def test_roles_with_one_key_take_turns_and_others_overlap_with_them() -> None:
    assert turns({"a": "x", "b": None, "c": "x", "d": "y", "e": "x"}) == (("a", "b", "d"), ("c",), ("e",))
    assert turns({"a": None, "b": None}) == (("a", "b"),)
    assert turns({}) == ()


def test_colocated_roles_share_one_key_and_wait_for_the_rollout() -> None:
    wanted = pools(recipe(), "ppo", "colocated")
    shares = sharing(wanted, offload_modes(recipe(), "ppo", wanted))
    assert set(shares) == {"policy", "critic", "reference", "reward model"}
    assert set(shares.values()) == {Sharing(key="policy", is_after_rollout=True)}


def test_guests_take_turns_with_their_host_alone() -> None:
    """The reference on the policy's GPUs; the critic offloads everything on GPUs of its own."""
    made = recipe(reference=RoleConfig(share_with="policy"), critic=RoleConfig(offload_between_phases="all"))
    wanted = pools(made, "ppo", "separate")
    assert sharing(wanted, offload_modes(made, "ppo", wanted)) == {
        "policy": Sharing(key="policy"),
        "reference": Sharing(key="policy"),
        "critic": Sharing(key="host", is_after_rollout=True),
        "reward model": Sharing(),
    }


def test_roles_on_the_engines_gpus_wait_for_the_rollout() -> None:
    made = recipe(rollout=EnginePlacementConfig(share_with="policy"))
    wanted = pools(made, "ppo", "separate")
    shares = sharing(wanted, offload_modes(made, "ppo", wanted))
    assert shares["policy"] == Sharing(key="policy", is_after_rollout=True) and shares["critic"] == Sharing()


def test_every_role_has_a_pool_of_its_own_or_none_has() -> None:
    apart = pools(recipe(), "ppo", "separate")
    assert [(each.name, each.gpus) for each in apart] == [
        ("policy", 4),
        ("critic", 1),
        ("reference", 1),
        ("reward model", 1),
        ("rollout", 2),
    ]
    [together] = pools(recipe(), "ppo", "colocated")
    assert (together.gpus, together.shared, len(together.roles)) == (4, True, 5)


def test_guests_sit_with_their_host_and_a_pool_is_as_large_as_its_largest_role() -> None:
    shared = recipe(
        reference=RoleConfig(ranks=2, share_with="policy"),
        reward=RoleConfig(ranks=6, share_with="critic"),
        rollout=EnginePlacementConfig(share_with="policy"),
    )
    found = pools(shared, "ppo", "separate")
    assert [(each.roles, each.slots) for each in found] == [
        (("policy", "reference", "rollout"), 4),
        (("critic", "reward model"), 6),
    ]
    assert [each.roles for each in pools(shared, "reward", "separate")] == [("reward",)]
    assert [each.roles for each in pools(shared, "generate", "separate")] == [("rollout",)]


def test_a_group_lies_in_one_node_where_it_fits() -> None:
    """In the order of the roles the policy's six would begin on the first node and end on the second."""
    wanted = [pool("critic", 4), pool("policy", 6), pool(ENGINES, 2, width=2), pool("reward", 2)]
    assert where(wanted, nodes(8, 8)) == {
        "critic": [1] * 4,
        "policy": [0] * 6,
        "rollout": [0, 1],
        "reward": [1, 1],
    }


def test_a_group_that_fits_in_no_node_fills_whole_nodes() -> None:
    assert where([pool("policy", 12), pool("reward", 4)], nodes(4, 8, 8)) == {
        "policy": [1] * 8 + [0] * 4,
        "reward": [2] * 4,
    }


def test_wide_engines_choose_first_where_groups_would_leave_them_no_place() -> None:
    """Six and six would leave two and two: no place for an engine of four."""
    found = where([pool("policy", 6), pool("critic", 6), pool(ENGINES, 1, width=4)], nodes(8, 8))
    assert found["rollout"] == [0]
    assert found["policy"] == [1] * 6
    assert found["critic"] == [0] * 4 + [1] * 2


def test_types_are_kept_apart() -> None:
    wanted = [pool("policy", 2, gpu_type="H"), pool("reward", 3, gpu_type="A"), pool("critic", 1)]
    assert where(wanted, nodes(4, 2, types="AH")) == {"policy": [1, 1], "reward": [0] * 3, "critic": [0]}
    assert pack(wanted, nodes(4, 2, types="HA")) is None


def test_an_engine_is_never_split() -> None:
    assert pack([pool(ENGINES, 1, width=3)], nodes(2, 2)) is None


@given(
    st.lists(st.tuples(st.integers(1, 12), st.sampled_from([1, 1, 2, 4])), min_size=1, max_size=6),
    st.lists(st.integers(0, 8), min_size=1, max_size=6),
)
def test_no_packing_breaks_its_rules(sizes: list[tuple[int, int]], gpus: list[int]) -> None:
    wanted, there = [pool(f"p{i}", *size) for i, size in enumerate(sizes)], nodes(*gpus)
    chunks = pack(wanted, there)
    if chunks is None:
        assert any(each.width > 1 for each in wanted) or sum(each.gpus for each in wanted) > sum(gpus)
        return
    for i, each in enumerate(wanted):
        own = sorted((chunk for chunk in chunks if chunk.pool == i), key=lambda chunk: chunk.first)
        assert [chunk.first for chunk in own] == [sum(c.slots for c in own[:k]) for k in range(len(own))]
        assert sum(chunk.slots for chunk in own) == each.slots
    for n, node in enumerate(there):
        assert sum(c.slots * wanted[c.pool].width for c in chunks if c.node == n) <= node.gpus


@pytest.mark.parametrize(
    ("placement", "algorithm", "what", "fix"),
    [
        ({"critic": RoleConfig(share_with="critic")}, "ppo", "critic.share_with = critic", "null or another"),
        ({"reward": RoleConfig(share_with="critic")}, "grpo", "share_with = critic", "null or another"),
        (
            {"critic": RoleConfig(share_with="reference"), "reference": RoleConfig(share_with="policy")},
            "ppo",
            "critic.share_with = reference",
            "placement.critic.share_with=policy",
        ),
        (
            {"critic": RoleConfig(share_with="policy"), "strategy": "colocated"},
            "ppo",
            "with placement.strategy = colocated",
            "leave one",
        ),
        (
            {"critic": RoleConfig(share_with="policy", gpu_type="A100")},
            "ppo",
            "placement.critic.gpu_type = 'A100', and critic uses the GPUs of policy",
            "the same for both",
        ),
        (
            {"reward": RoleConfig(gpu_type="A100"), "strategy": "colocated"},
            "ppo",
            "reward uses the GPUs of policy",
            "null",
        ),
    ],
)
def test_sharing_that_cannot_be_is_refused(placement: dict[str, Any], algorithm: str, what: str, fix: str) -> None:
    (problem,) = check_sharing(recipe(algorithm, **placement))
    assert what in problem.what and fix in (problem.fix or "")


def test_sharing_that_can_be_is_not() -> None:
    shared = recipe(reward=RoleConfig(share_with="critic"), critic=RoleConfig(gpu_type="A100"))
    assert list(check_sharing(shared)) == []
    assert list(check_sharing(replace(shared, placement=PlacementConfig(strategy="colocated")))) == []
