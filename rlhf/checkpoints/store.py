"""The folder ``checkpoints/`` of a run: writing, committing, reading and removing checkpoints.

``begin`` creates a partial folder, ``write_files`` writes into it from the nodes that hold the data, and ``commit``
completes it by one rename, after which old checkpoints are removed. All nodes share the file system.

A checkpoint's state is its folder's name alone, which changes atomically:

``step_<N>``            committed: complete and on disk
``step_<N>.partial``    being written; never read
``step_<N>.replaced``   committed, and being replaced by a repetition of the same step
``step_<N>.removed``    being removed
"""

from __future__ import annotations

import errno
import json
import math
import platform
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf.checkpoints.manifest import (
    CONFIG,
    MANIFEST,
    OWN,
    STATE,
    VERSIONS,
    FileEntry,
    Manifest,
    check_files,
    decode,
    encode,
    fault_of,
    json_mapping,
    require_inside,
    size_fault,
    write_files,
)
from rlhf.errors import UserError
from rlhf.records import DataFile
from rlhf.storage.durable import sync, write_atomically

PARTIAL, REPLACED, REMOVED = ".partial", ".replaced", ".removed"
LATEST, BEST = "latest", "best"
_COMMITTED = re.compile(r"step_(0|[1-9]\d*)", re.ASCII)
_LEFT = re.compile(r"(step_\d+\.(partial|replaced|removed)|(latest|best)\.partial)", re.ASCII)


def committed(folder: Path) -> dict[int, Path]:
    """Folders of committed checkpoints by step, the oldest first; their content is not read."""
    if not folder.is_dir():
        return {}
    found = {int(match[1]): path for path in folder.iterdir() if (match := _COMMITTED.fullmatch(path.name))}
    return dict(sorted(found.items()))


