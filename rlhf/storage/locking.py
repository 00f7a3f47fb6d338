"""Keeps two commands from changing the files of one folder at the same time."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rlhf.errors import UserError

LONGEST_WAIT = 10.0
"""Seconds; a command holds the lock for milliseconds."""
POLL_SECONDS = 0.02
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF)
"""Errors of file systems without locks, for example Lustre mounted without ``flock``; EBADF: of folders, on NFS."""


def try_lock(handle: int | IO[str] | IO[bytes]) -> bool | None:
    """Lock an open file or folder (``flock``) until it is closed, without waiting.

    Returns:
        Whether that succeeded; None if the file system has no locks.

    Raises:
        OSError: of the file system.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None
    return True


@contextmanager
def locked(handle: IO[bytes]) -> Iterator[None]:
    """Context in which an open file is locked, if its file system has locks; waits for other processes.

    For writes of milliseconds. The lock is given back explicitly: a process that was forked meanwhile shares it.

    Raises:
        UserError: another process holds the lock for too long.
        OSError: of the file system.
    """
    is_locked = _lock(handle, LONGEST_WAIT, handle.name)
    try:
        yield
    finally:
        if is_locked:
            fcntl.flock(handle, fcntl.LOCK_UN)


@contextmanager
def sole_writer(folder: Path, seconds: float = LONGEST_WAIT) -> Iterator[None]:
    """Context that one process at a time enters for a folder: read, change and write within it.

    The lock is on the folder itself, so that no file of a lock is left. Where the file system has no such locks (some
    versions of NFS), nothing is locked.

    Raises:
        UserError: another process holds the lock for too long.
        OSError: there is no such folder.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(handle, seconds, folder)
        yield
    finally:
        os.close(handle)


def _lock(handle: int | IO[bytes], seconds: float, place: str | Path) -> bool:
    """Lock an open file or folder, waiting for other processes; returns whether its file system has locks."""
    end = time.monotonic() + seconds
    while (is_locked := try_lock(handle)) is False:
        if time.monotonic() >= end:
            fix = "wait for its end, and give the command again"
            raise UserError(f"another command has been writing in {place} for {seconds:g} s", fix=fix)
        time.sleep(POLL_SECONDS)
    return is_locked is not None
