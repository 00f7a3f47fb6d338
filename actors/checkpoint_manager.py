"""Takes snapshots of a stage in the nodes' memory, writes checkpoints to disk, and restores from either."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol

import ray
from ray.exceptions import RayError, RayTaskError
from ray.experimental import get_local_object_locations

from actors.blocks import FOLDER, Block, confirm_blocks, read_blocks, write_block
from actors.checkpoint_files import near, task_environment, verify_on_nodes, write_shard
from actors.grace import GraceCheck, WriteClock
from actors.pending import Pending
from actors.snapshots import Snapshot, SnapshotCopier, SnapshotShard, State
from actors.waiting import PhaseContext, fetch, wait
from rlhf.checkpoints.compatible import data_changes
from rlhf.checkpoints.manifest import FileEntry
from rlhf.checkpoints.removal import BackgroundRemoval
from rlhf.checkpoints.store import Checkpoint, CheckpointStore, committed
from rlhf.config.load import to_yaml
from rlhf.errors import LostError, MachineryError
from rlhf.recovery.snapshot_pace import SnapshotPace
from rlhf.storage.write_errors import tell, way_on
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.spans import PhaseTimer
from rlhf.tracking.tracker import Tracker

if TYPE_CHECKING:  # processes that read and write files import this module, and do not need the actors
    from actors.group import Group
    from actors.session import Session
    from actors.supervisor import Supervisor
    from rlhf.config.schema import Recipe

SNAPSHOT, CHECKPOINT, RESTORE = "snapshot", "checkpoint", "restore"
VERDICT_SECONDS = 5.0
"""How long what watches Ray may take to notice a failure after its first effects."""
REMOVAL_SECONDS = 60.0
"""Longest wait at the end of a stage for old checkpoints to be removed; the next command removes the rest."""
HELD_OUT_LOSS = "eval/loss"
"""Metric by which checkpoints of SFT, reward training and DPO are ranked; lower is better."""

ResumePoint = tuple[State, Sequence[Block]]
"""State to resume from, and PPO's rollouts of the next step if they were generated already."""


class TrainedActors(Protocol):
    """A stage's actors, as far as its checkpoints need them."""

    recipe: Recipe
    supervisor: Supervisor

    @property
    def trained(self) -> Mapping[str, Group]:
        """Groups with trained weights, by role."""

    def rebuild(self, group: Group) -> None:
        """Replace a group's ranks with new ones, which hold the initial model."""


@dataclass(frozen=True, kw_only=True)
class Writing(Generic[State]):
    """A checkpoint that is being written by Ray tasks, one per shard or block; ``tasks`` maps them to names."""

    snapshot: Snapshot[State]
    tasks: Mapping[ray.ObjectRef, str]
    clock: WriteClock


