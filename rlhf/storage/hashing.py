"""SHA-256 of files and folders, read in blocks: models are larger than the memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

Progress = Callable[[int, int], object]
"""Called with the bytes that are hashed so far, and with all that will be."""


def file_sha256(path: Path) -> str:
    """Hash of a file's content, 64 hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def no_progress(done: int, total: int) -> None:
    """Show nothing."""
