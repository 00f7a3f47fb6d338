"""What is kept of a run while it goes on: snapshots in the nodes' memory, and checkpoints on the disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import ray
from ray.exceptions import RayError

from actors.blocks import FOLDER, Block, read_blocks, there, write_block
from actors.cluster import worker_environment
from actors.waiting import Moment, fetch, wait
from rlhf.checkpoints.checkpoint import Checkpoint
from rlhf.checkpoints.compatible import data_changes
from rlhf.checkpoints.files import FileEntry, write_files
from rlhf.checkpoints.store import CheckpointStore
from rlhf.data.order import OrderState
from rlhf.errors import LostError, MachineryError
from rlhf.run_state import RunState
from rlhf.tracking.phases import PhaseTimer
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.tracker import Tracker

if TYPE_CHECKING:  # the processes that read and write files import this, and need no more than that
    from actors.crew import Crew

SNAPSHOT, CHECKPOINT, RESTORE = "snapshot", "checkpoint", "restore"

Kept = tuple[RunState, Sequence[Block]]
"""A state, and the next step's rollouts where they were generated already."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state after a step, and what each rank of the trained groups held: references to files, by group; and the
    next step's rollouts, where they are there already."""

    state: RunState
    shards: Mapping[str, Sequence[ray.ObjectRef]]
    ahead: Sequence[Block]
    score: float | None


@dataclass(frozen=True, kw_only=True)
class Writing:
    """A checkpoint that is being written by other processes, one a shard."""

    snapshot: Snapshot
    tasks: Mapping[ray.ObjectRef, str]


