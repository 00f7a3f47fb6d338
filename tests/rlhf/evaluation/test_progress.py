"""The summary of a run's metrics, calculated by hand."""

from __future__ import annotations

import pytest

from rlhf.evaluation.progress import summarise_progress


def step(score: float, ratio: float | None, gap: float) -> dict[str, float]:
    metrics = {
        "objective/scores": score,
        "objective/scores_std": 2.0,
        "objective/kl": 3.0 + score,
        "rollout/logprob_gap_mean": gap,
        "perf/rollout_tokens_per_second": 100 * gap,
        "objective/score_length_correlation": 0.1,
    }
    return metrics if ratio is None else metrics | {"first_pass/ratio": ratio}


def test_first_against_last_tenth_and_the_worst_canaries() -> None:
    history = [
        step(1.0, None, 1.0),
        *(step(2.0, 1.01, 2.0) for _ in range(17)),
        step(5.0, 0.97, 9.0),
        step(7.0, 1.0, 3.0),
    ]
    summary = summarise_progress(history)
    assert summary["score of the first step"] == 1.0
    assert summary["score of the last tenth of the steps"] == 6.0  # two of twenty steps
    assert summary["gain in standard deviations"] == pytest.approx(2.5)
    assert summary["sequence KL at the end, nats"] == 10.0
    assert summary["log-probability gap, worst step"] == 9.0
    assert summary["first-pass ratio, farthest from 1"] == 0.97


@pytest.mark.parametrize("spread", [0.0, 1e-16])
def test_a_first_step_of_equal_scores_has_no_scale_for_a_gain(spread: float) -> None:
    """The reward is 0 for all samples of the first step: a gain of 0 would mean that nothing was learned."""
    history = [step(0.0, 1.0, 1.0) | {"objective/scores_std": spread}, step(7.0, 1.0, 1.0)]
    gain = summarise_progress(history)["gain in standard deviations"]
    assert gain == "not known: the first step's scores are all equal"


@pytest.mark.parametrize("ratios", [[1.0], [None, None, 1.0]])
def test_a_policy_that_was_not_trained_before_the_last_rollout_has_no_gain(ratios: list[float | None]) -> None:
    """As in a short run, of which the first steps train the critic alone."""
    history = [step(score, ratio, 1.0) for score, ratio in enumerate(ratios, start=1)]
    gain = summarise_progress(history)["gain in standard deviations"]
    assert gain == "not known: the policy was not trained before the last step's rollout"


def test_steps_of_which_nothing_was_left_are_left_out() -> None:
    """Steps without a score, because all samples were dropped, can be the first, the last, or between."""
    nothing = {"rollout/dropped": 6.0}
    found = summarise_progress([nothing, step(1.0, 1.0, 1.0), nothing, step(4.0, 1.0, 1.0), nothing])
    assert found == summarise_progress([step(1.0, 1.0, 1.0), step(4.0, 1.0, 1.0)])
    assert summarise_progress([nothing]) == {} == summarise_progress([])
