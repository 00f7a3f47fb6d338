"""The node of a cluster that limits the cores of a rank."""

from __future__ import annotations

import pytest

from launch.preflight import cores

HEAD, SMALL, GPUS = {"memory": 1e9}, {"CPU": 4.0}, {"CPU": 192.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ([HEAD, GPUS], 192),
        ([HEAD, SMALL, GPUS], 192),
        ([HEAD, SMALL], 4),
        ([{"CPU": 0.0}, SMALL, {"CPU": 2.0}], 2),
        ([HEAD], 1),
    ],
)
def test_the_smallest_node_that_computes(there: list[dict[str, float]], expected: int) -> None:
    assert cores(there) == expected
