from __future__ import annotations

import numpy as np
import pytest

from rlhf.tracking.histogram import BINS, Histogram, experience_histograms
from rlhf.types import Experience, FinishReason, RolloutBlock, Sequences


def test_counts_edges_and_moments() -> None:
    histogram = Histogram.of(np.array([0.0, 1.0, 1.0, 64.0, np.nan, np.inf]))
    assert histogram is not None
    assert (histogram.low, histogram.high, sum(histogram.counts)) == (0.0, 64.0, 4)
    assert (histogram.counts[0], histogram.counts[1], histogram.counts[BINS - 1]) == (1, 2, 1)
    assert (histogram.total, histogram.squares) == (66.0, 4098.0)
    assert histogram.edges == [float(i) for i in range(BINS + 1)]


def test_one_value_has_a_range_and_none_has_no_histogram() -> None:
    one = Histogram.of(np.array([3.0], dtype=np.float32))
    assert one is not None
    assert (one.low, one.high, sum(one.counts)) == (2.5, 3.5, 1)
    assert Histogram.of(np.array([np.nan])) is None


def experience(mask: list[bool]) -> Experience:
    """Three responses of 2, 1 and 0 tokens; the last was set aside."""
    block = RolloutBlock(
        sequences=Sequences.pack([([1], [2, 3]), ([1], [2]), ([1], [])]),
        logprobs=np.array([-1.0, -2.0, -3.0], dtype=np.float32),
        response_mask=np.array([True, True, True]),
        prompt_ids=np.arange(3),
        weight_versions=np.zeros(3, dtype=np.int64),
        finish_reasons=np.array([FinishReason.STOP, FinishReason.STOP, FinishReason.SET_ASIDE], dtype=np.int32),
        seeds=np.arange(3),
        cached_tokens=np.zeros(3, dtype=np.int32),
    )
    return Experience(
        rollouts=block,
        scores=np.array([5.0, 7.0, 0.0], dtype=np.float32),
        response_mask=np.array(mask),
        old_logprobs=np.array([-1.5, -2.0, -3.0], dtype=np.float32),
        ref_logprobs=np.array([-1.0, -4.0, -9.0], dtype=np.float32),
        advantages=np.array([0.25, -0.25, 8.0], dtype=np.float32),
        importance_weights=np.ones(3, dtype=np.float32),
        kl_coef=0.1,
    )


def ends(mask: list[bool]) -> dict[str, tuple[float, float, int]]:
    found = experience_histograms(experience(mask))
    return {name.removeprefix("histogram/"): (h.low, h.high, sum(h.counts)) for name, h in found.items()}


def test_what_is_not_trained_on_is_left_out() -> None:
    assert ends([True, True, False]) == {
        "scores": (4.5, 5.5, 1),
        "response_length": (1.0, 2.0, 2),
        "advantages": (-0.25, 0.25, 2),
        "log_ratio_to_reference": (-0.5, 2.0, 2),
        "log_ratio_to_engine": (-0.5, 0.0, 2),
    }


@pytest.mark.parametrize("mask", [[False, False, False]])
def test_a_batch_of_which_nothing_is_left_still_has_lengths(mask: list[bool]) -> None:
    assert list(ends(mask)) == ["response_length"]
