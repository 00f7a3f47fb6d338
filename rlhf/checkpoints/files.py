"""Files of a checkpoint: hashed while they are written, verified when they are read."""

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
"""Block size of writing and hashing, small enough for a block to be hashed from the CPU's cache."""


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """Expected name, size and hash of one file."""

    name: str
    """Path within the checkpoint, with ``/`` between its parts."""
    bytes: int
    """Size of the file."""
    sha256: str
    """Hash of its content, 64 hexadecimal digits."""


def is_inside(name: str) -> bool:
    """Whether ``name`` is a plain relative path that stays inside its folder."""
    return name.isprintable() and "\\" not in name and not {"", ".", ".."} & set(name.split("/"))


def write_files(files: Mapping[str, NDArray[Any]], folder: Path) -> list[FileEntry]:
    """Write the bytes of each array to a file below ``folder``, and flush each to the disk.

    Args:
        files: contents by name, relative to the checkpoint's folder (``policy/...``); subfolders are created.
        folder: result of ``CheckpointStore.begin``. It must exist: a late writer must not recreate the folder of an
            abandoned attempt.

    Raises:
        ValueError: a name leads out of the folder.
        OSError: the disk is full, the folder is gone, ...
    """
    require_inside(list(files))
    return [_write(name, array, folder) for name, array in files.items()]


def require_inside(names: Sequence[str]) -> None:
    """Raise ValueError for a name that leads out of the checkpoint, or is a duplicate."""
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
    """Verify a file; returns its fault as the end of a sentence, or None if it has the expected content."""
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
