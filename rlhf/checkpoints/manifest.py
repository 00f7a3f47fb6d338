"""Files of a checkpoint, hashed while they are written, and ``manifest.json``, which lists them and is written last."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import reprlib
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from heapq import heappop, heappush
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf.records import DataFile
from rlhf.storage.hashing import Progress, file_sha256, no_progress
from rlhf.storage.write_errors import writing

FORMAT = 1
"""Format version; incremented if readers of the old format would misread the new one."""
STATE, CONFIG, VERSIONS, MANIFEST = "state.json", "config.yaml", "versions.json", "manifest.json"
OWN = (STATE, CONFIG, VERSIONS)
"""Files that every checkpoint has, besides those of its models."""
_LARGEST = 2**63
_SHA256 = re.compile(r"[0-9a-f]{64}")
READERS = max(4, min(32, len(os.sched_getaffinity(0)) // 2))
"""Number of files that are hashed in parallel: hashing takes a core, and reading waits for the disk."""
Content = NDArray[Any] | Sequence[NDArray[Any]]
"""Bytes of a file: those of an array, or of several end to end."""
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


def write_files(files: Mapping[str, Content], folder: Path) -> list[FileEntry]:
    """Write files below ``folder``, and flush each to the disk.

    Args:
        files: contents by name, relative to the checkpoint's folder (``policy/...``); subfolders are created.
        folder: result of ``CheckpointStore.begin``. It must exist: a late writer must not recreate the folder of an
            abandoned attempt.

    Raises:
        ValueError: a name leads out of the folder.
        OSError: the disk is full, the folder is gone, ...; with the file's name.
    """
    require_inside(list(files))
    return [_write(name, content, folder) for name, content in files.items()]


def require_inside(names: Sequence[str]) -> None:
    """Raise ValueError for a name that leads out of the checkpoint, or is a duplicate."""
    for name, times in Counter(names).items():
        if times > 1 or not is_inside(name):
            raise ValueError(f"not a name for one file of a checkpoint: {reprlib.repr(name)}")


def _write(name: str, content: Content, folder: Path) -> FileEntry:
    for parent in list(PurePosixPath(name).parents)[-2::-1]:  # outermost first, without the folder itself
        (folder / parent).mkdir(exist_ok=True)
    digest = hashlib.sha256()
    with writing(folder / name), (folder / name).open("wb") as file:
        for block in _blocks(content):
            file.write(block)
            digest.update(block)
        file.flush()
        os.fsync(file.fileno())
        return FileEntry(name=name, bytes=file.tell(), sha256=digest.hexdigest())


def _blocks(content: Content) -> Iterator[memoryview]:
    for array in content if isinstance(content, Sequence) else [content]:
        data = array.reshape(-1).view(np.uint8).data
        for start in range(0, len(data), BLOCK_BYTES):
            yield data[start : start + BLOCK_BYTES]


def fault_of(entry: FileEntry, folder: Path) -> str | None:
    """Verify a file; returns its fault as the end of a sentence, or None if it has the expected content."""
    if (fault := size_fault(entry, folder)) is not None:
        return fault
    try:
        same = file_sha256(folder / entry.name) == entry.sha256
    except OSError as error:
        return _unreadable(error)
    return None if same else "has other content than was written"


def size_fault(entry: FileEntry, folder: Path) -> str | None:
    """The fault of a file that is missing or has another size, as ``fault_of``; its content is not read."""
    try:
        found = (folder / entry.name).stat()
    except OSError as error:
        return _unreadable(error)
    if not stat.S_ISREG(found.st_mode):
        return "is not a file"
    return None if found.st_size == entry.bytes else f"has {found.st_size} of {entry.bytes} bytes"


def _unreadable(error: OSError) -> str:
    is_missing = isinstance(error, FileNotFoundError | NotADirectoryError)
    return "is missing" if is_missing else f"cannot be read: {error.strerror}"


def hash_files(folder: Path, progress: Progress = no_progress) -> tuple[FileEntry, ...]:
    """Size and hash of every file below ``folder``, by name; empty if there is no such folder.

    Args:
        progress: called at the beginning, and after each file.

    Raises:
        OSError: a file cannot be read.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    total, done, entries = sum((folder / name).stat().st_size for name in names), 0, list[FileEntry]()
    progress(done, total)
    with ThreadPoolExecutor(READERS) as pool:
        for entry in pool.map(lambda name: _hash_file(name, folder), names):
            entries.append(entry)
            done += entry.bytes
            progress(done, total)
    return tuple(entries)


def _hash_file(name: str, folder: Path) -> FileEntry:
    path = folder / name
    return FileEntry(name=name, sha256=file_sha256(path), bytes=path.stat().st_size)


