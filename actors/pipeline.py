"""Runs a command's stages one after another; finished stages are skipped."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from actors.checkpoint_files import verify_on_nodes
from actors.closing import report_pipeline
from actors.dpo import train_dpo
from actors.ppo import train_ppo
from actors.reward_model import train_reward
from actors.session import Session
from actors.sft import train_sft
from actors.supervised import Summary
from actors.waiting import AnswerDeadlines, PhaseContext
from rlhf.checkpoints.store import committed
from rlhf.config.load import to_yaml
from rlhf.config.stages import stages_of
from rlhf.errors import ClusterError, MachineryError, RLHFError, Stopped, Unsaved, UserError
from rlhf.run_state import StageState
from rlhf.storage.write_errors import tell, way_on
from rlhf.tracking.lost_rows import LostRows
from rlhf.tracking.run_folder import RunFolder
from rlhf.tracking.tracker import Tracker

Train = Callable[[Session, RunFolder, Tracker], Summary]

STAGES: Mapping[str, Train] = {"sft": train_sft, "reward": train_reward, "dpo": train_dpo, "ppo": train_ppo}


def run_stage(session: Session, stage: str) -> Summary:
    """Run one stage and return its summary; a finished stage is not run again."""
    digest = session.digest(stage)
    files, notice = session.files_of(stage), session.console.print
    run = RunFolder.create(session.root, stage, to_yaml(session.recipe), digest, files, notice)
    if run.is_finished(digest):
        session.console.print(f"{stage}: finished before, in {run.path}")
        return run.read_summary()
    try:
        start = time.perf_counter()
        lost = _resume(session, stage, run) if run.resumes else ()
        with (
            Tracker(run, session.recipe, session.console.print) as tracker,
            _recorded_errors(session, tracker, run),
        ):
            for rows in lost:
                tracker.lost(rows)
            summary = STAGES[stage](session, run, tracker)
            summary = with_seconds(summary, time.perf_counter() - start, run.resumes)
            tracker.close(summary)
        run.finish(summary)
        session.trust(run.model)
    except UserError:
        if not run.metrics.exists():
            run.discard()
        raise
    finally:
        session.end_stage()
        run.release()
    session.console.summary(f"{stage} → {run.path}", summary)
    return summary


def with_seconds(summary: Summary, seconds: float, resumes: bool) -> Summary:
    """Add the duration of this command to a stage's summary; of a resumed stage the phases' seconds are of all."""
    if not resumes:
        return {**summary, "seconds in all": seconds}
    named = {re.sub("^seconds, ", "seconds of all commands, ", name): value for name, value in summary.items()}
    return {**named, "seconds of this command": seconds}


def _resume(session: Session, stage: str, run: RunFolder) -> tuple[LostRows, ...]:
    """Rewind the folder of an unfinished stage to its last checkpoint; returns what its record lacks."""
    checkpoint = session.checkpoint(stage)
    assert checkpoint is not None
    if session.recipe.placement.ray_address is not None:
        deadlines = AnswerDeadlines(session.recipe, session.check)
        verify_on_nodes(checkpoint, session.recipe, deadlines, PhaseContext(phase="load"))
    lost = run.rewind(StageState.from_json(checkpoint.state()).sizes, checkpoint.step)
    if not run.events.exists():  # the checkpoint was one
        lost = (*lost, LostRows(file=run.events, before=None))
    run.accept(to_yaml(session.recipe))
    session.console.print(f"{stage}: resumes from {checkpoint.path}, after step {checkpoint.step}")
    return lost


@contextmanager
def _recorded_errors(session: Session, tracker: Tracker, run: RunFolder) -> Iterator[None]:
    """Context that records an error or a stop as an event, also one that ends the process in the main thread's place.

    An error after which the same command resumes says from where.
    """

    def record(error: RLHFError) -> RLHFError:
        told = _with_way_on(run, error)
        kind = "stopped" if isinstance(told, Stopped) else "failed"
        tracker.event(
            kind, error=type(told).__name__, exit_code=told.exit_code, requeue=told.may_pass, message=str(told)
        )
        return told

    session.last_resort.record = record
    try:
        with _own_errors(run):
            yield
    except RLHFError as error:
        raise record(error) from error.__cause__


@contextmanager
def _own_errors(run: RunFolder) -> Iterator[None]:
    """Context that converts errors of the file system."""
    try:
        yield
    except OSError as error:
        begins = "resumes from the last checkpoint" if committed(run.checkpoints) else "starts this stage again"
        what = f"{tell(error, run.path)}. {way_on(error)}"
        raise MachineryError(f"{what}, and give the same command: it {begins}.") from error


def _with_way_on(run: RunFolder, error: RLHFError) -> RLHFError:
    """The same error with the stage's last checkpoint, from which the same command resumes."""
    last = max(committed(run.checkpoints).items(), default=None)
    if isinstance(error, Stopped) and not error.commit:
        return Stopped(error.why, str(last[1]), run.stage) if last else Stopped(error.why, stage=run.stage)
    if isinstance(error, (ClusterError, Unsaved)):
        way_on = f"resumes from the last checkpoint, {last[1]}" if last else f"starts the {run.stage} stage again"
        return type(error)(f"{error} The same command {way_on}.")
    return error


def run_pipeline(session: Session) -> None:
    """Run all stages of the recipe, then print and plot their results."""
    start = time.perf_counter()
    summaries = {stage: run_stage(session, stage) for stage in stages_of(session.recipe, "pipeline")}
    report_pipeline(session, summaries, time.perf_counter() - start)
