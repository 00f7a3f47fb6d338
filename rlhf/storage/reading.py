"""Reads the small files of a run back. A damaged one is an error that names the file and how to continue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhf.errors import UserError

WHY = "the run wrote this file and reads it back; it was changed or damaged since"


def read_text(path: Path, fix: str) -> str:
    """Read a text file of a run.

    Args:
        fix: how to continue without the file's content.

    Raises:
        UserError: it is no UTF-8 text, or cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise damaged(path, f"is not UTF-8: {error.reason} at byte {error.start}", fix) from error
    except OSError as error:
        raise damaged(path, f"cannot be read: {error.strerror or error}", fix) from error


def read_json(path: Path, kind: type[Any], fix: str) -> Any:
    """Read a JSON file of a run whose content is a ``kind``, such as ``dict`` or ``list``.

    Raises:
        UserError: it is damaged, holds something else, or cannot be read.
    """
    text = read_text(path, fix)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"is not JSON: {error}", fix) from error
    if not isinstance(value, kind):
        raise damaged(path, f"holds {type(value).__name__} and not {kind.__name__}", fix)
    return value


def require_folder(path: Path, fix: str) -> None:
    """Check that a folder of a run is none of another kind; it need not exist.

    Raises:
        UserError: it is a file.
    """
    if path.exists() and not path.is_dir():
        raise damaged(path, "is a file, and the run has a folder of this name", fix)


def require_file(path: Path, fix: str) -> None:
    """Check that a file of a run is no folder; it need not exist.

    Raises:
        UserError: it is a folder.
    """
    if path.is_dir():
        raise damaged(path, "is a folder, and the run has a file of this name", fix)


def damaged(path: Path, what: str, fix: str) -> UserError:
    """Error of a damaged file; ``what`` is the end of a sentence about it."""
    return UserError(f"{path} {what}", WHY, fix)