def check_files(entries: Sequence[FileEntry], folder: Path) -> dict[str, str]:
    """Verify files; returns the fault of each that has not the expected content, by name, in their order."""
    with ThreadPoolExecutor(READERS) as pool:
        faults = list(pool.map(lambda entry: fault_of(entry, folder), entries))
    return {entry.name: fault for entry, fault in zip(entries, faults, strict=True) if fault is not None}


def find_faults(entries: Sequence[FileEntry], folder: Path) -> list[str]:
    """``check_files`` as a sentence for each fault."""
    return [f"{name} {fault}" for name, fault in check_files(entries, folder).items()]


def share_files(entries: Sequence[FileEntry], parts: int) -> list[list[FileEntry]]:
    """Divide files into parts of about equal size: each file, the largest first, goes to the smallest part so far."""
    shares = [list[FileEntry]() for _ in range(parts)]
    sizes = [(0, index) for index in range(parts)]
    for entry in sorted(entries, key=lambda entry: entry.bytes, reverse=True):
        size, index = heappop(sizes)
        shares[index].append(entry)
        heappush(sizes, (size + entry.bytes, index))
    return shares


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Content of a checkpoint."""

    step: int
    """Number of completed steps."""
    score: float | None
    """Score of the policy, higher is better; None if unknown."""
    written: str
    """Time of writing, UTC, ISO 8601."""
    files: tuple[FileEntry, ...]
    """Every file except the manifest."""
    data: tuple[DataFile, ...] | None = None
    """Data files of the run; None in manifests of earlier versions, which did not record them."""


def encode(manifest: Manifest) -> str:
    """Encode a manifest as JSON, with a hash of its content."""
    body = {"format": FORMAT, **asdict(manifest)}
    return json.dumps({**body, "sha256": _digest(body)}, indent=1) + "\n"


def decode(text: str) -> Manifest:
    """Decode and verify a manifest.

    Raises:
        ValueError: it is damaged or of another format; the message is the end of a sentence about the file.
    """
    body = json_mapping(text)
    try:
        whole = body.pop("sha256", None) == _digest(body)
    except RecursionError:  # nested far deeper than any manifest
        whole = False
    if not whole:
        raise ValueError("is damaged: its content does not fit its own hash")
    if body.get("format") != FORMAT:
        found = reprlib.repr(body.get("format"))
        raise ValueError(f"has format {found}, and this version of the program reads format {FORMAT}")
    try:
        return _typed(body)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"is no manifest: {type(error).__name__}: {error}") from error


def json_mapping(text: str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        ValueError: the text is not one; the message is the end of a sentence about the file.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError("does not hold a JSON object")
    return value


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _typed(body: Mapping[str, Any]) -> Manifest:
    files = file_entries(body["files"])
    if missing := set(OWN) - {entry.name for entry in files}:
        raise ValueError(f"it does not list {', '.join(sorted(missing))}")
    score, written = body["score"], body["written"]
    if not isinstance(written, str) or not (score is None or (type(score) is float and math.isfinite(score))):
        raise TypeError(f"score {reprlib.repr(score)}, written {reprlib.repr(written)}")
    data = body.get("data")
    return Manifest(
        step=_count(body["step"]),
        score=score,
        written=written,
        files=files,
        data=None if data is None else tuple(data_file(**row) for row in data),
    )


def data_file(*, file: Any, rows: Any, digest: Any) -> DataFile:
    """Convert a JSON record of a data file, from a manifest or a finished stage.

    Raises:
        TypeError: a value has the wrong type.
    """
    if not isinstance(file, str) or not isinstance(digest, str):
        raise TypeError(f"file {reprlib.repr(file)}, digest {reprlib.repr(digest)}")
    return DataFile(file=file, rows=_count(rows), digest=digest)


def file_entries(rows: Any) -> tuple[FileEntry, ...]:
    """Convert JSON records of files, from a manifest or a finished stage.

    Raises:
        TypeError: a value has the wrong type.
        ValueError: a name leads out of the folder.
    """
    files = tuple(_entry(**row) for row in rows)
    require_inside([entry.name for entry in files])
    return files


def _entry(*, name: Any, bytes: Any, sha256: Any) -> FileEntry:
    if not isinstance(name, str) or not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise TypeError(f"name {reprlib.repr(name)}, sha256 {reprlib.repr(sha256)}")
    return FileEntry(name=name, bytes=_count(bytes), sha256=sha256)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _LARGEST:
        raise TypeError(f"{reprlib.repr(value)} is not a count")
    return value
