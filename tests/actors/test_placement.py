"""Where actors go. On GPUs the reservation itself needs a cluster with GPUs; what is asked of it does not."""

from __future__ import annotations

from dataclasses import replace

from actors.placement import SHARE, Placement
from rlhf.config.schema import PlacementConfig, Recipe, RolloutConfig

CPU_RECIPE = Recipe(name="x", placement=PlacementConfig(device="cpu"))


class Reserved(Placement):
    """A placement whose GPUs are taken to be reserved."""

    def _reserve(self, sizes: list[int]):  # type: ignore[no-untyped-def]
        self.reserved = list(sizes)
        return "group"

    def _bundle(self, index: int):  # type: ignore[no-untyped-def]
        return index


def test_on_cpus_nothing_is_reserved() -> None:
    placement = Placement(CPU_RECIPE, "cpu", "ppo", 0)
    assert placement.group is None
    assert placement.place(0) == placement.place(1) == {"num_cpus": 0, "scheduling_strategy": "SPREAD"}


def test_separate_roles_take_gpus_in_turn() -> None:
    placement = Reserved(replace(CPU_RECIPE, placement=PlacementConfig(strategy="separate")), "cuda", "ppo", 8)
    assert placement.reserved == [1] * 5  # policy, critic, reference, reward, one engine
    places = [placement.place(0) for _ in range(5)]
    assert [place["scheduling_strategy"] for place in places] == [0, 1, 2, 3, 4]
    assert {place["num_gpus"] for place in places} == {1}


def test_an_engine_over_several_gpus_has_a_bundle_of_its_own_width() -> None:
    recipe = replace(
        CPU_RECIPE, placement=PlacementConfig(strategy="separate"), rollout=RolloutConfig(engines=2, tensor_parallel=4)
    )
    placement = Reserved(recipe, "cuda", "ppo", 12)
    assert placement.reserved == [1, 1, 1, 1, 4, 4]
    assert [placement.place(i, 4)["scheduling_strategy"] for i in range(2)] == [4, 5]
    assert placement.place(0)["scheduling_strategy"] == 0


def test_colocated_roles_share_the_gpu_of_their_rank() -> None:
    placement = Reserved(replace(CPU_RECIPE, placement=PlacementConfig(strategy="colocated")), "cuda", "ppo", 1)
    assert placement.reserved == [1]
    assert placement.place(0) == {"num_cpus": 0, "num_gpus": SHARE, "scheduling_strategy": 0}
    assert 5 * SHARE <= 1


def test_auto_separates_where_there_are_gpus_enough() -> None:
    assert not Reserved(CPU_RECIPE, "cuda", "ppo", 5).colocated
    assert Reserved(CPU_RECIPE, "cuda", "ppo", 4).colocated
