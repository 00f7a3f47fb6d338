"""Deadlines that follow what phases have taken."""

from __future__ import annotations

import pytest

from rlhf.recovery.deadlines import Deadlines, Work

UPDATE = Work(role="policy", kind="update")


@pytest.mark.parametrize(
    ("took", "expected"),
    [
        ([], 1800.0),  # nobody knows yet
        ([1.0], 120.0),  # 20 s would be, the floor is
        ([10.0], 200.0),
        ([10.0, 2.0], 200.0),  # the longest counts, not the last
        ([2.0, 10.0], 200.0),
        ([500.0], 1800.0),  # 10,000 s would be, the ceiling is
    ],
)
def test_a_deadline_is_a_multiple_of_the_longest_within_floor_and_ceiling(took: list[float], expected: float) -> None:
    deadlines = Deadlines(floor=120.0, factor=20.0, ceiling=1800.0)
    for seconds in took:
        deadlines.took(UPDATE, seconds)
    assert deadlines.of(UPDATE) == expected


def test_roles_and_their_work_learn_apart() -> None:
    deadlines = Deadlines(floor=1.0, factor=20.0, ceiling=1800.0)
    deadlines.took(UPDATE, 2.0)
    others = Work(role="critic", kind="update"), Work(role="policy", kind="publish")
    assert [deadlines.of(work) for work in (UPDATE, *others)] == [40.0, 1800.0, 1800.0]


def test_the_ceiling_is_above_the_floor() -> None:
    deadlines = Deadlines(floor=120.0, factor=20.0, ceiling=60.0)
    deadlines.took(UPDATE, 1.0)
    assert deadlines.of(UPDATE) == deadlines.shortest == 60.0
