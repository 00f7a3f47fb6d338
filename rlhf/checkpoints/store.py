"""Writes a run's checkpoints: in a partial folder, committed by one rename, after which old ones are removed.

``begin`` creates the folder, ``write_files`` writes into it from the nodes that hold the data, and ``commit`` completes
it. All nodes share the file system.
"""

from __future__ import annotations

import errno
import json
import math
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf.checkpoints.checkpoint import Checkpoint, latest_checkpoint, read_checkpoint
from rlhf.checkpoints.files import FileEntry, require_inside, write_files
from rlhf.checkpoints.folders import BEST, LATEST, PARTIAL, REPLACED, clean, committed, remove
from rlhf.checkpoints.manifest import CONFIG, MANIFEST, OWN, STATE, VERSIONS, Manifest, encode
from rlhf.checkpoints.retention import by_score, kept
from rlhf.errors import UserError
from rlhf.records import DataFile
from rlhf.storage.durable import sync, write_atomically


class CheckpointStore:
    """The single writer of a folder of checkpoints. To only read, use ``latest_checkpoint``."""

    def __init__(self, folder: Path, keep_last: int, keep_best: int, data: tuple[DataFile, ...] | None = None) -> None:
        """Remove the remains of killed attempts in ``folder``, which need not exist.

        Args:
            folder: ``runs/<name>/<stage>/checkpoints``; the caller holds the stage's lock.
            keep_last: number of newest checkpoints to keep.
            keep_best: number of best checkpoints to keep, which may be among the newest.
            data: data files of the run, recorded in every manifest.
        """
        self.folder, self.data = folder, data
        self._keep_last, self._keep_best = keep_last, keep_best
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
        clean(self.folder, self._in_work)
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
        remove(partial)

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
        remove(aside)

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
            remove(self._path(step))


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
