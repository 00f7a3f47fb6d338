"""A folder with a manifest: what it is, facts about it, and the digest of every file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf.checkpoints.manifest import file_entries, find_faults, hash_files
from rlhf.errors import UserError
from rlhf.storage.durable import sync_tree, write_atomically
from rlhf.storage.jsonl import parsed
from rlhf.storage.reading import damaged

MANIFEST = "manifest.json"
FORMAT = 1
"""Version of the folders; incremented if readers of the old one would misread the new one."""


@contextmanager
def written_folder(folder: Path, kind: str, facts: Mapping[str, object]) -> Iterator[Path]:
    """Context in which files are written to a temporary folder, which then becomes ``folder`` with a manifest.

    An earlier folder of the same kind is replaced, and stays if the context fails.

    Raises:
        UserError: ``folder`` is something else, or cannot be written.
    """
    check_replaceable(folder, kind)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed attempt
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        fix = f"set retrieval.{kind} to a folder that you may write to"
        raise UserError(f"{folder} cannot be written", str(error), fix) from error
    try:
        yield partial
        files = [asdict(entry) for entry in hash_files(partial)]
        body = {"kind": kind, "format": FORMAT, **facts, "files": files}
        write_atomically(partial / MANIFEST, json.dumps(body, indent=1) + "\n")
        sync_tree(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def check_replaceable(folder: Path, kind: str) -> None:
    """Check that a folder is absent, empty, or an earlier one of this kind.

    Raises:
        UserError: it is something else, which would be deleted.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if read_manifest(folder).get("kind") != kind:
        raise UserError(
            f"{folder} exists and is no {kind} of rlhf",
            "what it holds would be deleted",
            f"set retrieval.{kind} to another folder",
        )


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
