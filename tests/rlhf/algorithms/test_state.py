from __future__ import annotations

import pytest

from rlhf.algorithms.moments import Moments
from rlhf.algorithms.state import AlgorithmState, next_kl_coef
from rlhf.config.schema import AdaptiveKLConfig, AlgorithmConfig

TARGET_4 = AdaptiveKLConfig(target=4.0, horizon=1000)


@pytest.mark.parametrize(
    ("sequence_kl", "expected"),
    [
        (4.0, 0.1),  # on target
        (4.4, 0.101),  # 10% over: 100 of 1000 responses make it 1% more
        (3.6, 0.099),
        (8.0, 0.102),  # 100% over counts as 20%
        (1e9, 0.102),
        (0.0, 0.098),
        (-3.0, 0.098),
    ],
)
def test_beta_follows_the_target_by_hand(sequence_kl: float, expected: float) -> None:
    """.1 · (1 + clip(KL/4 − 1, ±.2) · 100/1000)."""
    assert next_kl_coef(0.1, TARGET_4, sequence_kl, responses=100) == pytest.approx(expected, rel=1e-12)


def test_more_responses_move_beta_further() -> None:
    assert next_kl_coef(0.1, TARGET_4, 8.0, responses=1000) == pytest.approx(0.12)


def test_beta_is_constant_without_a_target() -> None:
    assert next_kl_coef(0.1, None, 1e9, responses=1000) == 0.1


def test_a_run_starts_with_the_recipes_beta_and_no_scores() -> None:
    assert AlgorithmState.start(AlgorithmConfig(kl_coef=0.3)) == AlgorithmState(kl_coef=0.3, scores=Moments())
