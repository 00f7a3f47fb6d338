"""Bradley-Terry strengths."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf.feedback.bradley_terry import fit_bradley_terry


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_an_isolated_pair_is_a_smoothed_share() -> None:
    """3 of 4 votes, ridge 1/2: the difference d solves 3 − 4σ(d) = d/4, the root of which is d = 0.8365."""
    strengths, is_converged = fit_bradley_terry(np.array([0]), np.array([1]), np.array([3.0]), np.array([4.0]), 0.5)
    d = strengths[0] - strengths[1]
    assert is_converged
    assert 3 - 4 * sigmoid(d) == pytest.approx(d / 4, abs=1e-6)
    assert d == pytest.approx(0.8365, abs=1e-4)


def test_the_published_baseball_ratings() -> None:
    """American League East, 1987 (Agresti 1990, table 10.10): Milwaukee over Baltimore by 1.58, Boston by 1.11.

    Wins of the row over the column, 13 games a pair: Milwaukee, Detroit, Toronto, New York, Boston, Cleveland,
    Baltimore.
    """
    wins = np.array(
        [
            [0, 7, 9, 7, 7, 9, 11],
            [6, 0, 7, 5, 11, 9, 9],
            [4, 6, 0, 7, 7, 8, 12],
            [6, 8, 6, 0, 6, 7, 10],
            [6, 2, 6, 7, 0, 7, 12],
            [4, 4, 5, 6, 6, 0, 6],
            [2, 4, 1, 3, 1, 7, 0],
        ]
    )
    first, second = np.triu_indices(7, 1)
    totals = (wins + wins.T)[first, second].astype(float)
    strengths, is_converged = fit_bradley_terry(first, second, wins[first, second].astype(float), totals, 1e-6)
    assert is_converged
    assert strengths - strengths[6] == pytest.approx([1.581, 1.436, 1.294, 1.248, 1.108, 0.684, 0.0], abs=2e-3)


def test_apart_means_independent() -> None:
    both, _ = fit_bradley_terry(np.array([0, 2]), np.array([1, 3]), np.array([3.0, 0.0]), np.array([4.0, 9.0]), 0.5)
    one, _ = fit_bradley_terry(np.array([0]), np.array([1]), np.array([3.0]), np.array([4.0]), 0.5)
    assert both[:2] == pytest.approx(one, abs=1e-6)
