"""Artefacts: model folders, identified by the hash of their files, and the stages on their way to production."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from rlhf.checkpoints.manifest import FileEntry, hash_files, require_inside
from rlhf.errors import UserError
from rlhf.storage.canonical import canonical_digest
from rlhf.storage.hashing import Progress, no_progress

SHOWN = 5
"""Changed files that a message names."""


class ServingStage(StrEnum):
    """Where an artefact stands on its way to production."""

    CANDIDATE = "candidate"
    """Registered, not served."""
    SHADOW = "shadow"
    """Answers copies of requests; nobody sees its answers."""
    CANARY = "canary"
    """Answers a small fraction of the users."""
    PRODUCTION = "production"
    RETIRED = "retired"
    """It was in production until another artefact took its place; kept for a rollback."""
    WITHDRAWN = "withdrawn"
    """Taken out before production, or out of production by a rollback."""


STEPS = (ServingStage.CANDIDATE, ServingStage.SHADOW, ServingStage.CANARY, ServingStage.PRODUCTION)
"""The way to production: each promotion goes one step on."""


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """A registered model folder."""

    version: str
    """Short name, such as ``travel-3``."""
    digest: str
    """SHA-256 of names, sizes and hashes of the folder's files."""
    folder: Path
    """Absolute path."""
    stage: ServingStage
    registered: float
    """Time of the registration, Unix time in seconds."""


@dataclass(frozen=True, kw_only=True)
class ServingState:
    """What is served."""

    production: Artefact | None
    canary: Artefact | None
    shadow: Artefact | None
    revision: int
    """Number of the newest audit entry: it grows with every change."""


def artefact_digest(files: Sequence[FileEntry]) -> str:
    """Digest of a folder's files, independent of their order and of the folder's name."""
    return canonical_digest(sorted((asdict(entry) for entry in files), key=lambda entry: entry["name"]))


def require_model(folder: Path) -> None:
    """Check, without reading files, that a folder is a model's.

    Raises:
        UserError: it is no folder, or holds no weights in safetensors format.
    """
    fix = "give a folder with *.safetensors, such as the model/ of a finished stage"
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder", "an artefact is a model folder", fix)
    if not any(path.is_file() for path in folder.rglob("*.safetensors")):
        raise UserError(f"{folder} has no weights in safetensors format", "other formats can run code", fix)
    if links := _linked_folders(folder):
        why = "its content would be served without being part of the digest"
        raise UserError(f"{folder / links[0]} is a link to a folder", why, "put a copy of that folder there")


def hash_model(folder: Path, progress: Progress = no_progress) -> tuple[FileEntry, ...]:
    """Hash all files of a model folder.

    Raises:
        UserError: it is no model folder, or cannot be read.
    """
    require_model(folder)
    try:
        files = hash_files(folder, progress)
        require_inside([entry.name for entry in files])
    except OSError as error:
        fix = "make all its files readable"
        raise UserError(f"{error.filename or folder} cannot be read: {error.strerror}", fix=fix) from error
    except ValueError as error:
        raise UserError(f"{folder}: {error}", "an audit has to show the name", "rename the file") from error
    return files


def _linked_folders(folder: Path) -> list[str]:
    """Names of links to folders, which are not followed when files are hashed."""
    links = (path for path in folder.rglob("*") if path.is_symlink() and path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in links)


def require_unchanged(artefact: Artefact, files: Sequence[FileEntry], progress: Progress = no_progress) -> None:
    """Hash an artefact's folder again and compare it with what was registered.

    Args:
        files: the registered files.

    Raises:
        UserError: a file is missing, differs, or is new.
    """
    what = f"the folder of {artefact.version} is not what was registered: {artefact.folder}"
    fix = "restore the folder from a copy, or register what it now holds as another version"
    if not artefact.folder.is_dir():
        raise UserError(what, "there is no such folder", fix)
    try:
        now = {entry.name: entry for entry in hash_files(artefact.folder, progress)}
    except OSError as error:
        raise UserError(what, f"{error.filename} cannot be read: {error.strerror}", fix) from error
    before = {entry.name: entry for entry in files}
    changed = [f"{name} is missing" for name in before.keys() - now.keys()]
    changed += [f"{name} is new" for name in now.keys() - before.keys()]
    changed += [f"{name} has other content" for name in before.keys() & now.keys() if before[name] != now[name]]
    changed += [f"{name} is a link to a folder" for name in _linked_folders(artefact.folder)]
    if changed:
        more = f", and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        raise UserError(what, ", ".join(sorted(changed)[:SHOWN]) + more, fix)