def clean(folder: Path, in_work: Collection[Path] = (), removal: Callable[[Path], None] | None = None) -> None:
    """Remove the remains of killed attempts, except the paths ``in_work``; only the folder's single writer may do this.

    A ``.replaced`` checkpoint whose replacement is missing gets its name back. ``removal`` removes a folder, instead of
    ``remove``.
    """
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if path in in_work or not _LEFT.fullmatch(path.name):
            continue
        if path.suffix == REPLACED and not path.with_suffix("").exists():
            path.rename(path.with_suffix(""))
        elif path.is_dir() and removal is not None:
            removal(path)
        else:
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or folder as far as possible, without raising; remains no longer have a committed name."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(set_aside(path), ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def set_aside(folder: Path) -> Path:
    """Rename a folder that is to be removed, so that nobody reads it or writes to it; returns its new path.

    A half-removed checkpoint must not look like one.

    Raises:
        OSError: it is gone, or cannot be renamed.
    """
    going = folder.with_name(folder.stem + REMOVED)
    if going != folder:
        if going.exists():
            shutil.rmtree(going, ignore_errors=True)
        folder.rename(going)
    return going


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A folder that was complete when it was committed. Its files are ``path / entry.name``."""

    path: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        """Number of completed steps."""
        return self.manifest.step

    @property
    def score(self) -> float | None:
        """Score of the policy, higher is better; None if unknown."""
        return self.manifest.score

    def verify(self) -> None:
        """Read every file and compare it with the manifest. Files that the manifest does not name are ignored.

        Raises:
            UserError: a file is missing or differs.
        """
        self.refuse(check_files(self.manifest.files, self.path))

    def verify_sizes(self) -> None:
        """Check that every file is there with its size; nothing is read.

        Raises:
            UserError: a file is missing, or shorter or longer than it was.
        """
        faults = {entry.name: size_fault(entry, self.path) for entry in self.manifest.files}
        self.refuse({name: fault for name, fault in faults.items() if fault is not None})

    def refuse(self, faults: Mapping[str, str]) -> None:
        """Raise UserError for the first of these faults of files, by name; if there are none, do nothing."""
        files = self.manifest.files
        if wrong := [f"{entry.name} {faults[entry.name]}" for entry in files if entry.name in faults]:
            more = f"; {len(wrong) - 1} more of its {len(files)} files are damaged" if len(wrong) > 1 else ""
            raise damaged(self.path, f"{self.path}/{wrong[0]}{more}")

    def state(self) -> dict[str, Any]:
        """Read the controller's state.

        Raises:
            UserError: its file is damaged.
        """
        text = self._text(STATE)
        try:
            return json_mapping(text)
        except ValueError as error:
            raise damaged(self.path, f"{self.path / STATE} {error}") from error

    def config(self) -> str:
        """Read the resolved recipe of the checkpoint's run, as YAML.

        Raises:
            UserError: its file is damaged.
        """
        return self._text(CONFIG)

    def _text(self, name: str) -> str:
        entry = next(entry for entry in self.manifest.files if entry.name == name)
        if (fault := fault_of(entry, self.path)) is not None:
            raise damaged(self.path, f"{self.path / name} {fault}")
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except ValueError as error:
            raise damaged(self.path, f"{self.path / name} is not text: {error}") from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint in the folder ``step_<N>``; reads only the manifest.

    Raises:
        UserError: the manifest is missing, damaged, or of another step.
    """
    try:
        manifest = decode((path / MANIFEST).read_text(encoding="utf-8"))
    except OSError as error:
        raise damaged(path, f"{path / MANIFEST} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise damaged(path, f"{path / MANIFEST} {error}") from error
    if path.name != f"step_{manifest.step}":
        raise damaged(path, f"{path / MANIFEST} is the manifest of step_{manifest.step}")
    return Checkpoint(path=path, manifest=manifest)


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest committed checkpoint in ``checkpoints/``; None without one.

    Raises:
        UserError: its manifest is damaged; an older checkpoint is not used silently.
    """
    found = committed(folder)
    return read_checkpoint(found[max(found)]) if found else None


def damaged(path: Path, what: str) -> UserError:
    """Error for a damaged checkpoint, which names the next older one to resume from."""
    others = [step for step, other in committed(path.parent).items() if other != path]
    otherwise = f"resume from step_{max(others)}" if others else "start again"
    return UserError(what, "a run cannot resume from a damaged checkpoint", f"delete {path} to {otherwise}")


def by_score(scores: Mapping[int, float | None]) -> list[int]:
    """Steps with a score, the best first; ties are ordered by step, the newer first."""
    known = {step: score for step, score in scores.items() if score is not None}
    return sorted(known, key=lambda step: (known[step], step), reverse=True)


def kept(scores: Mapping[int, float | None], keep_last: int, keep_best: int) -> set[int]:
    """Return the ``keep_last`` newest steps and the ``keep_best`` best ones, which may overlap.

    Args:
        scores: scores by step, None if unknown; higher is better.
    """
    newest = sorted(scores, reverse=True)[:keep_last]
    return {*newest, *by_score(scores)[:keep_best]}


class CheckpointStore:
    """The single writer of a folder of checkpoints. To only read, use ``latest_checkpoint``."""

    def __init__(
        self,
        folder: Path,
        keep_last: int,
        keep_best: int,
        data: tuple[DataFile, ...] | None = None,
        removal: Callable[[Path], None] = remove,
    ) -> None:
        """Remove the remains of killed attempts in ``folder``, which need not exist.

        Args:
            folder: ``runs/<name>/<stage>/checkpoints``; the caller holds the stage's lock.
            keep_last: number of newest checkpoints to keep.
            keep_best: number of best checkpoints to keep, which may be among the newest.
            data: data files of the run, recorded in every manifest.
            removal: removes a folder; ``BackgroundRemoval.remove`` does not hold the caller.
        """
        self.folder, self.data = folder, data
        self._keep_last, self._keep_best, self._removal = keep_last, keep_best, removal
        self._in_work: set[Path] = set()
        clean(folder)

    def begin(self, step: int) -> Path:
        """Create an empty folder for the files of a step.

        Raises:
            OSError: it cannot be created.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self._path(step, PARTIAL)
        self._in_work.discard(partial)
        clean(self.folder, self._in_work, self._removal)
        partial.mkdir()
        self._in_work.add(partial)
        return partial

    def commit(
        self,
        step: int,
        entries: Sequence[FileEntry],
        state: Mapping[str, Any],
        config_yaml: str,
        score: float | None,
    ) -> Checkpoint:
        """Complete the folder of ``begin``, make it the newest checkpoint, and remove checkpoints that are not kept.

        On return the checkpoint survives a power loss. Nothing is removed before that.

        Args:
            step: as given to ``begin``. An existing checkpoint of this step is replaced.
            entries: results of ``write_files`` on all nodes.
            state: the controller's state, of JSON types.
            config_yaml: the resolved recipe.
            score: score of the policy, higher is better; None or not finite if unknown.

        Raises:
            OSError: it cannot be written, or a file of ``entries`` is not visible here. Older ones are not changed.
        """
        partial = self._path(step, PARTIAL)
        _require_seen(entries, partial)
        manifest = _seal(partial, step, entries, state, config_yaml, score, self.data)
        self._put_in_place(step)
        self._in_work.discard(partial)
        with suppress(OSError):  # on a full disk, for example: it is committed, and the next commit updates them
            self._write_pointers()
        self._prune(step)
        return Checkpoint(path=self._path(step), manifest=manifest)

    def abandon(self, step: int) -> None:
        """Abandon an attempt, without raising; remains that cannot be removed now are removed by the next ``begin``."""
        partial = self._path(step, PARTIAL)
        self._in_work.discard(partial)
        self._removal(partial)

    def latest(self) -> Checkpoint | None:
        """Return the newest committed checkpoint, independently of the file ``latest``.

        Raises:
            UserError: its manifest is damaged.
        """
        return latest_checkpoint(self.folder)

    def _path(self, step: int, suffix: str = "") -> Path:
        return self.folder / f"step_{step}{suffix}"

    def _put_in_place(self, step: int) -> None:
        path, aside = self._path(step), self._path(step, REPLACED)
        replaces = path.exists()
        if replaces:
            path.rename(aside)
        try:
            self._path(step, PARTIAL).rename(path)
        except OSError:
            if replaces:
                aside.rename(path)
            raise
        sync(self.folder)
        if replaces:
            self._removal(aside)

    def _scores(self) -> dict[int, float | None]:
        """Scores by step. A damaged checkpoint is left out, and thus neither counted nor removed."""
        scores: dict[int, float | None] = {}
        for step, path in committed(self.folder).items():
            try:
                scores[step] = read_checkpoint(path).score
            except UserError:
                continue
        return scores

    def _write_pointers(self) -> None:
        """Write the files ``latest`` and ``best``, for people and other programs; this program lists the folders."""
        write_atomically(self.folder / LATEST, f"step_{max(committed(self.folder))}\n")
        if self._keep_best and (best := by_score(self._scores())):
            write_atomically(self.folder / BEST, f"step_{best[0]}\n")

    def _prune(self, new: int) -> None:
        scores = self._scores()
        for step in set(scores) - kept(scores, self._keep_last, self._keep_best) - {new}:
            self._removal(self._path(step))


def _require_seen(entries: Sequence[FileEntry], folder: Path) -> None:
    require_inside([*OWN, MANIFEST, *(entry.name for entry in entries)])
    for entry in entries:
        path = folder / entry.name
        if not path.is_file() or path.stat().st_size != entry.bytes:
            why = (
                f"written with {entry.bytes} bytes, which the controller does not see: do all nodes share this folder?"
            )
            raise OSError(errno.ENOENT, why, str(path))


def _seal(
    folder: Path,
    step: int,
    entries: Sequence[FileEntry],
    state: Mapping[str, Any],
    config_yaml: str,
    score: float | None,
    data: tuple[DataFile, ...] | None,
) -> Manifest:
    """Write the state, the configuration and the versions, then the manifest, and flush all folders to the disk."""
    texts = {STATE: json.dumps(state), CONFIG: config_yaml, VERSIONS: json.dumps(_versions(), indent=1) + "\n"}
    own = write_files({name: _bytes(text) for name, text in texts.items()}, folder)
    manifest = Manifest(
        step=step,
        score=float(score) if score is not None and math.isfinite(score) else None,
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        files=(*entries, *own),
        data=data,
    )
    for path in (path for path in folder.rglob("*") if path.is_dir()):
        sync(path)
    write_files({MANIFEST: _bytes(encode(manifest))}, folder)
    sync(folder)
    return manifest


def _bytes(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), dtype=np.uint8)


@cache
def _versions() -> dict[str, str]:
    """Versions of Python and of all installed packages."""
    packages = {package.name: package.version for package in distributions()}
    return {"python": platform.python_version(), **dict(sorted(packages.items()))}
