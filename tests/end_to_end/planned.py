"""``python -m tests.end_to_end.planned ppo RECIPE ...``: the command line, to whose run the faults of a plan happen."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ray.exceptions import OutOfMemoryError, RayActorError, RayError

import actors.engines
import actors.group
import actors.supervisor
import actors.waiting
from actors.process import ProcessLocation
from actors.ray_errors import translate_error
from actors.run_actors import RunActors
from actors.supervisor import Supervisor
from actors.waiting import PhaseContext
from launch.cli import main as command
from rlhf.errors import RLHFError
from tests.end_to_end.director import Actors, Director, Seen
from tests.end_to_end.fault_plan import MEMORY, SAVE, Aim, Marks, plan_of_environment
from tests.end_to_end.planned_actors import PlannedEngine, PlannedWorker

KILLED = """2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 127.0.0.1, \
ID: 0018) was 22.89GB used / 23.59GB limit (0.970326)
OOM kill reason: Memory usage 24577960000B exceeded threshold of 24059005000B (95.0% of 25325268992B limit)
Considered workers: [
Selected to kill: (Actor(56): job ID=01, task name=A.__init__, required resources={}, pid=7531, actual memory used=2.83GB, worker ID=69)
]"""  # noqa: E501  # as Ray 2.60 says it


def actors_of(supervisor: Supervisor) -> Actors:
    """What it knows of each actor."""
    return {
        name: Seen(process=record.where.process if record.where else None, serves=record.member.serves)
        for name, record in supervisor._actors.items()
    }


def as_memory_monitor(plan: list[Aim], marks: Marks) -> Any:
    """``translate_error`` for which actors that were killed for MEMORY have been killed by Ray's memory monitor."""

    def translate(error: RayError, who: str, context: object, seconds: float = 0.0) -> RLHFError:
        strikes = marks.strikes()
        is_memory = bool(strikes) and plan[strikes[-1].aim].fault == MEMORY and not strikes[-1].opens
        if is_memory and who in strikes[-1].members and isinstance(error, RayActorError):
            error = OutOfMemoryError(KILLED)
        return translate_error(error, who, context, seconds)

    return translate


def main() -> int:
    """The command line with a director, and with actors that carry out its orders."""
    plan, marks = plan_of_environment(), Marks.of_environment()
    director, enter, built, save = Director(plan, marks), Supervisor.enter_phase, Supervisor.built, RunActors.save

    def planned_enter(self: Supervisor, context: PhaseContext) -> None:
        enter(self, context)
        director.entered(context.phase, context.step, actors_of(self))

    def planned_built(self: Supervisor, where: ProcessLocation) -> None:
        built(self, where)
        director.loaded()

    def planned_save(self: RunActors, folder: Path, context: PhaseContext) -> None:
        director.entered(SAVE, context.step, actors_of(self.supervisor))
        save(self, folder, context)

    with ExitStack() as stack:
        for target, name, value in (
            (actors.group, "Worker", PlannedWorker),
            (actors.engines, "RolloutActor", PlannedEngine),
            (actors.waiting, "translate_error", as_memory_monitor(plan, marks)),
            (actors.supervisor, "translate_error", as_memory_monitor(plan, marks)),
            (Supervisor, "enter_phase", planned_enter),
            (Supervisor, "built", planned_built),
            (RunActors, "save", planned_save),
        ):
            stack.enter_context(patch.object(target, name, value))
        return command()


if __name__ == "__main__":
    sys.exit(main())
