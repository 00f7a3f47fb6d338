"""Reads the current state of a run's folder, in which every file may be incomplete, because processes write to it.

Nothing is written to the folder, and no lock is taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from launch.report.read import STAGES, number
from launch.watch.follow import Recent, Row, Rows, read_object
from launch.watch.holder import Holder, holder_of
from launch.watch.view import ActorRow, Ending, RunView, seconds_left
from rlhf.tracking.console import format_seconds, one_line

KEPT_STEPS, KEPT_EVENTS, KEPT_SAMPLES = 512, 200, 64
SILENT_SECONDS = 120.0
"""Time without a new line or phase after which a run is reported as silent, if its process cannot be seen from here."""
RESTART_SECONDS = 30.0
"""Time for which a lost run is watched further: a command that is started again takes the folder after some seconds, in
which it reads its data."""
GONE = "gone"
"""State of the members of a run that has ended, whatever their last state was."""
ENDS = ("failed", "stopped")
"""Kinds of the last event of an attempt."""
_FILES = ("config.yaml", "metrics.jsonl", "samples.jsonl", "events.jsonl", "status.json", "done.json")


class Stage:
    """The files of one stage, read as they grow."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._metrics = Rows(folder / "metrics.jsonl", KEPT_STEPS)
        self._samples = Rows(folder / "samples.jsonl", KEPT_SAMPLES)
        self._events = Rows(folder / "events.jsonl", KEPT_EVENTS)
        self._steps: tuple[float, int | None] = (0.0, None)
        self._phase: tuple[Any, Any, float] = (None, None, 0.0)
        self._status: Row = {}

    @property
    def changed(self) -> float:
        """Time of the last write to any of its files, in seconds since 1970; 0 without files."""
        return max((_time_written(self.folder / name) for name in _FILES), default=0.0)

    @property
    def finished(self) -> str:
        """When the stage was finished, in local time, as text; empty before."""
        text = one_line(read_object(self.folder / "done.json").get("finished", ""))
        try:
            return f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M:%S}"
        except (ValueError, OverflowError):
            return text

    def steps(self, status: Row) -> int | None:
        """Planned number of steps, from the status; before there is one, from the recipe, for PPO."""
        if isinstance(planned := status.get("steps"), int):
            return planned
        path = self.folder / "config.yaml"
        if (written := _time_written(path)) != self._steps[0]:
            self._steps = written, _planned_steps(path) if self.folder.name == "ppo" else None
        return self._steps[1]

    def status(self) -> Row:
        """Phase and members; the previous ones if the file cannot be read now."""
        self._status = read_object(self.folder / "status.json") or self._status
        return self._status

    @property
    def status_written(self) -> float:
        """Time of the last write to the status, in seconds since 1970; 0 without one."""
        return _time_written(self.folder / "status.json")

    def metrics(self) -> Recent[Row]:
        """The last steps."""
        return self._metrics.read()

    def events(self) -> Recent[Row]:
        """The last events."""
        return self._events.read()

    def samples(self) -> tuple[Row, ...]:
        """Samples of the last step that has any."""
        rows = self._samples.read().items
        return tuple(row for row in rows if row.get("step") == rows[-1].get("step"))

    def phase(self, status: Row, now: float) -> tuple[str, int | None, float | None]:
        """Phase, step, and seconds since its first status, because the status is rewritten when a member changes."""
        phase, step, since = status.get("phase"), status.get("step"), number(status.get("since"))
        if phase is None:
            return "", None, None
        if (phase, step) != self._phase[:2]:
            self._phase = phase, step, now if since is None else since
        return one_line(phase), step if isinstance(step, int) else None, max(0.0, now - self._phase[2])


@dataclass(frozen=True, kw_only=True)
class WatchedFolder:
    """The folder to watch: a run's, or one of its stages."""

    root: Path
    only: str = ""
    """The stage; empty for all."""

    @classmethod
    def of(cls, path: Path) -> WatchedFolder:
        """``runs/<name>``, or ``runs/<name>/<stage>``."""
        path = path.expanduser().absolute()
        if path.name in STAGES and not any(is_stage(path / name) for name in STAGES):
            return cls(root=path.parent, only=path.name)
        return cls(root=path)

    @property
    def path(self) -> Path:
        """The folder itself."""
        return self.root / self.only if self.only else self.root


def runs_in(folder: Path) -> list[str]:
    """Names of the runs in a folder that holds runs, the newest last."""
    try:
        found = [inner for inner in folder.iterdir() if any(is_stage(inner / name) for name in STAGES)]
    except OSError:
        return []
    return [run.name for run in sorted(found, key=_time_written)]


def is_stage(folder: Path) -> bool:
    """Whether a stage has begun in this folder."""
    return any((folder / name).is_file() for name in _FILES)


