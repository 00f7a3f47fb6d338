"""Names in the folder ``checkpoints/``. They alone say how far a checkpoint has come, so a kill cannot make them lie.

``step_<N>``            committed: whole, and on the disk
``step_<N>.partial``    being written; nobody reads it
``step_<N>.replaced``   was committed, and is about to be replaced by the same step done again
``step_<N>.removed``    on its way out
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

PARTIAL, REPLACED, REMOVED = ".partial", ".replaced", ".removed"
LATEST, BEST = "latest", "best"
_COMMITTED = re.compile(r"step_(0|[1-9]\d*)", re.ASCII)
_LEFT = re.compile(r"(step_\d+\.(partial|replaced|removed)|(latest|best)\.partial)", re.ASCII)


def committed(folder: Path) -> dict[int, Path]:
    """Folders of committed checkpoints by step, the oldest first. What is in them is not looked at."""
    if not folder.is_dir():
        return {}
    found = {int(match[1]): path for path in folder.iterdir() if (match := _COMMITTED.fullmatch(path.name))}
    return dict(sorted(found.items()))


def clean(folder: Path, in_work: Collection[Path] = ()) -> None:
    """Remove what killed attempts left, but for the paths ``in_work``. Only the one writer of a folder may do this.

    A checkpoint that was moved aside for another, which then did not come, gets its name back.
    """
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if path in in_work or not _LEFT.fullmatch(path.name):
            continue
        if path.suffix == REPLACED and not path.with_suffix("").exists():
            path.rename(path.with_suffix(""))
        else:
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or folder as far as that can be done; what stays is no longer called committed. Raises nothing."""
    going = path if path.suffix in (PARTIAL, REMOVED) else path.with_name(path.stem + REMOVED)
    with suppress(OSError):
        if going != path:  # a half-removed checkpoint must not look like one
            shutil.rmtree(going, ignore_errors=True)
            path.rename(going)
        if going.is_dir() and not going.is_symlink():
            shutil.rmtree(going, ignore_errors=True)
        else:
            going.unlink(missing_ok=True)
