"""A folder with a manifest: what it is, facts about it, and the digest of every file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf.checkpoints.manifest import file_entries, find_faults, hash_files
from rlhf.errors import UserError
from rlhf.storage.durable import write_atomically, written_folder
from rlhf.storage.jsonl import parsed
from rlhf.storage.reading import damaged

MANIFEST = "manifest.json"
FORMAT = 1
"""Version of the folders; incremented if readers of the old one would misread the new one."""


@contextmanager
def written_with_manifest(folder: Path, kind: str, facts: Mapping[str, object]) -> Iterator[Path]:
    """As ``written_folder``, of a folder that gets a manifest, and replaces only one of the same kind.

    Raises:
        UserError: ``folder`` is something else, or cannot be written.
    """
    check_replaceable(folder, kind)
    with ExitStack() as stack:
        try:
            partial = stack.enter_context(written_folder(folder))
        except (OSError, ValueError) as error:  # ValueError: no name that a folder can have
            fix = f"set retrieval.{kind} to a folder that you may write to"
            raise UserError(f"{folder} cannot be written", str(error), fix) from error
        yield partial
        files = [asdict(entry) for entry in hash_files(partial)]
        body = {"kind": kind, "format": FORMAT, **facts, "files": files}
        write_atomically(partial / MANIFEST, json.dumps(body, indent=1) + "\n")


def check_replaceable(folder: Path, kind: str) -> None:
    """Check that a folder is absent, empty, or an earlier one of this kind with no other files.

    Raises:
        UserError: it is something else, or holds more, which would be deleted; or it cannot be a folder.
    """
    fix = f"set retrieval.{kind} to another folder"
    try:
        if folder.is_symlink():  # a folder cannot be renamed to it
            raise UserError(f"{folder} is a link", "a new folder takes the place of the old one, not of a link", fix)
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return
    except OSError as error:  # a name that is too long, or a folder that may not be read
        raise UserError(f"{folder} cannot be used", str(error), fix) from error
    manifest = read_manifest(folder)
    if manifest.get("kind") != kind:
        raise UserError(f"{folder} exists and is no {kind} of rlhf", "what it holds would be deleted", fix)
    files = manifest.get("files")
    entries = files if isinstance(files, list) else []
    listed = {str(entry.get("name")) for entry in entries if isinstance(entry, dict)}
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    if others := found - listed - {MANIFEST}:
        raise UserError(f"{folder} holds {min(others)}, which is not of the {kind}", "it would be deleted", fix)


def read_folder(folder: Path, kind: str, fix: str) -> Mapping[str, Any]:
    """The facts of a folder whose files are verified.

    Args:
        fix: how to make the folder (again).

    Raises:
        UserError: there is none, it is of another kind or version, or a file is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"there is no {kind} {str(folder)!r}", fix=f"{fix}, or set retrieval.{kind}")
    facts = read_manifest(folder)
    if facts.get("kind") != kind or facts.get("format") != FORMAT:
        raise UserError(f"{folder} is no {kind} that this version reads", fix=f"{fix}, or set retrieval.{kind}")
    try:
        files = file_entries(facts.get("files"))
    except (TypeError, ValueError) as error:
        raise damaged(folder / MANIFEST, f"does not list the files: {error}", fix) from error
    if faults := find_faults(files, folder):
        name, _, fault = faults[0].partition(" ")
        raise damaged(folder / name, fault, fix)
    return facts


def read_manifest(folder: Path) -> Mapping[str, Any]:
    """The manifest of a folder; empty if it has none, or one of other software that is no JSON object."""
    try:
        return parsed((folder.expanduser() / MANIFEST).read_bytes()) or {}
    except (OSError, ValueError, RuntimeError):  # absent, not permitted, or no name that a file can have
        return {}
