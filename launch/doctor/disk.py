"""Checks of disk space: for runs, and for Ray's session and spilled objects."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from launch.doctor.findings import GIB, Finding, failed, gib, ok, warning

LEAST = GIB
"""Free bytes for metrics, logs and a small model, if no recipe is given."""
FULL = 0.95
"""Disk usage at which Ray stops creating objects on a node (``local_fs_capacity_threshold``)."""
NEARLY_FULL = 0.90


@dataclass(frozen=True, kw_only=True)
class Disk:
    """The file system of a folder. ``place`` is the nearest existing part of its path."""

    folder: str
    place: str
    total: int
    free: int
    is_writable: bool

    @property
    def used(self) -> float:
        """Used fraction of the space that is not reserved for root."""
        return 1 - self.free / self.total if self.total else 1.0


@dataclass(frozen=True, kw_only=True)
class Room:
    """Bytes that a recipe writes to its run's folder."""

    checkpoint: int = 0
    """Bytes of the largest checkpoint."""
    checkpoints: int = 0
    """Bytes of each stage's kept checkpoints, and of the one being written."""
    models: int = 0
    """Bytes of the stages' finished models."""

    @property
    def total(self) -> int:
        """Sum of checkpoints and models."""
        return self.checkpoints + self.models


def gather(folder: Path) -> Disk:
    """The file system that holds a folder, or would hold it."""
    path = folder.expanduser().absolute()
    place = next(each for each in (path, *path.parents) if each.exists())
    usage = shutil.disk_usage(place)
    return Disk(
        folder=str(path),
        place=str(place),
        total=usage.used + usage.free,
        free=usage.free,
        is_writable=place.is_dir() and os.access(place, os.W_OK | os.X_OK),
    )


def check_runs(facts: Disk, room: Room | None) -> Finding:
    """Check that the runs' folder is writable and has space for the recipe's files."""
    found = f"{facts.folder}: {gib(facts.free)} free"
    if not facts.is_writable:
        return failed(f"{facts.place} cannot be written to", "set runs_dir to a folder that you may write to")
    if room is None:
        return ok(found) if facts.free >= LEAST else failed(found, f"free at least {gib(LEAST)}, or set runs_dir")
    found += f"; a checkpoint is {gib(room.checkpoint)}, all kept files {gib(room.total)}"
    if facts.free < max(LEAST, room.checkpoint + room.models):
        return failed(found, "free space, or set runs_dir to another disk")
    if facts.free < room.total:
        return warning(found, "free space, or lower checkpoint.keep_last and checkpoint.keep_best")
    return ok(found)


def check_ray(facts: Disk) -> Finding:
    """Check that Ray's folder is on a disk that is not nearly full, where Ray would stop."""
    found = f"{facts.place}: {gib(facts.free)} free, {facts.used:.0%} in use"
    fix = "free space there, or start Ray with --temp-dir on another disk"
    if facts.used >= FULL or not facts.is_writable:
        return failed(found if facts.is_writable else f"{facts.place} cannot be written to", fix)
    return warning(f"{found}; Ray stops at {FULL:.0%}", fix) if facts.used >= NEARLY_FULL else ok(found)


def check_seen(sees_marker: bool) -> Finding:
    """Check that this node sees the runs' folder, because ranks write their parts of a checkpoint themselves."""
    if sees_marker:
        return ok("sees the runs' folder of the machine that starts the run")
    fix = "set runs_dir to a folder of a file system that all nodes share"
    return failed("does not see the runs' folder of the machine that starts the run", fix)
