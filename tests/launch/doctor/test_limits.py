"""Check of the open files limit."""

from __future__ import annotations

import resource

import pytest

from launch.doctor.limits import OpenFiles, check_open_files, gather


@pytest.mark.parametrize(
    ("soft", "hard", "status"),
    [
        (1024, 1048576, "ok"),
        (1024, 4096, "warning"),
        (256, 512, "failed"),
        (2**31, 2**31, "ok"),
    ],
)
def test_what_counts_is_how_far_ray_can_raise_it(soft: int, hard: int, status: str) -> None:
    found = check_open_files(OpenFiles(soft=soft, hard=hard))
    assert found.status == status and bool(found.fix) == (status != "ok")


def test_the_limits_of_this_process() -> None:
    assert gather().soft == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
