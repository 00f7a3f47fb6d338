"""Writes that survive a kill and a power loss."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf.storage.write_errors import writing
from rlhf.unicode import encodable


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically: after a crash the file has either its old or its new content.

    What UTF-8 cannot encode is written as an escape, which in JSON is the same text.
    """
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        with partial.open("w", encoding="utf-8") as file:
            file.write(encodable(text))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    sync(path.parent)


@contextmanager
def written_folder(folder: Path) -> Iterator[Path]:
    """Context with an empty folder to write to, which is flushed and renamed to ``folder`` at its end.

    An earlier ``folder`` is replaced then; it stays if the context fails.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed attempt
    partial.mkdir(parents=True)
    try:
        yield partial
        sync_tree(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync(folder.parent)


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with writing(path):
            os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Flush all files and folders below ``folder``, and the folder itself."""
    for path in (*folder.rglob("*"), folder):
        sync(path)
