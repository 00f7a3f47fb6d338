"""One PPO run to which a plan of faults happens; its command is given again when it ends, as a scheduler would."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from rlhf.storage.jsonl import read_lines
from tests.end_to_end.fault_plan import (
    ANY,
    ASK,
    CONTROLLER,
    DEVICE,
    KILL,
    MEMORY,
    START,
    STOP,
    Aim,
    Marks,
    Strike,
    to_environment,
)
from tests.end_to_end.faults import Run, from_nothing
from tests.end_to_end.small import make_data_and_reward

HELD_OUT = """

def held_out(prompts, responses):
    return [{score}] * len(responses)
"""
NOT_DONE = "it did not happen"
"""Of a fault whose phase did not come: a reason in a ``Result``."""
COMMAND_SECONDS = 1800.0
"""A command that takes longer hangs."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command that has ended: when (seconds of ``time.time``), with which exit code, and what it printed last.

    ``code`` is None if it hung.
    """

    begun: float
    ended: float
    code: int | None
    said: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of one fault.

    ``code`` is 0 if the run recovered within the command, else the command's exit code; None if the fault did not
    happen or the command hung. ``seconds`` are those until the run was whole again, None if it never was: nobody needed
    the actor any more, or the run failed.
    """

    aim: Aim
    code: int | None
    seconds: float | None = None
    why: str = ""
    """Why it failed; empty if it passed."""

    @property
    def passed(self) -> bool:
        return not self.why


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What distinguishes the runs."""

    staleness: int = 0
    zero_stage: int = 1

    @property
    def name(self) -> str:
        return f"s{self.staleness}z{self.zero_stage}"

    def __str__(self) -> str:
        return f"`ppo.staleness` {self.staleness}, ZeRO {self.zero_stage}"


def stated_exit(aim: Aim) -> int:
    """The exit code by which a command may end at this fault (docs/failures.md); 0: it must go on."""
    if aim.role == CONTROLLER:
        return {KILL: -9, STOP: 0, MEMORY: 3, DEVICE: 3, ASK: 75}[aim.fault]
    return 3 if aim.phase == START else 0


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A run that is over, and its marks."""

    path: Path
    plan: Sequence[Aim]
    steps: int
    marks: Marks
    commands: Sequence[Command] = field(default_factory=list)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return read_lines(self.path / "metrics.jsonl")

    def events(self) -> list[dict[str, Any]]:
        """All events, also those of a command that was interrupted before its first checkpoint."""
        return [event for file in self.path.parent.glob("ppo*/events.jsonl") for event in read_lines(file)]

    def faults_of_the_whole(self) -> list[str]:
        """What is wrong with the run; each step compares its own samples with those that it asked for."""
        last, rows = self.commands[-1], self.rows
        wrong = [f"the last command's exit code is {last.code}: {last.said}"] if last.code != 0 else []
        if [row["step"] for row in rows] != list(range(self.steps)):
            wrong.append(f"steps in the record: {[row['step'] for row in rows]}")
        if any(row["rollout/dropped"] or row["rollout/set_aside"] for row in rows):
            wrong.append("samples were left out")
        if not (self.path / "model" / "model.safetensors").exists():
            wrong.append("there is no model")
        return wrong

    def results(self) -> list[Result]:
        """What came of each fault of the plan, in its order."""
        wrong, strikes = "; ".join(self.faults_of_the_whole()), self.marks.strikes()
        return [self._result(index, aim, wrong, strikes) for index, aim in enumerate(self.plan)]

    def _result(self, index: int, aim: Aim, wrong: str, strikes: Sequence[Strike]) -> Result:
        strike = next((each for each in strikes if each.aim == index and not each.opens), None)
        if strike is None:
            was_idle = any(order.aim == index and order.method == ANY for order in self.marks.orders())
            if was_idle and not wrong:
                return Result(aim=aim, code=0)
            return Result(aim=aim, code=None, why=wrong or NOT_DONE)
        command = next(each for each in self.commands if each.begun <= strike.time <= each.ended)
        whole = self._whole_at(index, strike, command)
        seconds = None if whole is None else whole - strike.time
        is_over = command.code == 0 or (whole is not None and whole <= command.ended)
        code = 0 if is_over else command.code
        if code not in (0, stated_exit(aim)):
            ended = "the command hung" if code is None else f"exit code {code}"
            return Result(aim=aim, code=code, seconds=seconds, why=f"{ended}: {command.said}")
        return Result(aim=aim, code=code, seconds=seconds, why=wrong)

    def _whole_at(self, index: int, strike: Strike, command: Command) -> float | None:
        """When the actor was replaced, or else when all actors served again."""
        replaced = [
            time
            for event in self.events()
            if event["kind"] == "actor_replaced" and event["member"] == strike.members[0]
            if strike.time < (time := datetime.fromisoformat(event["time"]).timestamp()) <= command.ended
        ]
        return min(replaced, default=self.marks.whole().get(index))


