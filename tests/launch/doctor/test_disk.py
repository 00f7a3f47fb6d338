"""Checks of disk space."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launch.doctor.disk import Disk, Room, check_ray, check_runs, check_seen, gather
from launch.doctor.findings import GIB

GOOD = Disk(folder="/data/runs", place="/data", total=1000 * GIB, free=500 * GIB, is_writable=True)
ROOM = Room(checkpoint=60 * GIB, checkpoints=240 * GIB, models=40 * GIB)


def test_a_folder_that_is_not_there_yet_is_judged_by_the_one_above_it(tmp_path: Path) -> None:
    found = gather(tmp_path / "runs" / "first")
    assert (found.folder, found.place) == (str(tmp_path / "runs" / "first"), str(tmp_path))
    assert found.is_writable and 0 < found.free <= found.total


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    assert check_runs(gather(tmp_path / "runs"), None).status == "failed"


@pytest.mark.parametrize(
    ("free", "room", "status"),
    [
        (500, ROOM, "ok"),
        (200, ROOM, "warning"),
        (90, ROOM, "failed"),
        (2, None, "ok"),
        (0.5, None, "failed"),
        (0.5, Room(), "failed"),
    ],
)
def test_the_runs_folder_holds_what_is_kept(free: float, room: Room | None, status: str) -> None:
    found = check_runs(replace(GOOD, free=int(free * GIB)), room)
    assert found.status == status and bool(found.fix) == (status != "ok")


def test_a_folder_that_cannot_be_written_to() -> None:
    found = check_runs(replace(GOOD, is_writable=False), ROOM)
    assert (found.status, found.found) == ("failed", "/data cannot be written to")


@pytest.mark.parametrize(("free", "status"), [(500, "ok"), (80, "warning"), (50, "failed"), (0, "failed")])
def test_ray_stops_on_a_full_disk(free: int, status: str) -> None:
    assert check_ray(replace(GOOD, free=free * GIB)).status == status


def test_every_node_sees_the_runs_folder() -> None:
    assert check_seen(True).status == "ok"
    assert check_seen(False).status == "failed"
