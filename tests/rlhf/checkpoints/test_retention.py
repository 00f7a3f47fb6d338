from __future__ import annotations

from rlhf.checkpoints.retention import by_score, kept


def test_the_newest_and_the_best_stay() -> None:
    scores = {10: 0.9, 20: 0.7, 30: 0.8, 40: 0.1, 50: 0.2}
    assert kept(scores, keep_last=2, keep_best=0) == {40, 50}
    assert kept(scores, keep_last=2, keep_best=2) == {10, 30, 40, 50}
    assert kept(scores, keep_last=9, keep_best=9) == set(scores)
    assert kept({10: 0.1, 20: 0.9}, keep_last=1, keep_best=1) == {20}


def test_no_score_is_never_best_and_the_newer_wins_a_tie() -> None:
    assert by_score({1: None, 2: -5.0, 3: None, 4: -5.0, 5: 0.0}) == [5, 4, 2]
    assert kept({1: None, 2: None}, keep_last=1, keep_best=1) == {2}
