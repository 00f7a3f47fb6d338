"""Temporary files named after their process, so that they can be removed if the process is killed."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from rlhf.recovery.facts import SHARED_MEMORY, is_alive
from rlhf.recovery.reaper import pid_namespace, remove

END_SECONDS = 2.0
"""How long a process may still write after it was killed."""


def prefix(what: str) -> str:
    """Prefix of the names of this process's files of one kind; a random part without a hyphen follows."""
    return f"rlhf-{what}-{pid_namespace()}-{os.getpid()}-"


def folders() -> tuple[Path, ...]:
    """Folders of this node that hold such files."""
    return tuple(dict.fromkeys((SHARED_MEMORY, Path(tempfile.gettempdir()))))


def roomy_folder(size: int) -> Path | None:
    """Folder of the shared memory if ``size`` bytes are free in it, else None for the default temporary folder.

    Containers often have only 64 MiB of shared memory.
    """
    usable = os.access(SHARED_MEMORY, os.W_OK) and shutil.disk_usage(SHARED_MEMORY).free >= size
    return SHARED_MEMORY if usable else None


def remove_leftovers(process: int) -> None:
    """Remove the files of a dead or dying process of this node from shared memory and the temporary folder."""
    until = time.monotonic() + END_SECONDS
    while _left_by(process) and is_alive(process) and time.monotonic() < until:
        time.sleep(0.05)
    for path in _left_by(process):
        remove(path)


def _left_by(process: int) -> list[Path]:
    """Its files; another container may share the folder, and has processes of the same numbers."""
    return [path for folder in folders() for path in folder.glob(f"rlhf-*-{pid_namespace()}-{process}-*")]