def settings_of(folder: Path, name: str, steps: int, setting: Setting, stops: bool) -> list[str]:
    """Settings of a small run of all roles. ``stops``: processes are stopped, so that deadlines are short.

    ``make_data`` has filled ``folder``.
    """
    floor, factor, phase, start = (10, 3, 60, 90) if stops else (30, 5, 200, 300)
    return [
        *from_nothing(folder, name),
        f"ppo.steps={steps}",
        "ppo.batch_size=16",
        f"ppo.staleness={setting.staleness}",
        "rollout.max_response_length=40",
        "data.held_out_fraction=0.2",
        f"early_stop={{scorer: {{function: '{folder}/reward.py:held_out'}}, every: 1, prompts: 8}}",
        "checkpoint.every=1",
        "checkpoint.snapshot_every=1",
        "recovery.restarts=200",
        "recovery.device_errors=200",
        "recovery.backoff_limit_seconds=0.2",
        f"recovery.stall_floor_seconds={floor}",
        f"recovery.stall_factor={factor}",
        f"placement.phase_timeout_seconds={phase}",
        f"placement.start_timeout_seconds={start}",
        *(f"placement.{role}.zero_stage={setting.zero_stage}" for role in ("policy", "critic")),
    ]


def make_data(folder: Path, rises: bool = False) -> None:
    """Data, a reward, and a held-out scorer that never stops the run. If the score ``rises``, each policy is the best
    one so far, and saved."""
    make_data_and_reward(folder)
    with (folder / "reward.py").open("a") as file:
        file.write(HELD_OUT.format(score=f"time.time() - {time.time():.0f}" if rises else "1.0"))


def run_plan(
    folder: Path,
    name: str,
    plan: Sequence[Aim],
    steps: int,
    setting: Setting,
    seconds: float = COMMAND_SECONDS,
    more: Sequence[str] = (),
) -> Ended:
    """Run PPO to its end, with these faults; ``make_data`` has filled ``folder``.

    A command that ends without a new fault is not given again. One that takes longer than ``seconds`` is killed.

    Args:
        more: settings beside those of ``settings_of``.

    Raises:
        RuntimeError: the command failed by itself, before the first fault.
    """
    stops = any(aim.fault == STOP and aim.role != CONTROLLER for aim in plan)
    marks = folder / f"{name}.marks"
    marks.mkdir()
    start = partial(
        Run,
        folder,
        name,
        [*settings_of(folder, name, steps, setting, stops), *more],
        program="tests.end_to_end.planned",
        WANDB_MODE="disabled",
        **to_environment(plan, marks),
    )
    commands = list[Command]()
    ended = Ended(path=folder / "runs" / name / "ppo", plan=plan, steps=steps, marks=Marks(marks), commands=commands)
    while True:
        before, run = len(ended.marks.strikes()), start()
        code = _end(run, seconds)
        commands.append(Command(begun=run.begun, ended=time.time(), code=code, said=_last_words(run)))
        if code and not ended.marks.strikes():
            raise RuntimeError(f"the command ended with {code} before any fault:\n{run.said()}")
        if code == 0 or len(ended.marks.strikes()) == before:
            return ended


def _end(run: Run, seconds: float) -> int | None:
    """The exit code; None for a run that hangs, which is killed."""
    try:
        return run.process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        run.process.kill()
        run.process.wait()
        return None


def _last_words(run: Run) -> str:
    lines = run.said().strip().splitlines()
    return lines[-1][:300] if lines else ""


def by_outcome(results: Sequence[Result]) -> Mapping[str, int]:
    """How many faults the run recovered from, ended at as stated, and failed at."""
    recovered = sum(result.passed and result.code == 0 for result in results)
    passed = sum(result.passed for result in results)
    return {"recovered": recovered, "ended as stated": passed - recovered, "failed": len(results) - passed}
