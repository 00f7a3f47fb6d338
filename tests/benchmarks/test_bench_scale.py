"""Predictions for clusters: the divisions over roles, and the limits, by hand."""

from __future__ import annotations

import pytest

from benchmarks.scale import asked, predict_large, strong


def test_roles_keep_their_shares_of_the_gpus() -> None:
    placement = predict_large(1000, 8000).recipe.placement
    ranks = [getattr(placement, role).ranks for role in ("policy", "reference", "critic", "reward")]
    assert ranks == [500, 125, 62, 62]
    assert predict_large(1000, 8000).recipe.rollout.engines * 8 == 248


def test_rows_are_full_with_eight_samples_a_gpu_and_empty_with_fewer() -> None:
    """2,000 samples of 2,048 tokens an update fill a row of 8,192 on each of 500 ranks; 128 fill 0.064 of them."""
    assert predict_large(1000, 8000).filled == 1.0
    assert predict_large(1000, 512).filled == pytest.approx(0.064)


def test_a_rank_computes_whole_samples() -> None:
    """128 samples an update on 128 and on 500 ranks: one each, so the update is no shorter."""
    found = {prediction.gpus: prediction for prediction in strong()}
    assert found[1000].phase("update") >= 0.99 * found[256].phase("update")


def test_the_controllers_part_of_a_step() -> None:
    """50 µs for each of 8,000 samples is 0.4 s."""
    prediction = predict_large(1000, 8000)
    assert prediction.controller_share(50.0) * prediction.plan.step_seconds == pytest.approx(0.4)


def test_samples_per_gpu_and_hour() -> None:
    for prediction in asked():
        steps_per_hour = 3600 / prediction.plan.step_seconds
        expected = steps_per_hour * prediction.batch.samples / prediction.gpus
        assert prediction.samples_per_gpu_hour == pytest.approx(expected)
    assert [prediction.gpus for prediction in asked()] == [8, 64, 1000]


def test_more_gpus_do_not_shorten_the_longest_response_beyond_one_wave() -> None:
    """A token costs at least reading an eighth of 141 GB at 70% of 3.35 TB/s: 7.5 ms, 7.7 s for 1,024."""
    assert min(prediction.longest_response for prediction in strong()) > 7.7
