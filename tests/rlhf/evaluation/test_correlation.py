from __future__ import annotations

import pytest

from rlhf.evaluation.correlation import length_correlation


def test_anscombes_first_set() -> None:
    """Anscombe 1973, The American Statistician 27, 17-21: r = 0.816."""
    x = [10, 8, 13, 9, 11, 14, 6, 4, 12, 7, 5]
    y = [8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68]
    assert length_correlation(y, x) == pytest.approx(0.816, abs=5e-4)


@pytest.mark.parametrize(("scores", "lengths"), [([], []), ([1.0], [3]), ([1.0, 1.0], [3, 4]), ([1.0, 2.0], [3, 3])])
def test_undefined_is_zero(scores: list[float], lengths: list[int]) -> None:
    assert length_correlation(scores, lengths) == 0.0
