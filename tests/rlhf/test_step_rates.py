"""Throughput by hand."""

from __future__ import annotations

from dataclasses import replace

from rlhf.config.schema import PPOConfig, Recipe
from rlhf.run_state import RunState
from rlhf.step_rates import step_rates

RECIPE = Recipe(name="x", ppo=PPOConfig(batch_size=10, oversampling=2))
AFTER = replace(RunState.start(RECIPE), step=3, extra_rounds=4)
METRICS = {
    "rollout/tokens": 600.0,
    "policy/tokens": 900.0,
    "time/update": 2.0,
    "time/step": 5.0,
    "time/publish": 0.5,
    "time/rollout": 3.0,
}


def test_rates_are_counts_over_seconds() -> None:
    assert step_rates(RECIPE, AFTER, 2, METRICS) == {
        "perf/train_tokens_per_second": 900 / 2,
        "perf/samples_per_second": 2 * 10 * 2 / 5,  # two rounds of twice the batch
        "weights/sync_seconds": 0.5,
        "weights/version": 3.0,
        "episode": (3 + 4) * 20.0,
        "perf/rollout_tokens_per_second": 600 / 3,
    }


def test_generation_that_overlaps_has_no_rate_of_its_own() -> None:
    ahead = replace(RECIPE, ppo=replace(RECIPE.ppo, staleness=1))
    assert "perf/rollout_tokens_per_second" not in step_rates(ahead, AFTER, 1, METRICS)


def test_in_the_critics_warm_up_the_policys_tokens_are_those_of_its_passes() -> None:
    without = {name: value for name, value in METRICS.items() if name != "policy/tokens"}
    assert step_rates(RECIPE, AFTER, 1, without)["perf/train_tokens_per_second"] == 4 * 600 / 2
