"""Dawid and Skene's model on the data of their paper."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf.feedback.dawid_skene import fit_dawid_skene

ANAESTHETISTS = """
111.1.1.1.1 333.4.3.3.4 112.2.1.2.2 222.3.1.2.1 222.3.2.2.2 222.3.3.2.2 122.2.1.1.1 333.3.4.3.3 222.2.2.2.3
232.2.2.2.3 444.4.4.4.4 222.3.3.4.3 111.1.1.1.1 222.3.2.1.2 121.1.1.1.1 111.2.1.1.1 111.1.1.1.1 111.1.1.1.1
222.2.2.2.1 222.1.3.2.2 222.2.2.2.2 222.2.2.2.1 222.3.2.2.2 221.2.2.2.2 111.1.1.1.1 111.1.1.1.1 232.2.2.2.2
111.1.1.1.1 111.1.1.1.1 112.1.1.2.1 111.1.1.1.1 333.3.2.3.3 111.1.1.1.1 222.2.2.2.2 222.3.2.3.2 433.4.3.4.3
221.2.2.3.2 232.3.2.3.3 333.3.4.3.2 111.1.1.1.1 111.1.1.1.1 121.2.1.1.1 232.2.2.2.2 121.1.1.1.1 222.2.2.2.2
"""
"""Dawid and Skene 1979, table 1: 45 patients; three assessments by the first observer, one by each of four others."""


def published_votes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = [row.split(".") for row in ANAESTHETISTS.split()]
    votes = [(i, r, int(digit) - 1) for i, row in enumerate(rows) for r, digits in enumerate(row) for digit in digits]
    item, rater, vote = np.array(votes).T
    return item, rater, vote


def test_the_published_classes() -> None:
    """Marginal class probabilities .40, .42, .11, .07."""
    model = fit_dawid_skene(*published_votes(), pseudo_votes=np.zeros((4, 4)))
    assert model.is_converged
    assert model.classes.shape == (45, 4) and model.confusion.shape == (5, 4, 4)
    assert model.prior == pytest.approx([0.40, 0.42, 0.11, 0.07], abs=0.006)
    assert model.confusion.sum(2) == pytest.approx(np.ones((5, 4)))


def test_unanimous_votes_by_hand() -> None:
    """Two raters agree on two items of each of two classes: nothing is uncertain."""
    item, rater = np.repeat(np.arange(4), 2), np.tile([0, 1], 4)
    model = fit_dawid_skene(item, rater, np.repeat([0, 0, 1, 1], 2), pseudo_votes=np.zeros((2, 2)))
    assert model.classes == pytest.approx(np.array([[1, 0], [1, 0], [0, 1], [0, 1]]))
    assert model.confusion == pytest.approx(np.array([np.eye(2)] * 2))


def test_a_rater_who_inverts_every_vote_is_understood() -> None:
    """Three honest raters and one who votes the opposite: the model reads the fourth upside down."""
    truth = np.random.default_rng(0).integers(2, size=60)
    item, rater = np.repeat(np.arange(60), 4), np.tile(np.arange(4), 60)
    votes = np.repeat(truth, 4) ^ (rater == 3)
    model = fit_dawid_skene(item, rater, votes, pseudo_votes=np.eye(2) + 0.25)
    assert (model.classes.argmax(1) == truth).all()
    assert model.confusion[3, 0, 1] > 0.9 and model.confusion[0, 0, 0] > 0.9


def test_no_votes() -> None:
    none = np.array([], dtype=np.int64)
    assert fit_dawid_skene(none, none, none, pseudo_votes=np.eye(3)).classes.shape == (0, 3)
