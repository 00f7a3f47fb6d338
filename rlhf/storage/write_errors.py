"""Errors of writing: which file could not be written, how much is free there, and what to do about it.

The system names a file only where one is opened. A disk that is full fails later, at a write or a flush, so that the
code that writes has to name the file; and it says at once how much is free, on its own node and before it cleans up.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf.errors import MachineryError, RLHFError, UserError

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a full file system, or of a user who has used all of a quota."""
UNWRITABLE = (*FULL, errno.EROFS, errno.EIO, errno.EACCES)
"""Errors of a disk or a file system, and not of the program."""
_WAYS_ON = {
    errno.ENOSPC: "Free space there, or remove files if no inode is free",
    errno.EDQUOT: "Free some of this user's quota there, or have it raised",
    errno.EROFS: "The file system is mounted read-only, often after an error of its disk (`dmesg`): have it repaired",
    errno.EIO: "Its disk or its file server fails (`dmesg`): have it repaired",
    errno.EACCES: "Give this user the right to write there",
}
_OF_RUST = re.compile(r"\(os error (\d+)\)$")
"""The end of errors of safetensors and tokenizers, which are no ``OSError``."""
_OF_TORCH = re.compile(r"PytorchStreamWriter failed|inline_container\.cc:\d+\] \. unexpected pos")
"""Errors of ``torch.save``, which has no number of the error."""


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Context that writes ``path``: an error of the file system, also a library's, names it and says what is free.

    Raises:
        OSError: in place of any such error, with the name of the file that the system or else ``path`` gives.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or (error.filename is not None and error.errno not in FULL):
            raise
        raise _named(error.errno, error.filename or path, error.strerror) from error
    except Exception as error:
        number = _number(error, Path(path))
        if number is None:
            raise
        raise _named(number, path) from error


def tell(error: OSError, default: Path | str) -> str:
    """The error in words: which file could not be written and why; ``default`` is named if the error names none."""
    doing = "written" if error.errno in (*FULL, errno.EROFS) else "written or read"
    return f"{error.filename or default} cannot be {doing}: {error.strerror or error}"


def way_on(error: OSError) -> str:
    """What to do about the error, as the beginning of a sentence."""
    return _WAYS_ON.get(error.errno or 0, "Check whether the disk is full or gone")


def unwritable(folder: Path, error: OSError) -> RLHFError:
    """The error of a command that cannot write to its folder: the user's, unless its disk is full or fails."""
    if error.errno in (*FULL, errno.EIO):
        return MachineryError(f"{tell(error, folder)}. {way_on(error)}, and give the same command")
    return UserError(f"cannot write to {folder}", str(error), "set runs_dir to a folder that you may write to")


def _named(number: int, name: object, text: str | None = None) -> OSError:
    text = text or os.strerror(number)
    if number in FULL and "free" not in text:  # an outer context has nothing to add
        text = f"{text}{_free(Path(os.fsdecode(name) if isinstance(name, bytes) else str(name)))}"
    return OSError(number, text, str(name))


def _free(path: Path) -> str:
    """Space on the file system of a file that may not exist, in brackets; empty if it does not answer."""
    place = next((folder for folder in (path, *path.absolute().parents) if folder.exists()), None)
    if place is None:
        return ""
    try:
        found = os.statvfs(place)
    except OSError:
        return ""
    if found.f_files and not found.f_favail:
        return f" (0 of {found.f_files} inodes free)"
    return f" ({_size(found.f_bavail * found.f_frsize)} of {_size(found.f_blocks * found.f_frsize)} free)"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _number(error: Exception, path: Path) -> int | None:
    """The number of a library's error of writing; None if it is another error."""
    if found := _OF_RUST.search(str(error)):
        return int(found[1])
    if not isinstance(error, RuntimeError) or not _OF_TORCH.search(str(error)):
        return None
    free = os.statvfs(path if path.exists() else path.parent)
    return errno.ENOSPC if free.f_bavail * free.f_frsize < 2**20 else errno.EIO
