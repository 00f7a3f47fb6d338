"""Throughput of a PPO step, from its times and counts."""

from __future__ import annotations

from collections.abc import Mapping

from rlhf.config.schema import Recipe
from rlhf.run_state import RunState


def step_rates(recipe: Recipe, after: RunState, rounds: int, metrics: Mapping[str, float]) -> dict[str, float]:
    """Throughput, version of the weights, and responses so far.

    Args:
        after: state after the step.
        rounds: rounds of sampling of the step.
        metrics: of the batch and of the update, and the seconds of each phase as ``time/<phase>``.
    """
    tokens, samples = metrics["rollout/tokens"], recipe.ppo.rollouts_per_step
    trained = metrics.get("policy/tokens", recipe.algorithm.epochs * tokens)  # absent in critic warm-up
    rates = {
        "perf/train_tokens_per_second": trained / metrics["time/update"],
        "perf/samples_per_second": rounds * samples / metrics["time/step"],
        "weights/sync_seconds": metrics["time/publish"],
        "weights/version": float(after.step),
        "episode": float((after.step + after.extra_rounds) * samples),
    }
    if not recipe.ppo.staleness:  # otherwise generation overlaps with the other phases
        rates["perf/rollout_tokens_per_second"] = tokens / metrics["time/rollout"]
    return rates
