"""Chooses the strategy for ``placement.strategy=auto`` by number and memory of the GPUs, with a reason."""

from __future__ import annotations

from dataclasses import dataclass, replace

from launch.plan.cluster import Cluster
from launch.plan.members import Shapes
from launch.plan.memory import GIB
from launch.plan.plan import Placed, place
from rlhf.config.schema import Recipe, Stage
from rlhf.placement.machine import choose_strategy, gpus_needed, shares
from rlhf.placement.pools import Strategy

ORDER: tuple[Strategy, ...] = ("separate", "colocated")
"""Separate first: roles that share a GPU wait for each other and offload states."""


@dataclass(frozen=True, kw_only=True)
class StrategyChoice:
    """A strategy for PPO, and the reason for it."""

    strategy: Strategy
    why: str


def decided(recipe: Recipe, choice: StrategyChoice | None) -> Recipe:
    """The recipe with ``auto`` replaced by the choice."""
    return recipe if choice is None else with_strategy(recipe, choice.strategy)


def with_strategy(recipe: Recipe, strategy: Strategy) -> Recipe:
    """The recipe with this strategy."""
    return replace(recipe, placement=replace(recipe.placement, strategy=strategy))


def choose(recipe: Recipe, stage: Stage, cluster: Cluster, shapes: Shapes) -> StrategyChoice | None:
    """Choose the strategy for ``auto`` on a cluster; None if the recipe sets it, or the stage has only one role.

    If nothing fits according to the plan, which overestimates, the number of GPUs decides.

    Raises:
        UserError: a model's shape is unknown.
    """
    if recipe.placement.strategy != "auto" or stage not in ("ppo", "pipeline"):
        return None
    against: list[str] = []
    for strategy in ORDER[: 1 if shares(recipe) else 2]:
        placed = place(with_strategy(recipe, strategy), "ppo", cluster, shapes)
        reason = _against(recipe, strategy, placed, cluster)
        if reason is None:
            return StrategyChoice(strategy=strategy, why=_why(strategy, placed, cluster, against))
        against.append(reason)
    strategy = choose_strategy(recipe, "ppo", cluster.total)
    return StrategyChoice(strategy=strategy, why=f"{strategy}, by the number of GPUs alone: {'; '.join(against)}")


def _against(recipe: Recipe, strategy: Strategy, placed: Placed, cluster: Cluster) -> str | None:
    needed = gpus_needed(recipe, "ppo", strategy)
    if needed > cluster.total:
        return f"{strategy} needs {needed} GPUs of {cluster.total}"
    return f"{strategy} does not fit ({placed.problems[0].splitlines()[0]})" if placed.problems else None


def _why(strategy: Strategy, placed: Placed, cluster: Cluster, against: list[str]) -> str:
    use = min(placed.must_fit, key=lambda each: each.margin)
    taken = use.phases[use.worst].total / GIB
    used = len({(slot.node, gpu) for slot in placed.slots for gpu in slot.gpus})
    full = f"the fullest with {taken:.1f} of {use.capacity / GIB:.1f} GiB ({use.role} in {use.worst}, by the plan)"
    return "; ".join([f"{strategy}: {used} of {cluster.total} GPUs, {full}", *against])
