"""Who keeps whose copies."""

from __future__ import annotations

import pytest

from rlhf.recovery.neighbours import neighbours


def test_every_node_keeps_the_copies_of_one_other() -> None:
    found = neighbours(["c", "a", "b", "a"])
    assert found == {"a": "b", "b": "c", "c": "a"}


@pytest.mark.parametrize("nodes", [[], ["a"], ["a", "a"]])
def test_a_single_node_has_none(nodes: list[str]) -> None:
    assert neighbours(nodes) == {}
