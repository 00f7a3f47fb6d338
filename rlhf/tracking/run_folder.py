"""The folder of one stage, ``runs/<name>/<stage>/``, with its files and its lock.

A stage is finished if ``done.json`` exists, which is written last and atomically; it holds the hashes of the model's
files. An unfinished attempt resumes from its newest checkpoint; an attempt without a checkpoint is renamed, never
deleted and never mixed with the next one. One process at a time writes to a stage's folder.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlhf.checkpoints.manifest import FileEntry, data_file, file_entries, find_faults, hash_files
from rlhf.checkpoints.store import clean, committed
from rlhf.errors import UserError
from rlhf.records import DataFile
from rlhf.storage.durable import sync, write_atomically, written_folder
from rlhf.storage.folder_lock import FolderLock, LockedError
from rlhf.storage.jsonl import json_safe
from rlhf.storage.reading import damaged, read_json
from rlhf.storage.write_errors import unwritable
from rlhf.tracking.lost_rows import LostRows, first_step, size_before

MODEL = "model"
"""Folder of a finished stage's model, in the stage's folder."""

STARTS = {"reward": "reward.init", "dpo": "dpo.init", "ppo": "ppo.policy_init"}
"""Stage → the key that names the model that it starts from."""


class RunFolder:
    """Paths of the files of a stage's folder; ``RunFolder.create`` opens one for writing."""

    def __init__(self, root: Path, stage: str) -> None:
        """Compose the paths; nothing is read or written.

        Args:
            root: the run's folder, ``runs/<name>``.
        """
        self.root, self.stage = root, stage
        self.path = root / stage
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.events = self.path / "events.jsonl"
        self.trace = self.path / "trace.json"
        self.logs = self.path / "logs"
        self.model = self.path / MODEL
        self.best = self.path / "best"
        self.checkpoints = self.path / "checkpoints"
        self.summary = self.path / "summary.json"
        self.before, self.after = self.path / "before.json", self.path / "after.json"
        """Held-out answers of PPO's policy before the first step, and of the kept policy."""
        self.resumes = False
        """Whether ``create`` found an unfinished attempt with a checkpoint, from which this one resumes."""
        self._done = self.path / "done.json"
        self._digest: str | None = None
        self._data: Sequence[DataFile] | None = None
        self._lock: FolderLock | None = None

    @classmethod
    def create(
        cls,
        root: Path,
        stage: str,
        config_yaml: str,
        digest: str,
        data: Sequence[DataFile] | None = None,
        notice: Callable[[str], object] = lambda text: None,
    ) -> RunFolder:
        """Lock the stage's folder for this process, empty except for ``config.yaml`` and ``logs/``.

        A folder that is finished with the same ``digest`` is returned unchanged: call ``is_finished`` before writing. A
        folder with a checkpoint is returned unchanged too, with ``resumes`` set: check the checkpoint, then call
        ``accept`` and ``rewind``. ``data`` are the stage's data files, which ``finish`` records. ``notice`` shows a
        line to the user if the lock is that of another machine, which may have crashed.

        Raises:
            UserError: it is finished with another configuration, another process has locked it, or it is not writable.
            MachineryError: its disk is full, or fails.
        """
        run = cls(root, stage)
        run._digest, run._data = digest, data
        try:
            root.mkdir(parents=True, exist_ok=True)
            run._take_lock(notice)
            if run.finished_digest() is None:
                run._start(config_yaml)
            else:
                run.release()
                run.require(digest)
        except UserError:
            run.release()
            raise
        except OSError as error:
            run.release()
            raise unwritable(run.path, error) from error
        return run

    def is_finished(self, digest: str) -> bool:
        """Whether this stage is finished with the configuration of ``digest``."""
        return self.finished_digest() == digest

    def accept(self, config_yaml: str) -> None:
        """Replace the configuration file of a resumed run."""
        write_atomically(self.config, config_yaml)

    def sizes(self) -> dict[str, int]:
        """Flush ``metrics.jsonl``, ``samples.jsonl`` and ``before.json``; returns their bytes, for a checkpoint."""
        files = (self.metrics, self.samples, *([self.before] if self.before.exists() else []))
        return {file.name: _synced_size(file) for file in files}

    def rewind(self, sizes: Mapping[str, int], step: int) -> tuple[LostRows, ...]:
        """Truncate ``metrics.jsonl`` and ``samples.jsonl`` to their ``sizes`` at a checkpoint after ``step`` steps.

        Repeated steps are thus recorded once. ``events.jsonl`` is never truncated. A file that was deleted since, and
        may have been begun anew, is cut before the rows of ``step``, and so is one whose rows were put back. Returns
        what files lack.

        Raises:
            UserError: a file is shorter than its size; then none is truncated.
        """
        files = (self.metrics, self.samples)
        kept = {file: size_before(file, step) for file in files}
        lost = {
            file: rows
            for file in files
            if (rows := self._lost_rows(file, sizes[file.name], step, kept[file])) is not None
        }
        cuts = {file: max(kept[file], 0 if file in lost else _checked_size(file, sizes[file.name])) for file in files}
        for file, size in cuts.items():
            if file in lost and not size:
                file.unlink(missing_ok=True)  # an empty one would count as damaged the next time
            elif file.exists():
                os.truncate(file, size)
                sync(file)
        return tuple(lost.values())

    def _lost_rows(self, file: Path, size: int, step: int, kept: int) -> LostRows | None:
        """The rows that a file lacks because it was deleted; None if none.

        It had ``size`` bytes at the checkpoint, and has ``kept`` bytes of rows before ``step``.
        """
        if not size:
            return None
        if not file.exists():
            return LostRows(file=file, before=step)
        begins = first_step(file)
        is_sparse = file == self.samples  # a step may have none
        if not begins or (is_sparse and kept == size):
            return None
        return LostRows(file=file, before=min(begins, step))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``, then ``done.json`` with the hashes of the model's files, and release the folder."""
        write_atomically(self.summary, json.dumps(json_safe(summary), indent=2, ensure_ascii=False) + "\n")
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        data = None if self._data is None else [asdict(file) for file in self._data]
        model = [asdict(entry) for entry in hash_files(self.model)]
        done = {"digest": self._digest, "finished": finished, "data": data, "model": model}
        write_atomically(self._done, json.dumps(done) + "\n")
        self.release()

    def read_summary(self) -> dict[str, Any]:
        """Read the summary of a finished stage."""
        return dict(read_json(self.summary, dict, self._fix_of_finished))

    def discard(self) -> None:
        """Remove the folder of an attempt that trained nothing; a folder with a checkpoint is kept."""
        if not committed(self.checkpoints):
            shutil.rmtree(self.path)

    def release(self) -> None:
        """Unlock the folder; it is unlocked too when this process ends."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @contextmanager
    def writing_model(self) -> Iterator[Path]:
        """Context with a folder to save the model to, renamed to ``model/`` at its end, which is thus complete."""
        with _written_model(self.model) as partial:
            yield partial

    @contextmanager
    def writing_best(self, step: int) -> Iterator[Path]:
        """Context with a folder to save the best model so far to, renamed to ``best/step_<step>/`` at its end.

        Earlier ones are kept until ``prune_best``, because a run that resumes from an older checkpoint may need one.
        """
        self.best.mkdir(exist_ok=True)
        with _written_model(self.best_of(step)) as partial:
            yield partial

    def prune_best(self, step: int, removal: Callable[[Path], None] = shutil.rmtree) -> None:
        """Remove best models of earlier steps, once a committed checkpoint names ``step`` as the best.

        ``removal`` removes a folder.
        """
        for kept in self.best.glob("step_*"):
            if kept.name.removeprefix("step_").isdigit() and int(kept.name.removeprefix("step_")) < step:
                removal(kept)

    def keep_best(self, step: int) -> None:
        """Rename the best model, ``best/step_<step>/``, to ``model/``."""
        self.best_of(step).rename(self.model)
        sync(self.path)
        self.drop_best()

    def drop_best(self) -> None:
        """Remove all best models, once ``model/`` exists."""
        shutil.rmtree(self.best, ignore_errors=True)

    def best_of(self, step: int) -> Path:
        """Folder of the best model, if that is the one after ``step`` steps."""
        return self.best / f"step_{step}"

    def _start(self, config_yaml: str) -> None:
        clean(self.checkpoints)  # a checkpoint whose replacement was interrupted gets its name back
        self.resumes = bool(committed(self.checkpoints))
        if self.resumes:
            self.logs.mkdir(exist_ok=True)
            _require_writable([self.path, self.logs, self.metrics, self.samples, self.events, *self.logs.iterdir()])
            return
        if self.path.exists():
            self.path.rename(self._free_name())
        self.logs.mkdir(parents=True)
        write_atomically(self.config, config_yaml)

    def _free_name(self) -> Path:
        k = 1
        while (aside := self.root / f"{self.stage}.interrupted-{k}").exists():
            k += 1
        return aside

    def finished_digest(self) -> str | None:
        """Digest in ``done.json``; None if the stage is unfinished.

        Raises:
            UserError: the file is damaged: training a finished stage again must be the user's decision.
        """
        done = self._read_done()
        if done is None:
            return None
        if not isinstance(done.get("digest"), str):
            raise damaged(self._done, "has no digest of the stage's configuration", self._fix_of_mark)
        return str(done["digest"])

    def finished_data(self) -> tuple[DataFile, ...] | None:
        """Data files of the finished stage; None if they were not recorded.

        Raises:
            UserError: ``done.json`` is damaged.
        """
        rows = (self._read_done() or {}).get("data")
        try:
            return None if rows is None else tuple(data_file(**row) for row in rows)
        except (ValueError, TypeError) as error:
            raise damaged(self._done, f"does not list the stage's data files: {error}", self._fix_of_mark) from error

    def finished_model(self) -> tuple[FileEntry, ...]:
        """Files of the finished stage's model with their hashes; empty if they were not recorded.

        Raises:
            UserError: ``done.json`` is damaged.
        """
        try:
            return file_entries((self._read_done() or {}).get("model") or ())
        except (ValueError, TypeError) as error:
            raise damaged(self._done, f"does not list the model's files: {error}", self._fix_of_mark) from error

    def verify_model(self) -> None:
        """Read every recorded file of the finished stage's model and compare it with its hash.

        Raises:
            UserError: a file is missing or differs.
        """
        files = self.finished_model()
        if wrong := find_faults(files, self.model):
            more = f"; {len(wrong) - 1} more of its {len(files)} files differ" if len(wrong) > 1 else ""
            raise UserError(
                f"the model of the finished {self.stage} stage was changed: {self.model}/{wrong[0]}{more}",
                f"its files had other content when the stage ended, as recorded in {self._done}",
                f"restore the files, or {self._fix_of_finished}; to use the changed model, copy the folder elsewhere "
                "and name the copy in the recipe",
            )

    @property
    def _fix_of_finished(self) -> str:
        return f"delete {self.path} to train the {self.stage} stage again with the same command"

    @property
    def _fix_of_mark(self) -> str:
        again = (
            f"the stage then resumes from its last checkpoint, or starts again and the folder {self.path} is renamed"
        )
        return f"restore the file, or delete it: {again}"

    def _read_done(self) -> dict[str, Any] | None:
        """Content of ``done.json``; None if the stage is unfinished."""
        if not self._done.exists():
            return None
        done: dict[str, Any] = read_json(self._done, dict, self._fix_of_mark)
        return done

    def require(self, digest: str, differences: str = "") -> None:
        """Check that the stage was not finished with another configuration.

        Args:
            differences: lines that are appended to the message.

        Raises:
            UserError: it was.
        """
        if self.finished_digest() not in (None, digest):
            raise UserError(
                f"{self.path} holds a finished {self.stage} stage of another configuration{differences}",
                f"its configuration is in {self.config}; writing there would mix two runs",
                f"restore the values, give this run another name (name=...), or delete {self.path} if you no longer "
                f"need it{self._way_further()}",
            )

    def _way_further(self) -> str:
        if self.stage not in STARTS or not self.model.exists():
            return ""
        reward = self.root / "reward" / MODEL
        scored = f" rewards.<name>.model={reward}" if self.stage == "ppo" and reward.exists() else ""
        return f"; to train its model further: name=<new> {STARTS[self.stage]}={self.model}{scored}"

    def _take_lock(self, notice: Callable[[str], object]) -> None:
        # The lock is outside the stage's folder, because that is renamed when an attempt is moved aside.
        try:
            self._lock = FolderLock.take(self.root / f".{self.stage}.lock", notice)
        except LockedError as error:
            raise UserError(
                f"{self.path} is in use by {error.holder}",
                "two runs cannot write to one folder",
                "wait for it, stop it, or give this run another name (name=...)",
            ) from None


@contextmanager
def _written_model(folder: Path) -> Iterator[Path]:
    """As ``written_folder``, of a model.

    Raises:
        UserError: the folder has no weights at the end: a rank on another node wrote them to a folder that is not
            shared.
    """
    with written_folder(folder) as partial:
        yield partial
        if not any(partial.glob("*.safetensors")):
            raise UserError(
                f"{partial} has no weights",
                "the rank that wrote them is on a node that does not share this folder",
                "set runs_dir to a folder that all nodes share",
            )


def _require_writable(paths: Iterable[Path]) -> None:
    """Check what a resumed run appends to: another user may have begun it.

    Raises:
        PermissionError: something exists, and cannot be written to.
    """
    for path in paths:
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _synced_size(file: Path) -> int:
    if not file.exists():
        return 0
    sync(file)
    return file.stat().st_size


def _checked_size(file: Path, size: int) -> int:
    found = file.stat().st_size if file.exists() else 0
    if found < size:
        raise UserError(
            f"{file} has {found} of {size} bytes",
            "it was damaged after the checkpoint was made; the run's record would have a gap",
            f"restore the file, or delete {file.parent / 'checkpoints'} to start again",
        )
    return size
