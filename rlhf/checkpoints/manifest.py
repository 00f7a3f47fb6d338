"""``manifest.json``: what a checkpoint consists of. It is written last, and says of itself whether it is damaged."""

from __future__ import annotations

import hashlib
import json
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rlhf.checkpoints.files import FileEntry, require_inside
from rlhf.records import DataFile

FORMAT = 1
"""Goes up when a reader of the old manifest would misread the new one."""
STATE, CONFIG, VERSIONS, MANIFEST = "state.json", "config.yaml", "versions.json", "manifest.json"
OWN = (STATE, CONFIG, VERSIONS)
"""Files that every checkpoint has, besides those of its models."""
_LARGEST = 2**63
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint consists of."""

    step: int
    """Number of steps that were done."""
    score: float | None
    """How good the policy was, higher is better; None where that is not known."""
    written: str
    """When, in UTC, as ISO 8601 has it."""
    files: tuple[FileEntry, ...]
    """Every file but the manifest."""
    data: tuple[DataFile, ...] | None = None
    """The data files that the run reads; None in manifests that were written before these were kept."""


def encode(manifest: Manifest) -> str:
    """As JSON, with a hash of its own content."""
    body = {"format": FORMAT, **asdict(manifest)}
    return json.dumps({**body, "sha256": _digest(body)}, indent=1) + "\n"


def decode(text: str) -> Manifest:
    """The manifest in ``text``.

    Raises:
        ValueError: there is none: what is wrong, as the end of a sentence about the file.
    """
    body = json_mapping(text)
    try:
        whole = body.pop("sha256", None) == _digest(body)
    except RecursionError:  # deeper than what was written by far
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
    """A JSON object.

    Raises:
        ValueError: it is something else: what is wrong, as the end of a sentence about the file.
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
    files = tuple(_entry(**entry) for entry in body["files"])
    require_inside([entry.name for entry in files])
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
    """What a manifest or a finished stage says of a data file.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(file, str) or not isinstance(digest, str):
        raise TypeError(f"file {reprlib.repr(file)}, digest {reprlib.repr(digest)}")
    return DataFile(file=file, rows=_count(rows), digest=digest)


def _entry(*, name: Any, bytes: Any, sha256: Any) -> FileEntry:
    if not isinstance(name, str) or not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise TypeError(f"name {reprlib.repr(name)}, sha256 {reprlib.repr(sha256)}")
    return FileEntry(name=name, bytes=_count(bytes), sha256=sha256)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _LARGEST:
        raise TypeError(f"{reprlib.repr(value)} is not a count")
    return value
