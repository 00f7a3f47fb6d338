from __future__ import annotations

import numpy as np
import pytest

from rlhf.evaluation.win_rate import compare, win_rate_interval


def test_a_tie_counts_one_half() -> None:
    result = compare(before=[0.0, 1.0, 2.0, 3.0], after=[1.0, 1.0, 1.0, 4.0])
    assert (result.wins, result.losses, result.ties, result.n) == (2, 1, 1, 4)
    assert result.rate == 0.625
    assert result.low < 0.625 < result.high


@pytest.mark.parametrize(
    ("wins", "losses", "n", "low", "high"),
    [
        # Cavo et al. 2012, by the R package contingencytables of Fagerland, Lydersen and Laake: the difference is
        # between -0.1195 and -0.0032.
        (6, 16, 161, (1 - 0.1195) / 2, (1 - 0.0032) / 2),
        # By hand: 1/202 each way, so the difference is 0 ± 1.96 sqrt(2/202 / 202).
        (0, 0, 200, 0.5 - 0.00686, 0.5 + 0.00686),
    ],
)
def test_interval_gives_the_published_numbers(wins: int, losses: int, n: int, low: float, high: float) -> None:
    assert win_rate_interval(wins, losses, n) == pytest.approx((low, high), abs=3e-5)


def test_winning_everything_is_not_certainty() -> None:
    low, high = win_rate_interval(10, 0, 10)
    assert 0.7 < low < 0.95
    assert high == 1.0


def test_swapping_the_sides_mirrors_the_interval() -> None:
    low, high = win_rate_interval(30, 12, 60)
    assert win_rate_interval(12, 30, 60) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("probabilities", [(0.5, 0.3, 0.2), (0.2, 0.1, 0.7), (0.9, 0.05, 0.05)])
def test_the_interval_holds_the_truth_19_times_in_20(probabilities: tuple[float, float, float]) -> None:
    truth = probabilities[0] + probabilities[2] / 2
    draws = np.random.default_rng(0).multinomial(100, probabilities, size=4000)
    bounds = np.array([win_rate_interval(int(wins), int(losses), 100) for wins, losses, _ in draws])
    covered = np.mean((bounds[:, 0] <= truth) & (truth <= bounds[:, 1]))
    assert 0.935 < covered < 0.975


@pytest.mark.parametrize(("before", "after"), [([], []), ([1.0], [1.0, 2.0]), ([[1.0]], [[2.0]])])
def test_scores_that_do_not_pair_are_refused(before: list[float], after: list[float]) -> None:
    with pytest.raises(ValueError, match="paired comparison"):
        compare(before, after)


def test_a_prompt_that_is_there_twice_counts_as_less() -> None:
    """20 prompts twice each, both answers alike: 12 won, 8 lost, as 20 prompts would be, less what t on 19 loses.

    Design effect 2 · (20/19) · (39/40), n' = 40/2.052632 · (2.022691/2.093024)² = 18.199506, of which .6 are won and .4
    lost: (.6 n' + 1)/(n' + 2) and (.4 n' + 1)/(n' + 2), 1.96 standard errors of their difference.
    """
    after, prompts = np.repeat([1.0] * 12 + [-1.0] * 8, 2), np.repeat(np.arange(20), 2)
    result = compare(np.zeros(40), after, prompts)
    assert (result.wins, result.losses, result.rate) == (24, 16, 0.6)
    assert (result.low, result.high) == pytest.approx((0.375622, 0.804575), abs=1e-5)
    alone = compare(np.zeros(40), after, [f"prompt {i}" for i in range(40)])
    assert alone == compare(np.zeros(40), after)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_no_number_is_not_a_tie(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        compare([0.0, bad], [0.0, 1.0])