class FolderWatch:
    """Polls a run's folder."""

    def __init__(self, watched: WatchedFolder, clock: Callable[[], float] = time.time, patience: float = 0.0) -> None:
        """Begin without reading the folder; ``poll`` reads it.

        Args:
            clock: returns seconds since 1970.
            patience: seconds in which another process may take the folder of one that ended without a message.
        """
        self.watched, self._clock, self._patience = watched, clock, patience
        self._stages: dict[str, Stage] = {}
        self._seen = False
        self._lost: tuple[Holder | None, float] | None = None
        """The process whose end was seen, and when."""

    def poll(self) -> RunView | None:
        """The current state of the run; None if there is none."""
        known = [self.watched.only] if self.watched.only else list(STAGES)
        begun = [name for name in known if is_stage(self.watched.root / name)]
        if not begun:
            return self._removed_folder() if self._seen else None
        self._seen = True
        stages = [self._stages.setdefault(name, Stage(self.watched.root / name)) for name in begun]
        current = max(reversed(stages), key=lambda stage: stage.changed)  # the last one of equals
        finished = tuple(stage.folder.name for stage in stages if stage.finished)
        return self._view(current, finished)

    def _view(self, stage: Stage, finished: tuple[str, ...]) -> RunView:
        now, name = self._clock(), stage.folder.name
        holder = holder_of(self.watched.root, name)  # first, so that the last writes of a process that ended are read
        status = stage.status()
        metrics, events, steps = stage.metrics(), stage.events(), stage.steps(status)
        if holder is not None and holder.alive is not False and stage.status_written < holder.since:
            status = {}  # of an earlier command
        phase, step, seconds = stage.phase(status, now)
        done = _recorded_steps(metrics)
        if name in finished:
            phase, seconds, status = "", None, {}  # its actors ended with it
        ending = self._ending(stage, holder, events, _last_seen(phase, step, now - stage.changed))
        warning = _warning(stage, holder, name in finished, now)
        members = tuple(_members(status, now, is_over=ending is not None))
        if ending is not None and ending.is_unannounced and (left := self._patience_left(holder, now)) > 0:
            text = f"{ending.text}; watched for {left:.0f} s more, in case it was given again"
            ending, warning = None, text
        return RunView(
            title=self.watched.root.name,
            source=str(self.watched.path),
            stage=name,
            finished=finished,
            phase=phase,
            phase_seconds=seconds,
            step=step,
            done=done,
            steps=steps,
            seconds_left=seconds_left(metrics.items, done, steps),
            members=members,
            metrics=metrics,
            samples=stage.samples(),
            events=events,
            warning=warning,
            ending=ending,
        )

    def _patience_left(self, holder: Holder | None, now: float) -> float:
        """Seconds in which another process may still take the folder of one that has ended."""
        if self._lost is None or self._lost[0] != holder:
            self._lost = holder, now
        return self._lost[1] + self._patience - now

    def _ending(self, stage: Stage, holder: Holder | None, events: Recent[Row], last_seen: str) -> Ending | None:
        alive = holder.alive if holder is not None else False
        if when := stage.finished:
            over = self.watched.only or alive is False
            over = over or (alive is None and self._clock() - stage.changed > SILENT_SECONDS)
            return Ending(text=f"{stage.folder.name} finished {when}", good=True) if over else None
        last = events.items[-1] if events.items else {}
        if last.get("kind") in ENDS and _time_of(last) >= (holder.since if holder is not None else 0.0):
            return Ending(text=_describe_end(stage, last), good=False)
        if alive is False:
            who = holder.name if holder is not None else "its process"
            return Ending(text=_describe_loss(who, last_seen, stage), good=False, is_unannounced=True)
        return None

    def _removed_folder(self) -> RunView:
        text = "its folder was removed: a run that fails before its start leaves nothing; its output has the reason"
        ending = Ending(text=text, good=False)
        return RunView(title=self.watched.root.name, source=str(self.watched.path), ending=ending)


def _recorded_steps(metrics: Recent[Row]) -> int:
    last = number(metrics.items[-1].get("step")) if metrics.items else None
    return 0 if last is None else int(last) + 1


def _members(status: Row, now: float, is_over: bool) -> Iterator[ActorRow]:
    members = status.get("members")
    for name, record in members.items() if isinstance(members, Mapping) else ():
        if isinstance(record, Mapping):
            process, heartbeat = record.get("process"), number(record.get("heard"))
            yield ActorRow(
                name=one_line(name),
                state=GONE if is_over else one_line(record.get("state", "")),
                node=one_line(record.get("node", "")),
                process=process if isinstance(process, int) else None,
                heartbeat_age=None if heartbeat is None else max(0.0, now - heartbeat),
            )


def _warning(stage: Stage, holder: Holder | None, finished: bool, now: float) -> str:
    """Warning about a run without news for a long time."""
    silent = now - stage.changed
    if finished or holder is None or holder.alive is False or silent < SILENT_SECONDS:
        return ""
    if holder.alive:
        return f"nothing new for {format_seconds(silent)}; {holder.name} is alive"
    return f"nothing new for {format_seconds(silent)}; whether {holder.name} is alive cannot be seen from here"


def _last_seen(phase: str, step: int | None, ago: float) -> str:
    where = f"in {phase}" + (f" of step {step}" if step is not None else "") if phase else "at work"
    return f"last seen {where} {format_seconds(max(0.0, ago))} ago"


def _describe_end(stage: Stage, event: Row) -> str:
    message = one_line(event.get("message", ""))
    code = event.get("exit_code")
    ended = f"{stage.folder.name} {event['kind']}" + (f", exit code {code}" if code is not None else "")
    return f"{ended}: {message}" if message else ended


def _describe_loss(who: str, last_seen: str, stage: Stage) -> str:
    text = f"{who} ended without a message: {last_seen}."
    latest = _latest_checkpoint(stage.folder / "checkpoints")
    return f"{text} The same command resumes from {latest}" if latest else f"{text} It left no checkpoint"


def _latest_checkpoint(checkpoints: Path) -> str:
    numbers = [int(path.name[5:]) for path in checkpoints.glob("step_*") if path.name[5:].isdigit()]
    return f"checkpoints/step_{max(numbers)}" if numbers else ""


def _time_of(event: Row) -> float:
    try:
        return datetime.fromisoformat(str(event.get("time"))).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def _time_written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _planned_steps(config: Path) -> int | None:
    try:
        steps = yaml.safe_load(config.read_bytes())["ppo"]["steps"]
    except (OSError, yaml.YAMLError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return steps if isinstance(steps, int) else None
