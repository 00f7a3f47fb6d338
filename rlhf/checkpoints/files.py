"""Files of a checkpoint: hashed while they are written, and compared with that when they are read."""

from __future__ import annotations

import hashlib
import os
import reprlib
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES = 16 * 2**20
"""Written and hashed at a time: what was just written is still in the processor's cache in part."""


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file as it was meant to be."""

    name: str
    """Path within the checkpoint, with ``/`` between its parts."""
    bytes: int
    """Its size."""
    sha256: str
    """Hash of its content, 64 hexadecimal digits."""


def is_inside(name: str) -> bool:
    """Whether ``name`` is a plain relative path that cannot lead out of the folder it is used in."""
    return name.isprintable() and "\\" not in name and not {"", ".", ".."} & set(name.split("/"))


def write_files(files: Mapping[str, NDArray[Any]], folder: Path) -> list[FileEntry]:
    """Write the bytes of each array to a file below ``folder``, and flush each to the disk.

    Args:
        files: contents by name; a name may hold folders, which are made. Names count from the checkpoint's folder
            (``policy/...``).
        folder: what ``CheckpointStore.begin`` gave. It must be there: a writer that comes late, after the attempt was
            given up, must not bring the folder back.

    Raises:
        ValueError: a name leads out of the folder.
        OSError: the disk is full, the folder is gone, ...
    """
    require_inside(list(files))
    return [_write(name, array, folder) for name, array in files.items()]


def require_inside(names: Sequence[str]) -> None:
    """Raise ValueError for a name that leads out of the checkpoint, or is there twice."""
    for name, times in Counter(names).items():
        if times > 1 or not is_inside(name):
            raise ValueError(f"not a name for one file of a checkpoint: {reprlib.repr(name)}")


def _write(name: str, array: NDArray[Any], folder: Path) -> FileEntry:
    for parent in list(PurePosixPath(name).parents)[-2::-1]:  # outermost first, without the folder itself
        (folder / parent).mkdir(exist_ok=True)
    content, digest = array.reshape(-1).view(np.uint8).data, hashlib.sha256()
    with (folder / name).open("wb") as file:
        for start in range(0, len(content), BLOCK_BYTES):
            block = content[start : start + BLOCK_BYTES]
            file.write(block)
            digest.update(block)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(name=name, bytes=len(content), sha256=digest.hexdigest())


def fault_of(entry: FileEntry, folder: Path) -> str | None:
    """What is wrong with a file, as the end of a sentence about it; None where it is as it was written."""
    path = folder / entry.name
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return "is not a file"
        if found.st_size != entry.bytes:
            return f"has {found.st_size} of {entry.bytes} bytes"
        with path.open("rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if same else "has other content than was written"