class CheckpointManager(Generic[State]):
    """Keeps the stage's last snapshot and its checkpoints.

    The loop waits while a snapshot is copied to memory; a checkpoint is written from a snapshot in the background.
    """

    def __init__(
        self,
        actors: TrainedActors,
        run: RunFolder,
        store: CheckpointStore,
        start: State,
        tracker: Tracker,
        timer: PhaseTimer,
        removal: BackgroundRemoval,
    ) -> None:
        """Find the last checkpoint.

        Args:
            start: the state before the first step.
            removal: removes what the store does not keep.
        """
        self.actors, self.run, self.store, self.start = actors, run, store, start
        self.supervisor = actors.supervisor
        self.tracker, self.timer, self.config = tracker, timer, actors.recipe.checkpoint
        self.snapshot: Snapshot[State] | None = None
        self.committed: Checkpoint | None = store.latest()
        self.grace: GraceCheck | None = None
        """Compares the duration of checkpoints with the time that a stop has."""
        self.restored_from = ""
        """What the last ``restore`` restored, for people."""
        self._writing: Writing[State] | None = None
        self._failures, self._pace, self._config_yaml = 0, SnapshotPace(), to_yaml(actors.recipe)
        self._removal, environment = removal, dict(task_environment(actors.recipe))
        self._limit = self.supervisor.deadlines.learned.ceiling
        self._copier = SnapshotCopier[State](environment, tracker.event, self._limit)
        task = ray.remote(num_cpus=0, max_retries=0, runtime_env={"env_vars": environment})
        self._write, self._write_block, self._confirm = task(write_shard), task(write_block), task(confirm_blocks)
        self._read = task(read_blocks)

    def keep(
        self, state: State, pregenerated_blocks: Sequence[Block], metrics: Mapping[str, float], is_last: bool = False
    ) -> None:
        """Take a snapshot and begin a checkpoint if they are due after this step; commit a finished checkpoint.

        Args:
            is_last: a checkpoint is due, whatever the step, and is committed on return.
        """
        is_due = state.step % self.config.every_in(self.run.stage) == 0 or is_last
        if is_due or self._is_snapshot_due(state.step):
            self.take_snapshot(state, pregenerated_blocks, self._score(state.step, metrics, is_due))
        if is_due:
            self.begin_checkpoint()
        self.finish_checkpoint(wait_for_it=is_last)
        self._copy_snapshot()
        self._report_removals()

    def _score(self, step: int, metrics: Mapping[str, float], is_due: bool) -> float | None:
        """Number by which a checkpoint is ranked, higher is better; None if this step has none."""
        if self.run.stage != "ppo":
            return -metrics[HELD_OUT_LOSS] if HELD_OUT_LOSS in metrics else None
        metric = self.config.best_metric
        if is_due and self.config.keep_best and metric not in metrics:
            self.tracker.event("no_best_metric", step=step, metric=metric)
        return metrics.get(metric)

    def _is_snapshot_due(self, step: int) -> bool:
        every = self.config.snapshot_every
        if every == "auto":
            return self._pace.is_due(time.monotonic())
        return every > 0 and step % every == 0

    def take_snapshot(
        self, state: State, pregenerated_blocks: Sequence[Block] = (), score: float | None = None
    ) -> None:
        """Take a snapshot, which replaces the last one. ``score`` ranks the checkpoint for ``checkpoint.keep_best``."""
        context = PhaseContext(phase=SNAPSHOT, step=state.step - 1 if state.step else None)
        self.supervisor.enter_phase(context)
        begin = time.monotonic()
        with self.timer(SNAPSHOT, context.step):
            goodput = self.supervisor.goodput.state()
            state = replace(state, sizes=self.run.sizes(), goodput=goodput, wandb_id=self.tracker.wandb_id)
            taken = {role: group.snapshot() for role, group in self.actors.trained.items()}
            done = [marker for parts in taken.values() for *_, marker in parts]
            names = [name for group in self.actors.trained.values() for name in group.names]
            wait(done, names, context, self.supervisor.deadlines)
        self._pace.took(begin, time.monotonic())
        nodes = self.supervisor.nodes()
        shards = {
            role: [
                SnapshotShard(own=(own,), shared=(shared,), node=nodes.get(name))
                for (own, shared, _), name in zip(parts, self.actors.trained[role].names, strict=True)
            ]
            for role, parts in taken.items()
        }
        self.snapshot = Snapshot(state=state, shards=shards, pregenerated_blocks=pregenerated_blocks, score=score)
        self._copy_snapshot()

    def _copy_snapshot(self) -> None:
        """Have the last snapshot copied to other nodes, if there are any; nothing is awaited."""
        if self.snapshot is not None:
            self.snapshot = self._copier.copy(self.snapshot, self.supervisor.nodes().values())

    def begin_checkpoint(self) -> None:
        """Start Ray tasks that write the last snapshot as a checkpoint, one per shard or pregenerated block."""
        self.finish_checkpoint(wait_for_it=True)  # one checkpoint at a time
        snapshot = self.snapshot
        if snapshot is None or (self.committed is not None and self.committed.step == snapshot.state.step):
            return
        try:
            folder = self.store.begin(snapshot.state.step)
        except OSError as error:
            self._failed(snapshot.state.step, error)
            return
        tasks = {
            self._write.options(**near(shard.node)).remote(
                [shard.own, shard.shared], folder.resolve(), role, self._limit
            ): f"writer of {role} rank {rank}"
            for role, shards in snapshot.shards.items()
            for rank, shard in enumerate(shards)
        } | {
            self._write_block.remote(block.rollouts, folder.resolve(), index, block.stream): f"writer of block {index}"
            for index, block in enumerate(snapshot.pregenerated_blocks)
        }
        self._writing = Writing(snapshot=snapshot, tasks=tasks, clock=WriteClock(tasks))

    def finish_checkpoint(self, wait_for_it: bool) -> None:
        """Commit the checkpoint that is being written, if any; unless ``wait_for_it``, only if all its tasks are done.

        Raises:
            MachineryError: ``checkpoint.failures`` checkpoints failed in a row.
        """
        if self._writing is None:
            return
        tasks = list(self._writing.tasks)
        if not wait_for_it and len(ray.wait(tasks, num_returns=len(tasks), timeout=0)[0]) < len(tasks):
            return
        writing, state = self._writing, self._writing.snapshot.state
        context = PhaseContext(phase=CHECKPOINT, step=state.step - 1)
        self.supervisor.enter_phase(context)
        try:
            with self.timer(CHECKPOINT, context.step):
                entries, begin = self._written(writing, context), time.monotonic()
                self.committed = self.store.commit(
                    state.step, entries, state.to_json(), self._config_yaml, writing.snapshot.score
                )
        except (OSError, RayError, LostError) as error:
            self._writing = None
            # Running tasks must end before the next attempt. Cancelling them is no option: it may end this process.
            ray.wait(tasks, num_returns=len(tasks), timeout=self._limit)
            self.store.abandon(state.step)
            self._failed(state.step, error)
            return
        # Skipped when a stop interrupts the wait, since the tasks are still writing.
        self._writing, self._failures = None, 0
        size = sum(entry.bytes for entry in entries)
        seconds = writing.clock.seconds(time.monotonic() - begin)
        self.tracker.checkpoint(state.step, size, self.committed.path, seconds)
        if self.grace is not None:
            self.grace.measured(state.step, seconds)
        if state.best_step is not None:
            self.run.prune_best(state.best_step, self._removal.remove)

    def _written(self, writing: Writing[State], context: PhaseContext) -> list[FileEntry]:
        pending, entries = Pending(writing.tasks), list[FileEntry]()
        deadlines = self.supervisor.deadlines
        while pending:
            ref, name = deadlines.next_ready(pending, context)
            entries += ray.get(ref, timeout=deadlines.seconds(name, context))
            deadlines.learn_duration(name, context, is_sound=True)
        return entries

    def _failed(self, step: int, error: Exception) -> None:
        """Record a failed checkpoint; raises once ``checkpoint.failures`` failed in a row."""
        self._failures += 1
        cause = error.cause if isinstance(error, RayTaskError) else error  # of a task that writes files
        if isinstance(cause, OSError):
            reason, advice = tell(cause, self.store.folder), way_on(cause)
        else:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            advice = "Check that the folder is writable and has space"
        self.tracker.event("checkpoint_failed", step=step, in_a_row=self._failures, error=reason)
        if self._failures >= self.config.failures:
            own = self.run.path.absolute()
            if isinstance(cause, OSError) and not Path(str(cause.filename)).absolute().is_relative_to(own):
                self._await_verdict()
            raise MachineryError(
                f"checkpoints failed {self._failures} times in a row; the last, after step {step}: {reason}. "
                f"{self.describe_last()} {advice}, and give the same command."
            ) from error

    def _await_verdict(self) -> None:
        """Give what watches Ray the time to end the run: a file that is not the run's may be one of Ray's session."""
        ends = time.monotonic() + VERDICT_SECONDS
        while time.monotonic() < ends:
            self.supervisor.deadlines.check()
            time.sleep(0.1)

    def _report_removals(self) -> None:
        for failure in self._removal.take_failures():
            self.tracker.event("removal_failed", path=str(failure.path), error=failure.reason)

    def settle(self) -> None:
        """Wait until old checkpoints are removed, at most ``REMOVAL_SECONDS``."""
        self._removal.wait(REMOVAL_SECONDS)
        self._report_removals()

    def describe_last(self) -> str:
        """Path and step of the last checkpoint, as a sentence for messages."""
        if self.committed is None:
            return "There is no checkpoint yet."
        return f"The last checkpoint is {self.committed.path}, after step {self.committed.step}."

    def check_grace(self, step: int) -> None:
        """Warn before the first step if a stop would not fit in the time that it has."""
        if self.grace is not None:
            shards = [shard for of_role in self.snapshot.shards.values() for shard in of_role] if self.snapshot else []
            refs = [copies[0] for shard in shards for copies in (shard.own, shard.shared)]
            known = get_local_object_locations(refs) if refs else {}
            self.grace.begin(step, sum(found.get("object_size") or 0 for found in known.values()))

    def unsaved(self) -> str | None:
        """What a stop has still to write, as a sentence; None if the last snapshot is on the disk as a checkpoint."""
        on_disk = max(committed(self.store.folder), default=self.start.step)
        if self.snapshot is None or on_disk >= self.snapshot.state.step:
            return None
        return f"the checkpoint after step {self.snapshot.state.step} is not complete"

    def resume(self, checkpoint: Checkpoint | None) -> ResumePoint[State]:
        """Load the checkpoint of an earlier command, if there is one; returns the same as ``restore``."""
        if checkpoint is None:
            return self.start, ()
        state, pregenerated_blocks = self.load(checkpoint, PhaseContext(phase="load"))
        self.supervisor.resume(state.goodput)
        self.tracker.event("resumed", step=state.step, path=str(checkpoint.path))
        return state, pregenerated_blocks

    def restore(self) -> ResumePoint[State]:
        """Restore the trained groups and the run's files to the last snapshot, or to what is left.

        If part of the last snapshot is lost with a node, they are restored to the newest of the last snapshot that has
        copies on other nodes and the last checkpoint; without either to the initial models. Returns the state, and the
        next step's rollouts if they were generated already.

        Raises:
            LostError: a rank was lost meanwhile.
            UserError: the last checkpoint is damaged.
        """
        context = PhaseContext(phase=RESTORE)
        self.supervisor.enter_phase(context)
        sources: Mapping[str, Callable[[], ResumePoint[State] | None]] = {
            "the snapshot": lambda: self._from_memory(context),
            "the last snapshot with copies": lambda: self._from_copies(context),
            "the checkpoint": lambda: self._from_disk(context),
        }
        for self.restored_from, restore in sources.items():
            if (found := restore()) is not None:
                break
        else:
            self.restored_from, found = "the initial models", self._from_start()
        state, pregenerated_blocks = found
        for lost in self.run.rewind(state.sizes, state.step):
            self.tracker.lost(lost)
        for group in self.actors.trained.values():
            self.supervisor.serve(group.names)
        if self.snapshot is not None and not self.snapshot.nodes <= set(self.supervisor.nodes().values()):
            self._pace = SnapshotPace()  # due: a node is gone, and with it one of the two copies
        return state, pregenerated_blocks

    def _from_memory(self, context: PhaseContext) -> ResumePoint[State] | None:
        """Restore the last snapshot; None if there is none or part of it is lost, and then no rank has changed."""
        snapshot = self.snapshot
        if snapshot is None:
            return None
        trained, placement = self.actors.trained, self.actors.recipe.placement
        try:
            for role, group in trained.items():
                group.collect(snapshot.parts(role, getattr(placement, role)), context.of("collect"))
            blocks = [block.rollouts for block in snapshot.pregenerated_blocks]
            if blocks:
                fetch(self._confirm.remote(*blocks), FOLDER, context, self.supervisor.deadlines)
        except LostError as error:
            if set(error.names) - {FOLDER}:
                raise
            self.tracker.event("snapshot_lost", step=snapshot.state.step, error=str(error))
            for group in trained.values():
                group.release()
            self.snapshot = None
            self._copier.forget(snapshot)
            return None
        for group in trained.values():
            group.restore(context)
            group.offload(context)
        return snapshot.state, snapshot.pregenerated_blocks

    def _from_copies(self, context: PhaseContext) -> ResumePoint[State] | None:
        """Restore the last snapshot that has copies on other nodes, unless a checkpoint is as new."""
        self.finish_checkpoint(wait_for_it=True)  # it is newer than the last committed one
        copied = self._copier.complete
        if copied is None or (self.committed is not None and self.committed.step >= copied.state.step):
            return None
        self.snapshot = copied
        return self._from_memory(context)

    def _from_disk(self, context: PhaseContext) -> ResumePoint[State] | None:
        if self.committed is None:
            return None
        verify_on_nodes(self.committed, self.actors.recipe, self.supervisor.deadlines, context)
        return self.load(self.committed, context.of("load"))  # a separate deadline: disks are slower than memory

    def load(self, checkpoint: Checkpoint, context: PhaseContext) -> ResumePoint[State]:
        """Have the trained groups load a verified checkpoint; returns the same as ``restore``.

        If the data changed since, and the recipe accepts that, PPO begins a new epoch; other stages go on at the same
        step of the new data's batches.
        """
        state = self.start.from_json(checkpoint.state())
        for role, group in self.actors.trained.items():
            group.ask("load", str(checkpoint.path.resolve() / role), context=context)
            group.offload(context)
        if data_changes(checkpoint.manifest.data, self.store.data or ()):
            return state.with_other_data(), ()
        return state, self._blocks(checkpoint, context)

    def _blocks(self, checkpoint: Checkpoint, context: PhaseContext) -> Sequence[Block]:
        """Read the rollouts of a checkpoint, in their order."""
        names = [entry.name for entry in checkpoint.manifest.files if entry.name.startswith(f"{FOLDER}/")]
        paths = [(checkpoint.path / name).resolve() for name in sorted(names, key=lambda name: int(Path(name).stem))]
        if not paths:
            return ()
        described, *blocks = self._read.options(num_returns=1 + len(paths)).remote(paths)
        descriptions = fetch(described, FOLDER, context, self.supervisor.deadlines)
        return [Block(rollouts=block, **fields) for block, fields in zip(blocks, descriptions, strict=True)]

    def _from_start(self) -> ResumePoint[State]:
        """Rebuild the groups from the initial models: neither snapshot nor checkpoint exists."""
        for group in self.actors.trained.values():
            self.actors.rebuild(group)
        return replace(self.start, sizes=dict.fromkeys(self.run.sizes(), 0)), ()


def open_checkpoints(
    session: Session, run: RunFolder, tracker: Tracker, actors: TrainedActors, timer: PhaseTimer, start: State
) -> tuple[CheckpointManager[State], ResumePoint[State]]:
    """Return the stage's checkpoints and the point from which it goes on.

    That is its last checkpoint, which the trained groups have then loaded, or without one ``start``.
    """
    config, files, removal = session.recipe.checkpoint, session.files_of(run.stage), BackgroundRemoval()
    store = CheckpointStore(run.checkpoints, config.keep_last, config.keep_best, files, removal.remove)
    checkpoints = CheckpointManager(actors, run, store, start, tracker, timer, removal)
    checkpoints.grace = GraceCheck(session, run, tracker)
    if session.stop is not None:
        session.stop.unsaved = checkpoints.unsaved
    return checkpoints, checkpoints.resume(session.checkpoint(run.stage))
