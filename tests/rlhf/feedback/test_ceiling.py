"""The ceiling by the raters' noise: by hand, and in simulation with a known error."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf.feedback.ceiling import UNIDENTIFIED, estimate_ceiling, majority_accuracy
from rlhf.feedback.records import Answer, Choice, Item, Vote
from rlhf.feedback.simulate import SimulatedRater, simulate_items, simulate_votes

F, T, S, BAD = Choice.FIRST_MUCH, Choice.TIE, Choice.SECOND_SLIGHTLY, Choice.BOTH_BAD


def project(*rows: list[Choice]) -> tuple[list[Item], list[Vote]]:
    items = [Item(id=str(i), prompt=str(i), answers=(Answer(text="x"), Answer(text="y"))) for i in range(len(rows))]
    votes = [
        Vote(id=f"{i}-{r}", item=str(i), rater=f"r{r}", choice=choice)
        for i, row in enumerate(rows)
        for r, choice in enumerate(row)
    ]
    return items, votes


def test_by_hand() -> None:
    """17 of 25 pairs agree: a = 0.68, √(2a − 1) = 0.6, e = 0.2. Draws have no majority, so labels are unanimous pairs.

    Of these (1 − e)²/((1 − e)² + e²) = 0.64/0.68 are right.
    """
    found = estimate_ceiling(*project(*[[F, F]] * 10, *[[S, S]] * 7, *[[F, S]] * 8, [F, T], [BAD, S]), resamples=200)
    assert found.agreement.value == pytest.approx(0.68) and found.agreement.items == 25
    assert found.error.value == pytest.approx(0.2)
    assert found.single.value == pytest.approx(0.8)
    assert found.majority.value == pytest.approx(0.64 / 0.68)
    assert found.as_json()["accuracy_ceiling"] == found.majority.value


@pytest.mark.parametrize(
    ("votes", "error", "right"),
    [(1, 0.2, 0.8), (3, 0.2, 0.896), (5, 0.2, 0.94208), (2, 0.2, 0.64 / 0.68), (3, 0.5, 0.5), (4, 0.0, 1.0)],
)
def test_majorities_by_hand(votes: int, error: float, right: float) -> None:
    """Three votes: 0.8³ + 3 · 0.8² · 0.2 = 0.896; five: 0.32768 + 0.4096 + 0.2048 = 0.94208."""
    assert majority_accuracy(np.array(votes), np.array(error)) == pytest.approx(right)


def test_raters_no_better_than_coins_have_no_ceiling() -> None:
    found = estimate_ceiling(*project([F, S], [S, F], [F, F]), resamples=50)
    assert (found.single.value, found.single.reason) == (None, UNIDENTIFIED)
    assert found.agreement.value == pytest.approx(1 / 3)
    assert estimate_ceiling([], []).majority.value is None


def test_the_error_of_simulated_raters_lies_in_its_interval() -> None:
    """e = 0.25: a single vote is right with 0.75, the majority of three with 0.84375; 40 projects, 95% intervals."""
    raters = [SimulatedRater(name=f"r{i}", accuracy=0.75) for i in range(4)]
    covered, ceilings = np.zeros(2), []
    for seed in range(40):
        simulated = simulate_items(200, seed=seed)
        found = estimate_ceiling(simulated.items, simulate_votes(simulated, raters, seed=seed), resamples=200)
        covered += [found.single.low < 0.75 < found.single.high, found.majority.low < 0.84375 < found.majority.high]
        ceilings.append(found.single.value)
    assert (covered >= 34).all()
    assert np.mean(ceilings) == pytest.approx(0.75, abs=0.01)


def test_items_of_unequal_difficulty_give_an_upper_bound() -> None:
    """Half of the items with e = 0.1, half with e = 0.4: single votes are right in 0.75, the ceiling says √ more."""
    easy, hard = (
        simulate_votes(simulate_items(2000), [SimulatedRater(name=name, accuracy=a) for name in "ab"], overlap=2)
        for a in (0.9, 0.6)
    )
    votes = [vote for i, pair in enumerate(zip(easy, hard)) for vote in [pair[(i // 2) % 2]]]
    found = estimate_ceiling(simulate_items(2000).items, votes, resamples=50)
    expected = (1 + np.sqrt((0.8**2 + 0.2**2) / 2)) / 2  # 0.7915
    assert found.single.value == pytest.approx(expected, abs=0.015)
    assert found.single.value > 0.75 + 0.02