class Keeper:
    """Keeps a run. A snapshot holds the loop up while it is copied, a checkpoint not at all: it is written from one."""

    def __init__(
        self, crew: Crew, run: RunFolder, store: CheckpointStore, config_yaml: str, tracker: Tracker, timer: PhaseTimer
    ) -> None:
        self.crew, self.run, self.store, self.config_yaml = crew, run, store, config_yaml
        self.tracker, self.timer, self.config = tracker, timer, crew.recipe.checkpoint
        self.steps = crew.recipe.ppo.steps
        self.snapshot: Snapshot | None = None
        self.committed: Checkpoint | None = store.latest()
        self._writing: Writing | None = None
        self._failures = 0
        environment = worker_environment(1, crew.recipe.placement.ray_address is None)
        task = ray.remote(num_cpus=0, max_retries=0, runtime_env={"env_vars": environment})
        self._write, self._write_block, self._there = task(write_shard), task(write_block), task(there)
        self._read = task(read_blocks)

    def keep(self, state: RunState, ahead: Sequence[Block], metrics: Mapping[str, float]) -> None:
        """After a step: take a snapshot and begin a checkpoint, where they are due; finish one that is written."""
        is_due = state.step % self.config.every == 0 or state.step == self.steps
        if is_due and self.config.keep_best and self.config.best_metric not in metrics:
            self.tracker.event("no_best_metric", step=state.step, metric=self.config.best_metric)
        if is_due or (self.config.snapshot_every and state.step % self.config.snapshot_every == 0):
            self.take(state, ahead, metrics.get(self.config.best_metric))
        if is_due:
            self.begin_checkpoint()
        self.finish_checkpoint(wait_for_it=state.step == self.steps)

    def take(self, state: RunState, ahead: Sequence[Block] = (), score: float | None = None) -> None:
        """Take a snapshot, which takes the place of the one before. ``score`` is how good the policy is."""
        moment = Moment(phase=SNAPSHOT, step=state.step - 1 if state.step else None)
        self.crew.supervisor.enter(moment)
        with self.timer(SNAPSHOT, moment.step):
            state = self._with_files(state)
            taken = {role: group.compute("snapshot") for role, group in self.crew.trained.items()}
            there = [ref for role in taken for _, ref in taken[role]]
            names = [name for group in self.crew.trained.values() for name in group.names]
            wait(there, names, moment, self.crew.supervisor.patience)
        shards = {role: [files for files, _ in refs] for role, refs in taken.items()}
        self.snapshot = Snapshot(state=state, shards=shards, ahead=ahead, score=score)

    def _with_files(self, state: RunState) -> RunState:
        """With how far the run's files have come, and the account of its time."""
        goodput = self.crew.supervisor.goodput.state()
        return replace(state, sizes=self.run.sizes(), goodput=goodput, wandb_id=self.tracker.wandb_id)

    def begin_checkpoint(self) -> None:
        """Have the last snapshot written, by processes of its own on the nodes that hold it."""
        self.finish_checkpoint(wait_for_it=True)  # one at a time
        snapshot = self.snapshot
        if snapshot is None or (self.committed is not None and self.committed.step == snapshot.state.step):
            return
        try:
            folder = self.store.begin(snapshot.state.step)
        except OSError as error:
            self._failed(snapshot.state.step, error)
            return
        tasks = {
            self._write.remote(files, folder.resolve(), role): f"writer of {role} rank {rank}"
            for role, shards in snapshot.shards.items()
            for rank, files in enumerate(shards)
        } | {
            self._write_block.remote(block.rollouts, folder.resolve(), index): f"writer of block {index}"
            for index, block in enumerate(snapshot.ahead)
        }
        self._writing = Writing(snapshot=snapshot, tasks=tasks)

    def finish_checkpoint(self, wait_for_it: bool) -> None:
        """Commit the checkpoint that is being written, if it is; ``wait_for_it`` or come back later.

        Raises:
            MachineryError: as many in a row failed as the recipe bears.
        """
        if self._writing is None:
            return
        tasks = list(self._writing.tasks)
        if not wait_for_it and len(ray.wait(tasks, num_returns=len(tasks), timeout=0)[0]) < len(tasks):
            return
        writing, state = self._writing, self._writing.snapshot.state
        moment = Moment(phase=CHECKPOINT, step=state.step - 1)
        self.crew.supervisor.enter(moment)
        try:
            with self.timer(CHECKPOINT, moment.step):
                entries = self._written(writing, moment)
                self.committed = self.store.commit(
                    state.step, entries, state.to_json(), self.config_yaml, writing.snapshot.score
                )
        except (OSError, RayError, LostError) as error:
            self._writing = None
            # Those that still write shall not meet the next attempt. Ray's own way to end them may end this process.
            ray.wait(tasks, num_returns=len(tasks), timeout=self.crew.supervisor.patience.deadlines.ceiling)
            self.store.abandon(state.step)
            self._failed(state.step, error)
            return
        self._writing, self._failures = None, 0  # where the wait was interrupted, it is still being written
        size = sum(entry.bytes for entry in entries)
        self.tracker.checkpoint(state.step, size, self.committed.path)
        if state.watch is not None and state.watch.watch.best is not None:
            self.run.prune_best(state.watch.watch.best.step)

    def _written(self, writing: Writing, moment: Moment) -> list[FileEntry]:
        pending, entries = dict(writing.tasks), list[FileEntry]()
        patience = self.crew.supervisor.patience
        while pending:
            ref = patience.next_ready(pending, moment)
            name = pending.pop(ref)
            entries += ray.get(ref, timeout=patience.seconds(name, moment))
            patience.looked_at(name, moment, is_sound=True)
        return entries

    def _failed(self, step: int, error: Exception) -> None:
        """A checkpoint could not be written: the run goes on with the ones before, so many times."""
        self._failures += 1
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        self.tracker.event("checkpoint_failed", step=step, in_a_row=self._failures, error=reason)
        if self._failures >= self.config.failures:
            raise MachineryError(
                f"checkpoints failed {self._failures} times in a row; the last, after step {step}: {reason}. "
                f"{self.last()} See whether the folder can be written to and has space, and give the same command."
            ) from error

    def last(self) -> str:
        """Where the last checkpoint is, as a sentence."""
        if self.committed is None:
            return "There is no checkpoint yet."
        return f"The last checkpoint is {self.committed.path}, after step {self.committed.step}."

    def restore(self) -> Kept:
        """Put the trained groups back to the last snapshot, or where that is lost to the last checkpoint, and the run's
        files with them; returns the state, and the next step's rollouts if they are there.

        Raises:
            LostError: a rank was lost meanwhile.
        """
        moment = Moment(phase=RESTORE)
        self.crew.supervisor.enter(moment)
        state, ahead = self._from_memory(moment) or self._from_disk(moment) or self._anew()
        self.run.rewind(state.sizes)
        for group in self.crew.trained.values():
            self.crew.supervisor.serve(group.names)
        return state, ahead

    def _from_memory(self, moment: Moment) -> Kept | None:
        if self.snapshot is None:
            return None
        try:
            for role, group in self.crew.trained.items():
                group.ask("restore", *self.snapshot.shards[role], moment=moment)
                group.rest(moment)
            blocks = [block.rollouts for block in self.snapshot.ahead]
            if blocks:
                fetch(self._there.remote(*blocks), FOLDER, moment, self.crew.supervisor.patience)
        except LostError as error:
            if set(error.names) - {FOLDER}:
                raise
            self.tracker.event("snapshot_lost", step=self.snapshot.state.step, error=str(error))
            self.snapshot = None  # it went with a node
            return None
        return self.snapshot.state, self.snapshot.ahead

    def _from_disk(self, moment: Moment) -> Kept | None:
        self.finish_checkpoint(wait_for_it=True)  # what is being written is newer, and of steps that would come again
        if self.committed is None:
            return None
        self.committed.verify()
        return self.load(self.committed, moment.of("load"))  # from the disk: it takes longer than from memory

    def load(self, checkpoint: Checkpoint, moment: Moment) -> Kept:
        """Have the trained groups load a checkpoint that was verified; returns what ``restore`` does.

        Where the data changed since and that is accepted, an epoch of the new prompts begins.
        """
        state = RunState.from_json(checkpoint.state())
        for role, group in self.crew.trained.items():
            group.ask("load", str(checkpoint.path.resolve() / role), moment=moment)
            group.rest(moment)
        if data_changes(checkpoint.manifest.data, self.store.data or ()):
            return replace(state, order=OrderState(state.order.epoch + 1, 0)), ()
        return state, self._blocks(checkpoint, moment)

    def _blocks(self, checkpoint: Checkpoint, moment: Moment) -> Sequence[Block]:
        """The rollouts in a checkpoint, in their order."""
        names = [entry.name for entry in checkpoint.manifest.files if entry.name.startswith(f"{FOLDER}/")]
        paths = [(checkpoint.path / name).resolve() for name in sorted(names, key=lambda name: int(Path(name).stem))]
        if not paths:
            return ()
        counts, *blocks = self._read.options(num_returns=1 + len(paths)).remote(paths)
        told = fetch(counts, FOLDER, moment, self.crew.supervisor.patience)
        return [Block(rollouts=block, samples=n, set_aside=m) for block, (n, m) in zip(blocks, told, strict=True)]

    def _anew(self) -> Kept:
        """Nothing is kept yet: the groups are built again from what the run started with."""
        for group in self.crew.trained.values():
            self.crew.rebuild(group)
        return replace(RunState.start(self.crew.recipe), sizes=dict.fromkeys(self.run.sizes(), 0)), ()


def write_shard(files: Mapping[str, np.ndarray], folder: Path, role: str) -> list[FileEntry]:
    """Write what one rank held into a checkpoint's folder, below its role's name."""
    return write_files({f"{role}/{name}": content for name, content in files.items()}, folder)
