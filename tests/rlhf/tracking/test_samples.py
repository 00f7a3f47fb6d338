from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.tracking.samples import COLUMNS, Window, pick, table


def row(step: int, score: float, why: str = "random") -> dict[str, object]:
    return {"step": step, "score": score, "pick": why, "prompt": "p"}


def test_three_or_more_begin_with_the_best_and_the_worst_besides_the_random_ones() -> None:
    scores = [9.0, 1.0, 5.0, 3.0, -7.0, 5.0]
    drawn = [3, 5, 2, 1]  # 0 and 4 were set aside
    assert pick(scores, drawn, 3) == [(5, "best"), (1, "worst"), (3, "random")]
    assert pick(scores, drawn, 4) == [(2, "best"), (1, "worst"), (3, "random"), (5, "random")]


@given(st.lists(st.integers(-2, 2), min_size=3, max_size=20), st.integers(3, 8), st.randoms())
def test_the_best_and_the_worst_of_all_are_shown_and_the_random_ones_do_not_depend_on_scores(
    scores: list[int], count: int, draw: random.Random
) -> None:
    drawn = draw.sample(range(len(scores)), len(scores))
    shown = pick([float(score) for score in scores], drawn, count)
    values = [scores[i] for i, _ in shown]
    assert (max(values), min(values), len(shown)) == (max(scores), min(scores), min(count, len(scores)))
    assert [i for i, why in shown if why == "random"][: count - 2] == drawn[: count - 2]


@pytest.mark.parametrize(
    ("drawn", "count", "expected"),
    [
        ([2, 0, 1], 0, []),
        ([2, 0, 1], 2, [(2, "random"), (0, "random")]),
        ([1], 4, [(1, "random")]),
        ([2, 1], 4, [(2, "random"), (1, "random")]),
        ([], 4, []),
    ],
)
def test_few(drawn: list[int], count: int, expected: list[tuple[int, str]]) -> None:
    assert pick([1.0, 2.0, 3.0], drawn, count) == expected


def test_a_table_has_the_best_and_the_worst_of_all_and_random_ones_from_random_ones_only() -> None:
    rows = [row(0, 5.0, "best"), row(0, -5.0, "worst"), row(0, 1.0), row(1, 6.0, "best"), row(1, 4.0, "worst")]
    rows += [row(1, 2.0), row(1, 3.0)]
    shown = [(line[0], line[1], line[4]) for line in table(rows, 6, (0, 1))]
    assert shown[:2] == [("best", 1, 6.0), ("best", 0, 5.0)]
    assert shown[2:4] == [("worst", 0, -5.0), ("worst", 0, 1.0)]
    assert sorted(shown[4:]) == [("random", 1, 2.0), ("random", 1, 3.0)]


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.sampled_from(["best", "worst", "random"])), max_size=40),
    st.integers(1, 12),
)
def test_a_table_is_bounded_and_shows_nothing_twice(samples: list[tuple[int, str]], count: int) -> None:
    rows = [row(step, float(score), why) for step, (score, why) in enumerate(samples)]
    shown = table(rows, count, (7, 3))
    assert shown == table(rows, count, (7, 3))
    assert len(shown) <= count
    assert len({line[1] for line in shown}) == len(shown)
    assert all(len(line) == len(COLUMNS) for line in shown)


def test_a_window_gives_the_steps_since_the_last_table() -> None:
    window = Window(3)
    given_back = [window.add(step, [row(step, 0.0)]) for step in range(6)]
    steps = [None if rows is None else [r["step"] for r in rows] for rows in given_back]
    assert steps == [None, None, [0, 1, 2], None, None, [3, 4, 5]]


def test_a_resumed_run_shows_the_same_tables() -> None:
    before = [row(step, float(step)) for step in range(5)]
    window = Window(3, before)
    assert window.add(5, [row(5, 5.0)]) == [*before[3:], row(5, 5.0)]


def test_steps_that_are_done_again_are_shown_once() -> None:
    window = Window(4)
    for step in (0, 1, 2):
        window.add(step, [row(step, 0.0)])
    window.add(1, [row(1, 9.0)])
    window.add(2, [row(2, 9.0)])
    assert [r["score"] for r in window.add(3, [row(3, 9.0)]) or []] == [0.0, 9.0, 9.0, 9.0]
