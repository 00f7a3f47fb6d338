"""The folder of one stage, ``runs/<name>/<stage>/``, and the rules that keep it honest.

A stage is finished when ``done.json`` is there: it is written last and in one piece. An attempt without it goes on from
its newest checkpoint; where it has none it is moved aside, never deleted and never mixed with the next one. One process
at a time writes to a stage's folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from rlhf.checkpoints.folders import clean, committed
from rlhf.checkpoints.manifest import data_file
from rlhf.errors import UserError
from rlhf.records import DataFile
from rlhf.storage.durable import sync, sync_tree, write_atomically
from rlhf.storage.jsonl import json_safe


class RunFolder:
    """Names the files of a stage's folder; ``RunFolder.create`` is how a run gets one to write to."""

    def __init__(self, root: Path, stage: str) -> None:
        """Args: root is the run's folder, ``runs/<name>``; nothing is read or written here."""
        self.root, self.stage = root, stage
        self.path = root / stage
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.events = self.path / "events.jsonl"
        self.trace = self.path / "trace.json"
        self.logs = self.path / "logs"
        self.model = self.path / "model"
        self.best = self.path / "best"
        self.checkpoints = self.path / "checkpoints"
        self.summary = self.path / "summary.json"
        self.resumes = False
        """Whether ``create`` found an unfinished attempt with a checkpoint, from which this one is to go on."""
        self._done = self.path / "done.json"
        self._digest: str | None = None
        self._data: Sequence[DataFile] | None = None
        self._lock: TextIO | None = None

    @classmethod
    def create(
        cls, root: Path, stage: str, config_yaml: str, digest: str, data: Sequence[DataFile] | None = None
    ) -> RunFolder:
        """Take the stage's folder for this process, empty but for ``config.yaml`` and ``logs/``.

        A folder that is finished with the same ``digest`` is handed back as it is: ask ``is_finished`` before writing.
        So is one with a checkpoint, and ``resumes`` is set: look at the checkpoint, then ``accept`` and ``rewind``.
        ``data`` are the files that the stage reads, which ``finish`` puts down.

        Raises:
            UserError: it is finished with another configuration, another process holds it, or it cannot be written.
        """
        run = cls(root, stage)
        run._digest, run._data = digest, data
        try:
            root.mkdir(parents=True, exist_ok=True)
            run._take_lock()
            if run.finished_digest() is None:
                run._start(config_yaml)
            else:
                run.release()
                run.require(digest)
        except OSError as error:
            run.release()
            raise UserError(
                f"cannot write to {run.path}", str(error), "set runs_dir to a folder that you may write to"
            ) from error
        return run

    def is_finished(self, digest: str) -> bool:
        """Whether this stage has been completed with the configuration that ``digest`` stands for."""
        return self.finished_digest() == digest

    def accept(self, config_yaml: str) -> None:
        """Make ``config_yaml`` the configuration of a run that goes on; until then the old one stands."""
        write_atomically(self.config, config_yaml)

    def sizes(self) -> dict[str, int]:
        """Bytes of ``metrics.jsonl`` and ``samples.jsonl``, for a checkpoint to hold; so many are now on the disk."""
        return {file.name: _synced_size(file) for file in (self.metrics, self.samples)}

    def rewind(self, sizes: Mapping[str, int]) -> None:
        """Cut ``metrics.jsonl`` and ``samples.jsonl`` back to what ``sizes`` gave when the checkpoint was made.

        Steps that are done again are then recorded once. ``events.jsonl`` tells what happened, and is never cut.

        Raises:
            UserError: a file is shorter than that; then none is cut.
        """
        cuts = {file: _checked_size(file, sizes[file.name]) for file in (self.metrics, self.samples)}
        for file, size in cuts.items():
            if file.exists():
                os.truncate(file, size)
                sync(file)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``, then ``done.json``, and let go of the folder."""
        write_atomically(self.summary, json.dumps(json_safe(summary), indent=2, ensure_ascii=False) + "\n")
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        data = None if self._data is None else [asdict(file) for file in self._data]
        done = {"digest": self._digest, "finished": finished, "data": data}
        write_atomically(self._done, json.dumps(done) + "\n")
        self.release()

    def read_summary(self) -> dict[str, Any]:
        """What a finished stage found."""
        return dict(json.loads(self.summary.read_text(encoding="utf-8")))

    def discard(self) -> None:
        """Remove what this attempt wrote, where it learned nothing. A folder with a checkpoint is left as it is."""
        if not committed(self.checkpoints):
            shutil.rmtree(self.path)

    def release(self) -> None:
        """Let another process have the folder. The kernel does the same when this process ends, however it ends."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @contextmanager
    def writing_model(self) -> Iterator[Path]:
        """A folder to save the model into; it becomes ``model/`` when the block ends, so ``model/`` is always whole."""
        with _whole(self.model) as partial:
            yield partial

    @contextmanager
    def writing_best(self, step: int) -> Iterator[Path]:
        """A folder to save the best model so far into; it becomes ``best/step_<step>/`` when the block ends.

        Those before it stay until ``prune_best``: a run that goes on from an older checkpoint may come back to one.
        """
        self.best.mkdir(exist_ok=True)
        with _whole(self.best_of(step)) as partial:
            yield partial

    def prune_best(self, step: int) -> None:
        """Remove the best models of before ``step``, once a checkpoint says that this one is the best."""
        for kept in self.best.glob("step_*"):
            if kept.name.removeprefix("step_").isdigit() and int(kept.name.removeprefix("step_")) < step:
                shutil.rmtree(kept)

    def keep_best(self, step: int) -> None:
        """Make the best model, ``best/step_<step>/``, the run's ``model/``."""
        self.best_of(step).rename(self.model)
        sync(self.path)
        self.drop_best()

    def drop_best(self) -> None:
        """Remove the best model, once the run has its ``model/``."""
        shutil.rmtree(self.best, ignore_errors=True)

    def best_of(self, step: int) -> Path:
        """Folder of the model that was the best after ``step`` steps."""
        return self.best / f"step_{step}"

    def _start(self, config_yaml: str) -> None:
        clean(self.checkpoints)  # a checkpoint that was killed while it was replaced gets its name back
        self.resumes = bool(committed(self.checkpoints))
        if self.resumes:
            self.logs.mkdir(exist_ok=True)
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
        """The digest in ``done.json``; None where the stage is unfinished or the file says nothing readable."""
        try:
            return str(json.loads(self._done.read_text(encoding="utf-8"))["digest"])
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            return None

    def finished_data(self) -> tuple[DataFile, ...] | None:
        """The data files that the finished stage read; None where that was not put down."""
        try:
            rows = json.loads(self._done.read_text(encoding="utf-8")).get("data")
            return None if rows is None else tuple(data_file(**row) for row in rows)
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, AttributeError):
            return None

    def require(self, digest: str) -> None:
        """Refuse to go on where the stage was finished with another configuration.

        Raises:
            UserError: it was.
        """
        if self.finished_digest() not in (None, digest):
            raise UserError(
                f"{self.path} holds a finished {self.stage} stage of another configuration",
                f"its configuration is in {self.config}; writing there would mix two runs",
                f"give this run another name (name=...), or delete {self.path} if you no longer need it",
            )

    def _take_lock(self) -> None:
        # Beside the folder, not in it: the folder itself is renamed when an attempt is moved aside.
        lock = (self.root / f".{self.stage}.lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            lock.close()
            raise UserError(
                f"{self.path} is in use by {holder}",
                "two runs cannot write to one folder",
                "wait for it, stop it, or give this run another name (name=...)",
            ) from None
        self._lock = lock
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder to write a model into that takes the name of ``folder`` when the block ends, on the disk and whole.

    Raises:
        UserError: no weights are there in the end. A rank on another node wrote them to a folder that this node does
            not see.
    """
    partial = folder.with_name(folder.name + ".partial")
    for left in (partial, folder):  # by an attempt that was killed
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir()
    yield partial
    if not any(partial.glob("*.safetensors")):
        raise UserError(
            f"no weights have come to {partial}",
            "the rank that wrote them is on a node that does not share this folder: they are there, at the same path",
            "let runs_dir be a folder that all nodes see",
        )
    sync_tree(partial)
    partial.rename(folder)
    sync(folder.parent)


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
            "it was damaged after the checkpoint was made; without its lines the run's record has a gap",
            f"put the file back as it was, or delete {file.parent / 'checkpoints'} to start anew",
        )
    return size
