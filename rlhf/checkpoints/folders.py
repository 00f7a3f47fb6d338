"""Names in the folder ``checkpoints/``. A checkpoint's state is its folder's name alone, which changes atomically.

``step_<N>``            committed: complete and on disk
``step_<N>.partial``    being written; never read
``step_<N>.replaced``   committed, and being replaced by a repetition of the same step
``step_<N>.removed``    being removed
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
    """Folders of committed checkpoints by step, the oldest first; their content is not read."""
    if not folder.is_dir():
        return {}
    found = {int(match[1]): path for path in folder.iterdir() if (match := _COMMITTED.fullmatch(path.name))}
    return dict(sorted(found.items()))


def clean(folder: Path, in_work: Collection[Path] = ()) -> None:
    """Remove the remains of killed attempts, except the paths ``in_work``; only the folder's single writer may do this.

    A ``.replaced`` checkpoint whose replacement is missing gets its name back.
    """
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if path in in_work or not _LEFT.fullmatch(path.name):
            continue
        if path.suffix == REPLACED and not path.with_suffix("").exists():
            path.rename(path.with_suffix(""))
        else:
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or folder as far as possible, without raising; remains no longer have a committed name."""
    going = path if path.suffix in (PARTIAL, REMOVED) else path.with_name(path.stem + REMOVED)
    with suppress(OSError):
        if going != path:  # a half-removed checkpoint must not look like one
            shutil.rmtree(going, ignore_errors=True)
            path.rename(going)
        if going.is_dir() and not going.is_symlink():
            shutil.rmtree(going, ignore_errors=True)
        else:
            going.unlink(missing_ok=True)
