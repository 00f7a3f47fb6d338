from __future__ import annotations

import pytest

from rlhf.errors import MOST_PROBLEMS, UserError, raise_all


def test_nothing_wrong_raises_nothing():
    raise_all([], "heading")


def test_one_problem_is_raised_as_it_is():
    problem = UserError("a is 1", "it is odd", "a=2")
    with pytest.raises(UserError) as error:
        raise_all([problem], "heading")
    assert error.value is problem


def test_several_problems_are_numbered_with_reason_and_way_out():
    with pytest.raises(UserError) as error:
        raise_all([UserError("a is 1", "it is odd", "a=2"), UserError("b is 3")], "run.yaml")
    assert str(error.value) == "run.yaml: 2 problems\n1. a is 1\n  why: it is odd\n  fix: a=2\n2. b is 3"


def test_more_than_a_screen_is_counted():
    with pytest.raises(UserError) as error:
        raise_all([UserError(f"problem {number}") for number in range(MOST_PROBLEMS + 3)], "run.yaml")
    lines = str(error.value).splitlines()
    assert len(lines) == MOST_PROBLEMS + 2 and lines[-1] == "... and 3 more"
