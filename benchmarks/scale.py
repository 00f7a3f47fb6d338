"""Predicted steps on clusters of H100s: the plan's formulas with rates from data sheets. Nothing here is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.plan.cluster import Cluster, parse_cluster
from launch.plan.members import Shapes
from launch.plan.plan import StagePlan, phase_seconds, plan_stage
from launch.plan.timing import ComputeRates, gather_seconds
from launch.plan.work import StepWork
from rlhf.config.load import load_recipe
from rlhf.config.schema import Recipe

RECIPES = Path(__file__).parents[1] / "recipes"
SMALL, LARGE = RECIPES / "llama_8b_8gpu.yaml", RECIPES / "llama_70b_cluster.yaml"
GPUS_PER_NODE = 8
SAMPLES_PER_GPU = 8
"""Samples a step and GPU that the recipe for 64 GPUs has."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A predicted step of PPO."""

    title: str
    gpus: int
    recipe: Recipe
    plan: StagePlan
    cluster: Cluster

    @property
    def batch(self) -> StepWork:
        """Samples, rows and updates of the step."""
        return self.plan.batch

    def phase(self, name: str) -> float:
        """Seconds of a phase."""
        return phase_seconds(name, self.plan.seconds[name])

    @property
    def samples_per_gpu_hour(self) -> float:
        """Samples that a GPU contributes in an hour."""
        return 3600 * self.batch.samples / self.plan.step_seconds / self.gpus

    @property
    def longest_response(self) -> float:
        """Seconds of decoding the longest response, which more engines do not shorten."""
        return self.plan.seconds["rollout"]["decode"]

    @property
    def filled(self) -> float:
        """Fraction of the policy's rows in an update that holds tokens."""
        role, batch = self.recipe.placement.policy, self.batch
        room = role.ranks * batch.update_passes["policy"] * role.micro_batch_tokens
        return batch.samples_per_update * batch.length / room

    @property
    def gathers(self) -> float:
        """Seconds of ZeRO-3's gathers in the policy's updates. They overlap with computation, as far as that lasts."""
        policy, batch = self.plan.placed.members[0], self.batch
        rates = ComputeRates(cluster=self.cluster, slots=self.plan.placed.slots, dtype=self.recipe.model.dtype)
        return batch.updates * batch.update_passes["policy"] * 2 * gather_seconds(policy, rates)

    def controller_share(self, us_per_sample: float) -> float:
        """Fraction of the step that the controller computes, at this many microseconds a sample."""
        return 1e-6 * us_per_sample * self.batch.samples / self.plan.step_seconds


def predict(title: str, path: Path, overrides: Sequence[str], gpus: int) -> Prediction:
    """Predict a step of a recipe, on nodes of 8 H100s.

    Raises:
        UserError: the recipe is wrong.
    """
    nodes = -(-gpus // GPUS_PER_NODE)
    recipe, cluster = load_recipe(path, overrides), parse_cluster(f"nodes={nodes},gpus={GPUS_PER_NODE},gpu=h100-80")
    plan = plan_stage(recipe, "ppo", cluster, Shapes(recipe))
    assert plan.seconds, plan.placed.problems
    return Prediction(title=title, gpus=gpus, recipe=recipe, plan=plan, cluster=cluster)


def large_overrides(gpus: int, samples: int) -> list[str]:
    """Changes to the recipe of the 70B model, which divides 64 GPUs over its roles, for another number of GPUs."""
    return [
        f"ppo.batch_size={samples}",
        f"placement.policy.ranks={gpus // 2}",
        f"placement.reference.ranks={gpus // 8}",
        f"placement.critic.ranks={gpus // 16}",
        f"placement.reward.ranks={gpus // 16}",
        f"rollout.engines={gpus // 32}",
    ]


def predict_large(gpus: int, samples: int) -> Prediction:
    """The 70B model on this many GPUs."""
    return predict(f"70B on {gpus:,}, {samples:,} samples", LARGE, large_overrides(gpus, samples), gpus)


def asked() -> list[Prediction]:
    """The three predictions of the page; samples grow with the GPUs."""
    return [
        predict("8B on 8, 512 samples", SMALL, (), 8),
        *(predict_large(gpus, SAMPLES_PER_GPU * gpus) for gpus in (64, 1000)),
    ]


def weak() -> list[Prediction]:
    """The 70B model with samples that grow with the GPUs."""
    return [predict_large(gpus, SAMPLES_PER_GPU * gpus) for gpus in (64, 128, 256, 512, 1000)]


def strong() -> list[Prediction]:
    """The 70B model with the samples of the recipe."""
    return [predict_large(gpus, SAMPLES_PER_GPU * 64) for gpus in (64, 128, 256, 512, 1000)]
