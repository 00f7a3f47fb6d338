"""Coefficients of agreement on published examples."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf.feedback.coefficients import (
    Scale,
    cohen_kappa,
    coincidences,
    fleiss_kappa,
    fleiss_parts,
    krippendorff_alpha,
    raw_agreement,
    table_agreement,
)

NONE = 0
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NONE, NONE, NONE],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NONE, 3],
    [NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NONE],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NONE],
]
"""Krippendorff 2011, section C: 4 observers, 12 units, 5 values, missing ones among them."""
PSYCHIATRISTS = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]
"""The worked example of Fleiss' kappa in Wikipedia: 10 subjects, 14 raters, 5 categories."""


@pytest.mark.parametrize(("scale", "alpha"), [(Scale.NOMINAL, 0.743), (Scale.ORDINAL, 0.815), (Scale.INTERVAL, 0.849)])
def test_alpha_of_the_published_example(scale: Scale, alpha: float) -> None:
    counts = [[unit.count(value) for value in range(1, 6)] for unit in zip(*OBSERVERS)]
    assert krippendorff_alpha(coincidences(counts).sum(0), scale) == pytest.approx(alpha, abs=5e-4)


def test_fleiss_kappa_of_the_published_example() -> None:
    parts = fleiss_parts(PSYCHIATRISTS).sum(0)
    assert raw_agreement(parts) == pytest.approx(0.378, abs=5e-4)
    assert fleiss_kappa(parts) == pytest.approx(0.210, abs=5e-4)


@pytest.mark.parametrize(
    ("table", "observed", "kappa"),
    [([[20, 5], [10, 15]], 0.70, 0.40), ([[45, 15], [25, 15]], 0.60, 0.1304), ([[25, 35], [5, 35]], 0.60, 0.2593)],
)
def test_cohen_kappa_of_the_published_examples(table: list[list[int]], observed: float, kappa: float) -> None:
    """The worked examples of Cohen's kappa in Wikipedia, which cites Kilem Gwet (2002)."""
    assert table_agreement(np.array(table)) == pytest.approx(observed)
    assert cohen_kappa(np.array(table, dtype=float)) == pytest.approx(kappa, abs=5e-5)


def test_stacked_sums_give_the_coefficients_of_each() -> None:
    tables = np.array([[[20, 5], [10, 15]], [[45, 15], [25, 15]]], dtype=float)
    assert cohen_kappa(tables) == pytest.approx([0.40, 0.1304], abs=5e-5)


def test_one_category_leaves_them_undefined() -> None:
    counts = [[3, 0, 0], [2, 0, 0]]
    assert np.isnan(fleiss_kappa(fleiss_parts(counts).sum(0)))
    assert all(np.isnan(krippendorff_alpha(coincidences(counts).sum(0), scale)) for scale in Scale)
    assert np.isnan(cohen_kappa(np.array([[5.0, 0.0], [0.0, 0.0]])))
